"""Compiled functions are kept between processes: a second start does not compile again."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from yogo_jax.cache import cache_folder


def cpu_fingerprint() -> str:
    """A short name of this kind of CPU: code compiled for one may not run on another."""
    described = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        described += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def use_compilation_cache() -> None:
    """Keeps compilations in the user's cache folder, apart for each kind of CPU.

    JAX's own `JAX_COMPILATION_CACHE_DIR` goes before; `YOGO_JAX_CACHE` moves the folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compilations" / f"{jax.__version__}-{cpu_fingerprint()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
