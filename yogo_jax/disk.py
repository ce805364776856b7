"""Space on the disk for files that are mapped into memory."""

import os
from pathlib import Path


_BLOCK = 1 << 20


def reserve_space(path: Path) -> None:
    """Makes the disk keep room for all of a file that was made with holes.

    Where the disk cannot fill a hole of a mapped file, the process is killed with a bus error; here
    that is an `OSError` beforehand.

    Raises:
      OSError: the disk is full.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        # macOS has no such call: what reads as zeros is written.
        for start in range(0, size, _BLOCK):
            file.seek(start)
            block = file.read(_BLOCK)
            file.seek(start)
            file.write(block)
