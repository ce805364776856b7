"""Image files as uint8 arrays."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.data.decoding import (
    TURN,
    UNDO_TURN,
    UPRIGHT,
    check_jpeg,
    check_tiff_page,
    decode_jpeg,
    orientation_of,
    tag_values,
)
from yogo_jax.data.tiff_frames import TiffFrame, tiff_frames
from yogo_jax.errors import UserError


# Images whose size is looked at.
LOOKED_AT = 64
# By so much one side of an image may be stretched against the other without a word.
STRETCH = 1.1


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
    # In logarithms of width / height a turned image has the other sign.
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


# Pillow refuses what is twice as large as it warns of; one limit, which is told, is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Content decides, not the suffix; Pillow's other decoders (some start programs) are left out.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_SAMPLE_FORMAT, _SIGNED = 339, 2  # a tag of TIFF files, and its value for whole numbers with a sign


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image; hidden files are not."""
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
    decoded = None
    try:
        # Given the path, Pillow maps some TIFF files, and wrongly if their tag says rotated.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            frames = _frames_of(path, image)
            problem = _stack_problem(frames)
            if problem is None:
                image.seek(frames[0].page)
                problem = _depth_problem(image)
            if problem is None:
                decoded = _decode(image, file, rgb, apply_orientation)
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise UserError(f"{path}: {_reason(path, error)}") from None
    if decoded is None:
        raise UserError(f"{path}: {problem}")
    return decoded


def resize_image(
    image: UInt8[np.ndarray, "h w c"], image_hw: tuple[int, int]
) -> UInt8[np.ndarray, "oh ow c"]:
    """The image in another size, bilinear and antialiased; itself if it has that size."""
    if image.shape[:2] == image_hw:
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _as_array(pixels.resize((image_hw[1], image_hw[0]), Image.Resampling.BILINEAR))


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
        """One frame, as `decode_image` reads a file.

        Args:
          frame: one of `tiff_frames` of this file.
          rgb: three channels instead of one.
          apply_orientation: see `decode_image`.

        Raises:
          UserError: it cannot be decoded, or is not of 8 bits a channel.
        """
        where = f"{self._path}, page {frame.page}"
        if frame.problem is not None:
            raise UserError(f"{self._path}: {frame.problem}")
        decoded = None
        try:
            image = self._at(frame)
            problem = _depth_problem(image)
            if problem is None:
                decoded = _decode(image, self._file, rgb, apply_orientation)
        except Exception as error:
            raise UserError(f"{where}: {_reason(self._path, error)}") from None
        if decoded is None:
            raise UserError(f"{where}: {problem}")
        return _as_array(decoded.pixels)

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


def _frames_of(path: Path | str, image: Image.Image) -> list[TiffFrame]:
    """The frames of a file that could be opened."""
    if image.format == "TIFF":
        return tiff_frames(path)
    # MPO is a JPEG photograph with previews after it.
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return [TiffFrame(index) for index in range(count)]


def _stack_problem(frames: list[TiffFrame]) -> str | None:
    """Why the frames of a file are not one image, or None."""
    problem = next((frame.problem for frame in frames if frame.problem is not None), None)
    if problem is None and len(frames) > 1:
        return (
            f"a stack of {len(frames)} images; expected one image a file; save the pages separately"
        )
    return problem


def _depth_problem(image: Image.Image) -> str | None:
    """Why an image that could be opened is not one of 8 bits a channel, or None."""
    # Pillow opens 16-bit colour as 8-bit RGB; only the raw mode of its tiles tells.
    raw_modes = [part for tile in getattr(image, "tile", []) for part in _texts(tile[3])]
    if image.mode in {"I", "F"} or any(";16" in mode for mode in (image.mode, *raw_modes)):
        return (
            f"16-bit, 32-bit or float pixels (mode {image.mode}); expected 8 bits a channel; scale "
            "the values to 0..255 and save as 8 bit"
        )
    if _SIGNED in tag_values(image, _SAMPLE_FORMAT):
        return "signed pixels, -128 to 127; expected 0 to 255; add 128 and save as unsigned 8 bit"
    return None


def _texts(arguments: object) -> list[str]:
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    return [part for part in parts if isinstance(part, str)]


def _decode(image: Image.Image, file: BinaryIO, rgb: bool, apply_orientation: bool) -> DecodedImage:
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
    """All pixels of an opened image.

    Raises:
      ValueError: its data is damaged.
    """
    if image.format in {"JPEG", "MPO"}:
        file.seek(0)
        data = file.read()
        if image.mode in {"L", "RGB"}:
            pixels = decode_jpeg(data, rgb=rgb)
            return Image.fromarray(pixels if rgb else pixels[..., 0])
        # Of the colours of print Pillow knows more.
        check_jpeg(data)
    elif image.format == "TIFF":
        check_tiff_page(image, file)
    image.load()
    return image


def _reason(path: Path | str, error: Exception) -> str:
    """What was found in place of an image, and how to mend it."""
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
