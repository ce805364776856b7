"""Image files as uint8 arrays; damaged ones are refused.

Most decoders fill damaged parts with gray and say nothing. Here JPEG data is decoded by
libjpeg-turbo, and its warnings are errors, except for those on the header that do not concern the
pixels. The pixels are those of Pillow. Deflate data in TIFF files has its checksum compared. Damage
that leaves valid data (some single bytes of a JPEG, any byte of uncompressed pixels) is not seen.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.data.headers import FORMATS, TURN, UNDO_TURN, UPRIGHT, orientation_of
from yogo_jax.data.tiff_frames import TiffFrame, tiff_frames
from yogo_jax.errors import UserError


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Tags of TIFF files, and values of theirs.
_SAMPLE_FORMAT, _SIGNED = 339, 2  # whole numbers with a sign
_COMPRESSION, _JPEG_TABLES = 259, 347
# Offsets and sizes in bytes of the compressed pieces, which are strips or tiles.
_PIECES = ((273, 279), (324, 325))
_JPEG, _DEFLATE = 7, (8, 32946)
# Warnings of libjpeg that do not concern the pixels, if they are of what stands before these.
_HARMLESS_IN_HEADERS = ("unknown JFIF revision number", "extraneous bytes before marker")
_PIXELS_FOLLOW = 0xDA


def is_image_name(name: str) -> bool:
    """Says if a file name is that of an image; hidden files are not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def read_image(
    path: Path | str, *, image_hw: tuple[int, int], rgb: bool, apply_orientation: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """One image as gray (c = 1) or RGB (c = 3) of `image_hw`, resized if its size differs.

    See `decode_image` and `resize_image`.

    Raises:
      UserError: if the file is missing, damaged, a stack, or not of 8 bits a channel.
    """
    return resize_image(decode_image(path, rgb=rgb, apply_orientation=apply_orientation), image_hw)


def decode_image(
    path: Path | str, *, rgb: bool, apply_orientation: bool = True
) -> UInt8[np.ndarray, "h w c"]:
    """One image as gray (c = 1) or RGB (c = 3), of the size that it has.

    Transparency is dropped. Colour becomes gray as the luma of ITU-R BT.601, for a JPEG its stored
    luma.

    Args:
      path: of the file; its content decides what it is, not its suffix.
      rgb: three channels instead of one.
      apply_orientation: turn the pixels as the file's EXIF or TIFF tag says, as viewers and
        labelling tools do; False keeps them as they are stored.

    Raises:
      UserError: if the file is missing, damaged, a stack, or not of 8 bits a channel.
    """
    return _as_array(decode_file(path, rgb=rgb, apply_orientation=apply_orientation).pixels)


class DecodedImage(NamedTuple):
    """Gray or RGB pixels in the size of the file, and how the file stores them."""

    pixels: Image.Image
    stored_as: str  # such as "PNG L" or "JPEG RGB": format, and Pillow's name of the pixels
    orientation: int  # 1 for upright, else what the pixels were or were not turned by


def decode_file(path: Path | str, *, rgb: bool, apply_orientation: bool = True) -> DecodedImage:
    """As `decode_image`, with what the file says of itself."""
    # Given the path, Pillow maps some TIFF files, and wrongly if their tag says rotated.
    with (
        _refusals_of(path, path),
        open(path, "rb") as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        image.seek(_only_frame(path, image).page)
        return _decode(image, file, rgb, apply_orientation)


def resize_image(
    image: UInt8[np.ndarray, "h w c"], image_hw: tuple[int, int]
) -> UInt8[np.ndarray, "oh ow c"]:
    """The image in another size, bilinear and antialiased; itself if it has that size."""
    if image.shape[:2] == image_hw:
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _as_array(pixels.resize((image_hw[1], image_hw[0]), Image.Resampling.BILINEAR))


class TiffStack:
    """A TIFF file of several frames, read in any order and by one thread at a time.

    It stays open, because to find a page is to go through all those before it.

    Raises:
      UserError: the file cannot be opened as a TIFF.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        try:
            self._image = Image.open(self._file, formats=("TIFF",))
        except Exception as error:
            self._file.close()
            raise UserError(f"{path}: {_reason(path, error)}") from None

    def read(
        self, frame: TiffFrame, *, rgb: bool, apply_orientation: bool = True
    ) -> UInt8[np.ndarray, "h w c"]:
        """One of `tiff_frames` of this file, as `decode_image` reads a file.

        Raises:
          UserError: it cannot be decoded, or is not of 8 bits a channel.
        """
        if frame.problem is not None:
            raise UserError(f"{self._path}: {frame.problem}")
        with _refusals_of(f"{self._path}, page {frame.page}", self._path):
            image = self._at(frame)
            return _as_array(_decode(image, self._file, rgb, apply_orientation).pixels)

    def _at(self, frame: TiffFrame) -> Image.Image:
        """The opened file, as if it held this frame alone."""
        if not frame.skipped_bytes:
            self._image.seek(frame.page)
            return self._image
        self._file.seek(0)
        image = Image.open(self._file, formats=("TIFF",))
        image.seek(frame.page)
        image.tile = [
            tile._replace(offset=tile.offset + frame.skipped_bytes) for tile in image.tile
        ]
        return image

    def close(self) -> None:
        """Closes the file."""
        self._image.close()
        self._file.close()


def _as_array(pixels: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    array = np.array(pixels)
    return array if array.ndim == 3 else array[:, :, None]


@contextmanager
def _refusals_of(where: Path | str, path: Path | str) -> Iterator[None]:
    """Turns what decoders raise for damaged files, which is nearly anything, into `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:
        raise UserError(f"{where}: {_reason(path, error)}") from None


def _only_frame(path: Path | str, image: Image.Image) -> TiffFrame:
    """The one frame of an opened file; a stack is refused."""
    if image.format == "TIFF":
        frames = tiff_frames(path)
    else:
        # MPO is a JPEG photograph with previews after it.
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        frames = [TiffFrame(index) for index in range(count)]
    problem = next((frame.problem for frame in frames if frame.problem is not None), None)
    if problem is None and len(frames) > 1:
        problem = (
            f"a stack of {len(frames)} images; expected one image a file; save the pages separately"
        )
    if problem is not None:
        raise UserError(problem)
    return frames[0]


def _check_depth(image: Image.Image) -> None:
    """Refuses an opened image that is not one of 8 bits a channel."""
    # Pillow opens 16-bit colour as 8-bit RGB; only the raw mode of its tiles tells.
    modes = [image.mode]
    for tile in getattr(image, "tile", []):
        modes += tile[3] if isinstance(tile[3], tuple) else [tile[3]]
    if image.mode in {"I", "F"} or any(";16" in str(mode) for mode in modes):
        raise UserError(
            f"16-bit, 32-bit or float pixels (mode {image.mode}); expected 8 bits a channel; scale "
            "the values to 0..255 and save as 8 bit"
        )
    if _SIGNED in _tag_values(image, _SAMPLE_FORMAT):
        raise UserError(
            "signed pixels, -128 to 127; expected 0 to 255; add 128 and save as unsigned 8 bit"
        )


def _decode(image: Image.Image, file: BinaryIO, rgb: bool, apply_orientation: bool) -> DecodedImage:
    """The pixels of an opened image, turned or not, as RGB or gray."""
    _check_depth(image)
    stored_as = f"{image.format} {image.mode}"
    orientation = orientation_of(image, file)
    pixels = _strictly_decoded(image, file, rgb)
    # Pillow turns TIFF files while it reads them, and only these.
    is_turned = image.format == "TIFF"
    if orientation != UPRIGHT and is_turned != apply_orientation:
        pixels = pixels.transpose((UNDO_TURN if is_turned else TURN)[orientation])
    pixels.info.pop("transparency", None)
    if pixels.mode not in {"1", "L", "LA", "P", "RGB", "RGBA"}:
        pixels = pixels.convert("RGB")  # CMYK, YCbCr and others have no direct way to gray
    mode = "RGB" if rgb else "L"
    pixels = pixels if pixels.mode == mode else pixels.convert(mode)
    return DecodedImage(pixels, stored_as, orientation)


def _strictly_decoded(image: Image.Image, file: BinaryIO, rgb: bool) -> Image.Image:
    """All pixels of an opened image; ValueError if its data is damaged."""
    if image.format in {"JPEG", "MPO"}:
        file.seek(0)
        data = file.read()
        if image.mode in {"L", "RGB"}:
            pixels = _decode_jpeg(data, "RGB" if rgb else "GRAY")
            return Image.fromarray(pixels if rgb else pixels[..., 0])
        # Pillow converts the colours of print better; here the data is only checked.
        _decode_jpeg(data, "GRAY")
    elif image.format == "TIFF":
        _check_tiff_page(image, file)
    image.load()
    return image


def _decode_jpeg(data: bytes, colours: str) -> UInt8[np.ndarray, "h w c"]:
    """Pixels of a JPEG as "RGB", or as its luma ("GRAY"); ValueError if it is damaged."""
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


def _check_tiff_page(image: Image.Image, file: BinaryIO) -> None:
    """Raises ValueError if the compressed data of the page is damaged, where that can be told."""
    (compression,) = _tag_values(image, _COMPRESSION) or (None,)
    if compression in _DEFLATE:
        for piece in _pieces(image, file):
            _check_deflate(piece)
    elif compression == _JPEG:
        # Pieces share their tables, which stand in a tag, as a JPEG file without an image.
        (tables,) = _tag_values(image, _JPEG_TABLES) or (b"",)
        for piece in _pieces(image, file):
            _decode_jpeg(tables[:-2] + piece[2:] if tables else piece, "GRAY")


def _tag_values(image: Image.Image, tag: int) -> tuple[Any, ...]:
    """The values of a tag of the page of a TIFF file; none if the page does not have it."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _pieces(image: Image.Image, file: BinaryIO) -> Iterator[bytes]:
    # A damaged size must not take all memory.
    end = os.fstat(file.fileno()).st_size
    for offsets, sizes in _PIECES:
        pairs = zip(_tag_values(image, offsets), _tag_values(image, sizes), strict=True)
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


def _reason(path: Path | str, error: Exception) -> str:
    """The message on a file that is no image: the finding, what was expected, the fix."""
    if isinstance(error, FileNotFoundError):
        return "does not exist; expected an image"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty (0 bytes); expected an image; copy it again or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"an image of more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} px; expected a frame of a "
            "microscope; cut it into parts"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in PNG, JPEG, TIFF or BMP format; convert it or remove it"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; expected a readable image"
    return f"cannot be decoded ({error}); expected an intact image; copy it again or remove it"
