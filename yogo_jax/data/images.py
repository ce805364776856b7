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

    Pixels stay as they are stored, because labels are drawn on them: an EXIF orientation is not
    applied, and transparency is dropped. Colour becomes gray as the luma of ITU-R BT.601, for a
    JPEG its stored luma. Resizing is bilinear, antialiased.

    Raises:
      UserError: if the file is missing, undecodable, a stack, or not of 8 bits a channel.
    """
    pixels = decode_image(path, rgb=rgb).pixels
    if pixels.size != (image_hw[1], image_hw[0]):
        pixels = pixels.resize((image_hw[1], image_hw[0]), Image.Resampling.BILINEAR)
    array = np.array(pixels)
    return array if rgb else array[:, :, None]


class DecodedImage(NamedTuple):
    """Gray or RGB pixels in the size of the file, and how the file stores them."""

    pixels: Image.Image
    stored_as: str  # such as "PNG L" or "JPEG RGB": format, and Pillow's name of the pixels


def decode_image(path: Path | str, *, rgb: bool) -> DecodedImage:
    """As `read_image`, in the size that the file has."""
    try:
        # Given the path, Pillow maps some TIFF files, and wrongly if their tag says rotated.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            problem = _problem(image)
            stored_as = f"{image.format} {image.mode}"
            pixels = None if problem else _decode(image, rgb)
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise UserError(f"{path}: {_reason(path, error)}") from None
    if pixels is None:
        raise UserError(f"{path}: {problem}")
    return DecodedImage(pixels, stored_as)


def _problem(image: Image.Image) -> str | None:
    """Why an image that could be opened is not one 8-bit image, or None."""
    frames = getattr(image, "n_frames", 1)
    # MPO is a JPEG photograph with previews after it.
    if frames > 1 and image.format != "MPO":
        return f"a stack of {frames} images; expected one image a file; save the pages separately"
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
