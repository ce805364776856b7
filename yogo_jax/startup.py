"""The start of a command: places for caches, and JAX set up before other modules import it."""

import functools
import getpass
import hashlib
import logging
import os
import platform
import stat
import sys
import tempfile
from pathlib import Path

from absl import logging as absl_logging

from yogo_jax.files import given_path


# Places that could not be used, of which the user has been told.
_told: set[str] = set()


def cache_folder() -> Path:
    """`YOGO_JAX_CACHE`, else `yogo_jax` in the user's cache folder.

    If the latter cannot be written, the cache is a folder among the temporary ones, and one line on
    standard error says so.

    Raises:
      UserError: `YOGO_JAX_CACHE` begins with `~` and no home folder is known.
    """
    if own := os.environ.get("YOGO_JAX_CACHE"):
        return given_path(own).resolve()
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG standard has relative paths ignored.
        wanted = (base if base.is_absolute() else Path.home() / ".cache") / "yogo_jax"
        wanted.mkdir(parents=True, exist_ok=True)
        if os.access(wanted, os.W_OK | os.X_OK):
            return wanted
        reason = f"{wanted} cannot be written"
    except OSError as error:
        reason = f"{wanted} cannot be made ({error.strerror})"
    except RuntimeError:
        reason = "this user has no home folder"
    folder = _temporary_folder()
    if reason not in _told:
        _told.add(reason)
        print(
            f"{reason}: the cache is {folder}; export YOGO_JAX_CACHE=FOLDER for another",
            file=sys.stderr,
        )
    return folder


def _temporary_folder() -> Path:
    """A folder that only this user can open; one that somebody else made is not used."""
    folder = Path(tempfile.gettempdir()) / f"yogo_jax-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return _private_folder()
    # Beside the permissions there may be a bit that it inherits from the folder above.
    is_private = stat.S_ISDIR(found.st_mode) and found.st_mode & 0o777 == 0o700
    if is_private and found.st_uid == os.getuid():
        return folder
    return _private_folder()


@functools.cache
def _private_folder() -> Path:
    """A new folder, the same for the whole process."""
    return Path(tempfile.mkdtemp(prefix="yogo_jax-"))


def spare_libraries_the_home() -> None:
    """Gives libraries that insist on a home folder one that they can use, if the user has none."""
    try:
        home = Path.home()
    except RuntimeError:
        # Some libraries would make a folder named `~` in the current one.
        home = cache_folder()
        os.environ["HOME"] = os.environ["YOGO_JAX_CACHE"] = str(home)
    if not os.access(home, os.W_OK | os.X_OK):
        # Matplotlib would make a new folder at each start, and say so.
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        # The number of this user has no name, and some libraries ask for one.
        os.environ["LOGNAME"] = f"user{os.getuid()}"


def start_jax() -> None:
    """Imports JAX and sets it up; to be called before other modules import it.

    Compilations are kept in the cache folder, apart for each kind of CPU, or in the folder that the
    user has given JAX, by `JAX_COMPILATION_CACHE_DIR` or `jax.config`. What libraries say of their
    progress is left out: warnings of JAX remain, of Orbax and Grain errors alone.
    """
    # Orbax and Grain report every file at lower levels.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.WARNING)
    import jax

    own = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if own or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # A second start does not compile again.
    folder = cache_folder() / "compilations" / f"{jax.__version__}-{cpu_fingerprint()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cpu_fingerprint() -> str:
    """A short name of this kind of CPU: code compiled for one may not run on another."""
    described = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        described += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
