"""Damage that decoders pass over: they fill up what is missing with gray, and say nothing.

JPEG data is decoded by libjpeg-turbo with its warnings taken as errors, but for those on the header
that do not concern the pixels; the pixels are those that Pillow gives. Of Deflate in TIFF files,
the checksum is compared. A change that leaves valid data (some single bytes of a JPEG; any byte of
pixels that are not compressed) cannot be seen.
"""

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from jaxtyping import UInt8
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


_COMPRESSION, _JPEG_TABLES = 259, 347
# Offsets and sizes in bytes of the compressed pieces, which are strips or tiles.
_PIECES = ((273, 279), (324, 325))
_JPEG, _DEFLATE = 7, (8, 32946)
# Warnings of libjpeg that do not concern the pixels, if they are of what stands before these.
_HARMLESS_IN_HEADERS = ("unknown JFIF revision number", "extraneous bytes before marker")
_PIXELS_FOLLOW = 0xDA


def decode_jpeg(data: bytes, *, rgb: bool) -> UInt8[np.ndarray, "h w c"]:
    """Pixels of an intact JPEG as RGB, or as its luma.

    Raises:
      ValueError: the data is damaged, in the words of the decoder.
    """
    return _strictly(data, "RGB" if rgb else "GRAY")


def check_jpeg(data: bytes) -> None:
    """Refuses a JPEG, of any colours, that is damaged.

    Raises:
      ValueError: in the words of the decoder.
    """
    _strictly(data, "GRAY")


def _strictly(data: bytes, colours: str) -> UInt8[np.ndarray, "h w c"]:
    try:
        return simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        if not any(text in str(error) for text in _HARMLESS_IN_HEADERS):
            raise
    # The decoder stops at its first warning. Without what it warned of, it sees the pixels.
    return simplejpeg.decode_jpeg(_with_plain_header(data), colours, strict=True)


def _with_plain_header(data: bytes) -> bytes:
    """A JPEG without stray bytes between the segments before its pixels, and of JFIF 1.01."""
    header, at = data[:2], 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 4:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _PIXELS_FOLLOW:
            return header + data[at:]
        if marker in (0x00, 0xFF):  # a stray byte, or one that fills up
            at += 1
            continue
        segment = data[at:end]
        if segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\x01\x01" + segment[11:]
        header, at = header + segment, end
    return data


def check_tiff_page(image: Image.Image, file: BinaryIO) -> None:
    """Refuses a page of a TIFF file whose compressed data is damaged, where that can be told.

    Args:
      image: the opened file, at this page.
      file: that it was opened from; its position stays.

    Raises:
      ValueError: the data is damaged.
    """
    (compression,) = tag_values(image, _COMPRESSION) or (None,)
    if compression in _DEFLATE:
        for piece in _pieces(image, file):
            _check_deflate(piece)
    elif compression == _JPEG:
        # Pieces share their tables, which stand in a tag, as a JPEG file without an image.
        (tables,) = tag_values(image, _JPEG_TABLES) or (b"",)
        for piece in _pieces(image, file):
            check_jpeg(tables[:-2] + piece[2:] if tables else piece)


def tag_values(image: Image.Image, tag: int) -> tuple[Any, ...]:
    """The values of a tag of the page of a TIFF file; none if the page does not have it."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _pieces(image: Image.Image, file: BinaryIO) -> Iterator[bytes]:
    # A damaged size must not take all memory.
    end = os.fstat(file.fileno()).st_size
    for offsets, sizes in _PIECES:
        pairs = zip(tag_values(image, offsets), tag_values(image, sizes), strict=True)
        for offset, size in pairs:
            yield os.pread(file.fileno(), min(size, end), offset)


def _check_deflate(piece: bytes) -> None:
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(piece)
    except zlib.error as error:
        raise ValueError(f"damaged Deflate data, {error}") from None
    if not inflate.eof:
        raise ValueError("damaged Deflate data, its end is missing")
