"""Damages of files, drawn with a seed."""

import numpy as np


END_OF_JPEG = b"\xff\xd9"


def cut_short(data: bytes, rng: np.random.Generator) -> bytes:
    """The first part of a file."""
    return data[: _place(data, rng)]


def closed_by_end_marker(data: bytes, rng: np.random.Generator) -> bytes:
    """The first part of a JPEG file, made to look complete."""
    return cut_short(data, rng) + END_OF_JPEG


def zeros_within(data: bytes, rng: np.random.Generator) -> bytes:
    """A file of which a sector is lost."""
    start = _place(data, rng)
    lost = data[start : start + 512]
    return data[:start] + bytes(len(lost)) + data[start + len(lost) :]


def changed_byte(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one other byte."""
    at = _place(data, rng)
    return data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Somewhere behind the header."""
    return int(rng.integers(len(data) // 20, len(data) * 19 // 20))
