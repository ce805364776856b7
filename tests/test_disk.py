import os

import numpy as np
import pytest

from yogo_jax.files import reserve_space


@pytest.mark.parametrize("with_call", [True, False], ids=["posix_fallocate", "without it"])
def test_a_file_with_holes_is_filled_and_stays_the_same(with_call, tmp_path, monkeypatch):
    if not with_call:
        # As on macOS.
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = tmp_path / "a.npy"
    shape = (3, 1_000_001)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    array[1, :3] = 7
    array.flush()
    before = path.read_bytes()
    reserve_space(path)
    assert path.read_bytes() == before
    status = path.stat()
    assert status.st_blocks * 512 >= status.st_size
