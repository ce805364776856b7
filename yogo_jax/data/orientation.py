"""The orientation of an image file: how a viewer turns its pixels before it shows them.

Cameras and scanners store the pixels as they come, and note in a tag (EXIF in JPEG and PNG files,
Orientation in TIFF files) how the picture is to be turned. Labels are drawn on the turned picture.
"""

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
_READERS = 8


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
    """The EXIF chunk of a PNG file, which some programs write after the pixels."""
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(position)


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
    with ThreadPoolExecutor(_READERS) as pool:
        found = enumerate(pool.map(read_orientation, paths))
        return {index: value for index, value in found if value != UPRIGHT}


def orientation_lines(count: int, *, applied: bool) -> list[str]:
    """What is to be said of so many images that are not stored upright; nothing of none."""
    if not count:
        return []
    images = "1 image has" if count == 1 else f"{count} images have"
    if applied:
        return [f"{images} an orientation (EXIF or TIFF tag), by which the pixels are turned"]
    return [
        f"{images} an orientation (EXIF or TIFF tag) that is not applied "
        "(data.apply_orientation is False)"
    ]
