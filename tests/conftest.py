"""Settings of every test: strict ranks, and flags as an entry point would leave them."""

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from absl import flags
from hypothesis import settings

from parity import REMOSCOPE
from runs import ROOT
from slurm_here import Slurm, slurm_here, why_not
from yogo_jax.startup import cpu_fingerprint, start_jax


COMPILATIONS = ROOT / ".compilations"
# XLA of JAX 0.10 compiles in a quarter of the time without its newer code for fused operations.
# Later versions have no other, and abort on the flag.
_FEW_FUSIONS = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    # XLA reads its flags once, at the first computation. Sessions that leave out what is compiled
    # as users do compile fast.
    leaves_out_optimized = "not optimized" in config.option.markexpr
    if leaves_out_optimized and importlib.metadata.version("jax").startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", _FEW_FUSIONS)
    # Grain reads absl flags in its worker processes, which refuses to work with unparsed ones.
    flags.FLAGS.mark_as_parsed()
    # The first example of a test compiles, which no deadline should count.
    settings.register_profile("yogo", deadline=None, derandomize=True)
    settings.load_profile("yogo")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Tests run little and compile much: half of their time goes if XLA does not optimize. Parity
    # and bit-for-bit continuation are tested as users compile, see the marker `optimized`.
    jax.config.update("jax_disable_most_optimizations", True)
    # Each function is compiled once for this process, its workers, the commands that tests start,
    # and the sessions to come; `make clean` removes it.
    compilations = COMPILATIONS / f"{jax.__version__}-{cpu_fingerprint()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilations))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # JAX has read both already.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # All else that commands keep goes with the session, unless the caller gives a folder.
    if "YOGO_JAX_CACHE" not in os.environ:
        os.environ["YOGO_JAX_CACHE"] = tempfile.mkdtemp(prefix="yogo_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["YOGO_JAX_CACHE"], ignore_errors=True))
    start_jax()


@pytest.fixture(autouse=True)
def _optimized(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles the functions of a test marked so as users do, with all of XLA's optimizations."""
    marked = request.node.get_closest_marker("optimized") is not None
    if marked and _FEW_FUSIONS in os.environ.get("XLA_FLAGS", ""):
        pytest.fail("this test compiles as users do: run it without XLA_FLAGS")
    if marked:
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    if marked:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def elated_smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the instrument, read in; the test is skipped where it is not at hand."""
    from bridge import from_onnx

    network = REMOSCOPE / "elated-smoke-4492.onnx"
    if not network.exists():
        pytest.skip("the network of the instrument is not here: it is not part of the project")
    folder = tmp_path_factory.mktemp("instrument") / "checkpoint"
    from_onnx.main([str(network), "--output", str(folder)])
    return folder


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A SLURM with two CPUs; the test is skipped where it is not installed."""
    if reason := why_not():
        pytest.skip(reason)
    with slurm_here() as running:
        yield running
