"""Memory that was freed, given back to the system."""

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Asks the C library for what it keeps of freed memory, where it can be asked.

    The GNU C library keeps small pieces for later. After a large network was written these are as
    much as the network three times over, beside which its verification would need 2 GiB.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
