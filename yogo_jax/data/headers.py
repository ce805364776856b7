"""Size and orientation of image files, read from their headers: no pixel is decoded.

An orientation is the number 1 to 8 of the EXIF or TIFF tag 0x0112. Viewers and labelling tools turn
an image by it; 1 is upright.
"""

import itertools
import math
import os
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image


# Pillow refuses what is twice as large as it warns of; one limit, which is told, is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Content decides, not the suffix; Pillow's other decoders (some start programs) are left out.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
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
# Images whose size is looked at.
LOOKED_AT = 64
# By so much one side of an image may be stretched against the other without a word.
STRETCH = 1.1


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
        read = pool.map(lambda some: [read_orientation(path) for path in some], slices)
        values = itertools.chain.from_iterable(read)
        return {index: value for index, value in enumerate(values) if value != UPRIGHT}


def orientation_lines(count: int, *, applied: bool) -> list[str]:
    """Lines on so many images that are not stored upright; nothing of none."""
    if not count:
        return []
    images = "1 image has" if count == 1 else f"{count} images have"
    done = " that is not applied (data.apply_orientation is False)"
    if applied:
        done = ", by which the pixels are turned"
    return [f"{images} an orientation (EXIF or TIFF tag){done}"]


def lines_on(paths: Sequence[str], *, applied: bool) -> list[str]:
    """`orientation_lines` of these image files."""
    return orientation_lines(len(find_oriented(paths)), applied=applied)


def header_hw(path: Path | str, *, apply_orientation: bool = True) -> tuple[int, int] | None:
    """Rows and columns of an image by its header, as `decode_image` gives it; None without one."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            # Pillow turns TIFF files by their tag; `decode_image` does not.
            tags = getattr(image, "tag_v2", None)
            width, height = image.size if tags is None else (tags[256], tags[257])
            # From 5 on, height and width change places.
            if apply_orientation and orientation_of(image, file) >= 5:
                width, height = height, width
    except Exception:  # decoders raise nearly anything for damaged files
        return None
    return int(height), int(width)


class Stretch(NamedTuple):
    """The stretch of images of another shape to that of the network.

    Attributes:
      image_hw: that they get.
      path: of the image that is stretched most.
      found_hw: of this image.
      factor: of one of its sides, against the other.
      share: of the images looked at, that are stretched by more than STRETCH.
      turned: share of them that would be stretched less if height and width changed places.
    """

    image_hw: tuple[int, int]
    path: str
    found_hw: tuple[int, int]
    factor: float
    share: float
    turned: float

    def __str__(self) -> str:
        rows, columns = self.found_hw
        return (
            f"warning: {self.share:.0%} of the images have another shape than "
            f"{self.image_hw[0]}x{self.image_hw[1]} px and are stretched to it, by up to "
            f"{self.factor:.2f} ({self.path}: {rows}x{columns} px)"
        )


def stretch_of(
    image_paths: Sequence[str], image_hw: tuple[int, int], apply_orientation: bool = True
) -> Stretch | None:
    """The stretch of some images, of which up to 64 are read; None if it is next to nothing.

    Args:
      image_paths: of the images.
      image_hw: that they get.
      apply_orientation: whether they are turned as their EXIF or TIFF tag says.
    """
    step = -(-len(image_paths) // LOOKED_AT) or 1
    by_path = {
        path: header_hw(path, apply_orientation=apply_orientation) for path in image_paths[::step]
    }
    sizes = [(path, hw) for path, hw in by_path.items() if hw is not None]
    if not sizes:
        return None
    # The logarithm of width / height changes its sign when an image is turned.
    shapes = np.array([math.log(columns / rows) for _, (rows, columns) in sizes])
    wanted = math.log(image_hw[1] / image_hw[0])
    by = np.abs(wanted - shapes)
    stretched = by > math.log(STRETCH)
    if not stretched.any():
        return None
    path, hw = sizes[int(by.argmax())]
    turned = stretched & (np.abs(wanted + shapes) < by)
    return Stretch(
        image_hw, path, hw, math.exp(by.max()), float(stretched.mean()), float(turned.mean())
    )
