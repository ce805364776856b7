"""Image files as uint8 arrays."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.errors import UserError


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Content decides, not the suffix; Pillow's other decoders (some start programs) are left out.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
UNDO_TRANSPOSITION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image; hidden files are not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def read_image(
    path: Path | str, *, image_hw: tuple[int, int], rgb: bool
) -> UInt8[np.ndarray, "h w c"]:
    """One image as gray (c = 1) or RGB (c = 3) of `image_hw`, resized if its size differs.

    See `decode_image` and `resize_image`.

    Raises:
      UserError: if the file is missing, undecodable, a stack, or not of 8 bits a channel.
    """
    return resize_image(decode_image(path, rgb=rgb), image_hw)


def decode_image(path: Path | str, *, rgb: bool) -> UInt8[np.ndarray, "h w c"]:
    """One image as gray (c = 1) or RGB (c = 3), of the size that it has.

    Pixels stay as they are stored, because labels are drawn on them: an EXIF orientation is not
    applied, and transparency is dropped. Colour becomes gray as the luma of ITU-R BT.601, for a
    JPEG its stored luma.

    Raises:
      UserError: if the file is missing, undecodable, a stack, or not of 8 bits a channel.
    """
    return _as_array(decode_file(path, rgb=rgb).pixels)


class DecodedImage(NamedTuple):
    """Gray or RGB pixels in the size of the file, and how the file stores them."""

    pixels: Image.Image
    stored_as: str  # such as "PNG L" or "JPEG RGB": format, and Pillow's name of the pixels


def decode_file(path: Path | str, *, rgb: bool) -> DecodedImage:
    """As `decode_image`, with what the file says of itself."""
    try:
        # Given the path, Pillow maps some TIFF files, and wrongly if their tag says rotated.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            problem = _stack_problem(image) or _depth_problem(image)
            stored_as = f"{image.format} {image.mode}"
            pixels = None if problem else _decode(image, rgb)
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise UserError(f"{path}: {_reason(path, error)}") from None
    if pixels is None:
        raise UserError(f"{path}: {problem}")
    return DecodedImage(pixels, stored_as)


def resize_image(
    image: UInt8[np.ndarray, "h w c"], image_hw: tuple[int, int]
) -> UInt8[np.ndarray, "oh ow c"]:
    """The image in another size, bilinear and antialiased; itself if it has that size."""
    if image.shape[:2] == image_hw:
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _as_array(pixels.resize((image_hw[1], image_hw[0]), Image.Resampling.BILINEAR))


def stored_hw(path: Path | str) -> tuple[int, int] | None:
    """Rows and columns of an image by its header, as `decode_image` gives it; None without one."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            # Pillow turns TIFF files by their tag; `decode_image` does not.
            tags = getattr(image, "tag_v2", None)
            width, height = image.size if tags is None else (tags[256], tags[257])
    except Exception:  # decoders raise nearly anything for damaged files
        return None
    return int(height), int(width)


class TiffStack:
    """A TIFF file of several pages, read in any order and by one thread at a time.

    It stays open, because to find a page is to go through all those before it.

    Raises:
      UserError: the file cannot be opened as a TIFF.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        try:
            self._image = Image.open(self._file, formats=("TIFF",))
            self.pages: int = getattr(self._image, "n_frames", 1)
        except Exception as error:
            self._file.close()
            raise UserError(f"{path}: {_reason(path, error)}") from None

    def read(self, page: int, *, rgb: bool) -> UInt8[np.ndarray, "h w c"]:
        """One page, as `decode_image` reads a file.

        Raises:
          UserError: it cannot be decoded, or is not of 8 bits a channel.
        """
        try:
            self._image.seek(page)
            problem = _depth_problem(self._image)
            pixels = None if problem else _decode(self._image, rgb)
        except Exception as error:
            raise UserError(f"{self._path}, page {page}: {_reason(self._path, error)}") from None
        if pixels is None:
            raise UserError(f"{self._path}, page {page}: {problem}")
        return _as_array(pixels)

    def close(self) -> None:
        """Closes the file."""
        self._image.close()
        self._file.close()


def _as_array(pixels: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    array = np.array(pixels)
    return array if array.ndim == 3 else array[:, :, None]


def _stack_problem(image: Image.Image) -> str | None:
    """Why an image that could be opened is not one image, or None."""
    frames = getattr(image, "n_frames", 1)
    # MPO is a JPEG photograph with previews after it.
    if frames > 1 and image.format != "MPO":
        return f"a stack of {frames} images; expected one image a file; save the pages separately"
    return None


def _depth_problem(image: Image.Image) -> str | None:
    """Why an image that could be opened is not one of 8 bits a channel, or None."""
    # Pillow opens 16-bit colour as 8-bit RGB; only the raw mode of its tiles tells.
    raw_modes = [part for tile in getattr(image, "tile", []) for part in _texts(tile[3])]
    if image.mode in {"I", "F"} or any(";16" in mode for mode in (image.mode, *raw_modes)):
        return (
            f"16-bit, 32-bit or float pixels (mode {image.mode}); expected 8 bits a channel; scale "
            "the values to 0..255 and save as 8 bit"
        )
    return None


def _texts(arguments: object) -> list[str]:
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    return [part for part in parts if isinstance(part, str)]


def _decode(image: Image.Image, rgb: bool) -> Image.Image:
    orientation = image.getexif().get(0x0112) if image.format == "TIFF" else None
    if not rgb and image.format in {"JPEG", "MPO"}:
        image.draft("L", image.size)  # decodes the luma alone: same pixels, less work
    image.load()
    if orientation in UNDO_TRANSPOSITION:  # Pillow applies the tag of TIFF files, and only these
        image = image.transpose(UNDO_TRANSPOSITION[orientation])
    image.info.pop("transparency", None)
    if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA"}:
        image = image.convert("RGB")  # CMYK, YCbCr and others have no direct way to gray
    mode = "RGB" if rgb else "L"
    return image if image.mode == mode else image.convert(mode)


def _reason(path: Path | str, error: Exception) -> str:
    """What was found in place of an image, and how to mend it."""
    if isinstance(error, FileNotFoundError):
        return "does not exist; expected an image"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty (0 bytes); expected an image; copy it again or remove it"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in PNG, JPEG, TIFF or BMP format; convert it or remove it"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; expected a readable image"
    return f"cannot be decoded ({error}); expected an intact image; copy it again or remove it"
