"""The orientation of an image file: how a viewer turns its pixels before it shows them.

Cameras and scanners store the pixels as they come, and note in a tag (EXIF in JPEG and PNG files,
Orientation in TIFF files) how the picture is to be turned. Labels are drawn on the turned picture.
"""

import itertools
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from PIL import Image


_TAG = 0x0112
# What turns the stored pixels upright, and what undoes it, by the value of the tag.
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNDO_TURN = {
    **TURN,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
UPRIGHT = 1
_READERS, _SLICE = 8, 256
# Of a PNG file, in which an EXIF chunk behind the pixels is looked for.
_LAST_BYTES = 1 << 14


def orientation_of(image: Image.Image, file: BinaryIO) -> int:
    """The orientation of an opened image, 1 to 8; 1 (upright) if it has none that can be read.

    Args:
      image: of which no pixels were read yet.
      file: that it was opened from; its position stays.
    """
    if image.format == "TIFF":
        value = getattr(image, "tag_v2", {}).get(_TAG)
    else:
        exif = image.info.get("exif")
        if exif is None and image.format == "PNG":
            exif = _exif_behind_pixels(file)
        value = None if exif is None else _tag_of(exif)
    return value if value in TURN else UPRIGHT


def _tag_of(exif: bytes) -> int | None:
    parsed = Image.Exif()
    try:
        parsed.load(exif)
        return parsed.get(_TAG)
    except Exception:  # viewers, too, pass over a block that cannot be read
        return None


def _exif_behind_pixels(file: BinaryIO) -> bytes | None:
    """The EXIF chunk of a PNG file, which some programs write after the pixels: near its end."""
    position = file.tell()
    file.seek(max(file.seek(0, os.SEEK_END) - _LAST_BYTES, 0))
    end = file.read(_LAST_BYTES)
    file.seek(position)
    at = len(end)
    while (at := end.rfind(b"eXIf", 4, at)) > 0:
        # Pixels, too, may have these letters; the checksum tells.
        length = int.from_bytes(end[at - 4 : at], "big")
        exif, behind = end[at + 4 : at + 4 + length], end[at + 4 + length :]
        if zlib.crc32(b"eXIf" + exif).to_bytes(4, "big") == behind[:4]:
            return exif
    return None


def read_orientation(path: str) -> int:
    """The orientation of an image file by its header alone; 1 if it cannot be read."""
    try:
        with (
            open(path, "rb") as file,
            Image.open(file, formats=("PNG", "JPEG", "TIFF")) as image,
        ):
            return orientation_of(image, file)
    except Exception:  # whoever reads the pixels says what is wrong with them
        return UPRIGHT


def find_oriented(paths: Sequence[str]) -> dict[int, int]:
    """Index -> orientation, of those images that are not stored upright."""
    slices = (paths[start : start + _SLICE] for start in range(0, len(paths), _SLICE))
    with ThreadPoolExecutor(_READERS) as pool:
        values = itertools.chain.from_iterable(pool.map(_read_orientations, slices))
        return {index: value for index, value in enumerate(values) if value != UPRIGHT}


def _read_orientations(paths: Sequence[str]) -> list[int]:
    return [read_orientation(path) for path in paths]


def orientation_lines(count: int, *, applied: bool) -> list[str]:
    """Lines on so many images that are not stored upright; nothing of none."""
    if not count:
        return []
    images = "1 image has" if count == 1 else f"{count} images have"
    if applied:
        return [f"{images} an orientation (EXIF or TIFF tag), by which the pixels are turned"]
    return [
        f"{images} an orientation (EXIF or TIFF tag) that is not applied "
        "(data.apply_orientation is False)"
    ]


def lines_on(paths: Sequence[str], *, applied: bool) -> list[str]:
    """As `orientation_lines`, of these image files."""
    return orientation_lines(len(find_oriented(paths)), applied=applied)
