"""Settings that commands make before they import the parts that compute."""

import os
import subprocess
import sys

import pytest

from yogo_jax.startup import cpu_fingerprint


LOOK = """
import logging, sys
import absl.logging
from yogo_jax.startup import start_jax
assert "jax" not in sys.modules
start_jax()
import jax
print(logging.getLogger("jax").level == logging.WARNING)
print(absl.logging.get_verbosity() == absl.logging.ERROR)
print(jax.config.jax_compilation_cache_dir)
"""


def looked_at(script: str = LOOK, **environment: str) -> list[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    )
    return result.stdout.split("\n")


def test_compilations_stay_where_the_user_has_told_jax(tmp_path):
    script = LOOK.replace('assert "jax" not in sys.modules', "import jax").replace(
        "start_jax()\n", 'jax.config.update("jax_compilation_cache_dir", "/told")\nstart_jax()\n'
    )
    assert looked_at(script, YOGO_JAX_CACHE=str(tmp_path))[2] == "/told"


def test_libraries_are_quiet(tmp_path):
    assert looked_at(YOGO_JAX_CACHE=str(tmp_path))[:2] == ["True", "True"]


@pytest.mark.parametrize("own", [True, False], ids=["our folder", "the user's folder"])
def test_compilations_are_kept_apart_for_each_cpu_unless_the_user_says_where(own, tmp_path):
    environment = {"YOGO_JAX_CACHE": str(tmp_path)}
    if not own:
        environment["JAX_COMPILATION_CACHE_DIR"] = "/elsewhere"
    folder = looked_at(**environment)[2]
    if own:
        assert folder.startswith(str(tmp_path / "compilations"))
        assert folder.endswith(cpu_fingerprint())
    else:
        assert folder == "/elsewhere"
