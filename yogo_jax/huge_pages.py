"""Memory in huge pages, for commands that train on a CPU.

A training step writes some hundred MiB of temporary memory, which XLA asks the system for anew each
time; in pages of 4 KiB, handing them out takes a tenth of the step. Linux has pages of 2 MiB for
programs that ask for them, and glibc from 2.35 on asks if it is told to before a program starts.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


TUNABLES = "GLIBC_TUNABLES"
_ASK = "glibc.malloc.hugetlb=1"
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _libc() -> str:
    """Name and version of the C library, as "glibc 2.36"; empty where it does not say."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def with_huge_pages(
    environment: Mapping[str, str], *, setting: str, libc: str
) -> dict[str, str] | None:
    """The environment in which a program gets huge pages, None where it is not to be changed.

    Args:
      environment: of this process; tunables of its own are left as they are.
      setting: the kernel's, of which the one in brackets holds. Only under "madvise" it matters
        whether a program asks.
      libc: as of `_libc`.
    """
    name, _, version = libc.partition(" ")
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if TUNABLES in environment or "[madvise]" not in setting:
        return None
    if name != "glibc" or numbers < (2, 35):
        return None
    return {**environment, TUNABLES: _ASK}


def use_huge_pages() -> None:
    """Starts this command once more, in this process, where that gives it huge pages.

    To be called first of all, and by a command alone. `GLIBCTUNABLES`, even empty, turns it off.
    """
    try:
        setting = _SETTING.read_text(encoding="utf-8")
    except OSError:
        return
    environment = with_huge_pages(os.environ, setting=setting, libc=_libc())
    if environment is not None and sys.executable:
        sys.stdout.flush()
        # Its own path: by the name in front of the arguments another Python might be found.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
