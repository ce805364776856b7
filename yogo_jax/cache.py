"""The folder for everything that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`YOGO_JAX_CACHE`, else `yogo_jax` in the user's cache folder."""
    if own := os.environ.get("YOGO_JAX_CACHE"):
        return Path(own).expanduser().resolve()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG standard has relative paths ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "yogo_jax"
