"""What commands do before they import the parts that compute."""

import gc
import hashlib
import logging
import os
import platform
from pathlib import Path

from absl import logging as absl_logging

from yogo_jax.cache import cache_folder


# Objects made, and not freed, before Python looks for garbage that refers to itself. Importing JAX
# and tracing a step make some hundred thousand that all stay: looking through them every 700
# objects, as Python 3.11 does, takes a twentieth of a start (docs/performance.md).
OBJECTS_BETWEEN_COLLECTIONS = 50_000


def start_jax() -> None:
    """Imports JAX and sets it up; to be called before other modules import it.

    Garbage is collected less often, compilations are kept, and what libraries say of their progress
    is left out: warnings of JAX remain, of Orbax and Grain errors alone.
    """
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # Orbax and Grain report every file at lower levels.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.WARNING)
    use_compilation_cache()


def cpu_fingerprint() -> str:
    """A short name of this kind of CPU: code compiled for one may not run on another."""
    described = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        described += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def use_compilation_cache() -> None:
    """Keeps compilations between processes, so that a second start does not compile again.

    They lie in the user's cache folder, apart for each kind of CPU. JAX's own
    `JAX_COMPILATION_CACHE_DIR` goes before; `YOGO_JAX_CACHE` moves the folder.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compilations" / f"{jax.__version__}-{cpu_fingerprint()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
