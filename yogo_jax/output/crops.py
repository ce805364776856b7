"""Small pictures of one place of a frame, and of frames side by side."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from yogo_jax.output.draw import draw_boxes


# What is shown around a box: so many times its size, but at least so many pixels.
SURROUNDINGS = 2.5
LEAST_SIDE_PX = 64
CROP_PX = 360
GAP_PX = 6


def shrink(image: UInt8[np.ndarray, "h w c"], width: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The frame at most `width` pixels wide."""
    rows, columns, channels = image.shape
    if columns <= width:
        return image
    pixels = Image.fromarray(image[..., 0] if channels == 1 else image)
    size = (width, max(1, round(rows * width / columns)))
    return np.asarray(pixels.resize(size, Image.Resampling.BOX)).reshape(size[1], size[0], channels)


def draw_crop(
    image: UInt8[np.ndarray, "h w c"],
    around_xyxy: Float[np.ndarray, " 4"],
    boxes_xyxy: Float[np.ndarray, "n 4"],
) -> Image.Image:
    """A square part of a frame around one box, at most CROP_PX wide, with boxes as dashed lines.

    Names are left to the caption: on so small a picture they would hide what is to be judged.

    Args:
      image: the frame, gray or RGB.
      around_xyxy: the box in the middle, in [0, 1]; at the edge of the frame it is not.
      boxes_xyxy: boxes to draw, in [0, 1] of the frame, each in a colour of its own.
    """
    size = np.array([image.shape[1], image.shape[0]])
    low, high = around_xyxy[:2] * size, around_xyxy[2:] * size
    side = int(np.ceil(max(SURROUNDINGS * (high - low).max(), LEAST_SIDE_PX)))
    sides = np.minimum(side, size)
    start = np.clip(np.rint((low + high - sides) / 2), 0, size - sides).astype(int)
    x, y = start.tolist()
    # Drawn at twice its size, so half of it is enough.
    part = shrink(image[y : y + sides[1], x : x + sides[0]], CROP_PX // 2)
    scale, shift = np.tile(size / sides, 2), np.tile(start / sides, 2)
    return draw_boxes(
        part,
        np.zeros((0, 4)),
        np.zeros(0, int),
        [],
        label_boxes_xyxy=boxes_xyxy * scale.reshape(1, 4) - shift.reshape(1, 4),
        label_class_ids=np.arange(len(boxes_xyxy)),
    )


def side_by_side(images: Sequence[UInt8[np.ndarray, "_h _w _c"]], *, height: int) -> Image.Image:
    """Frames next to each other in one RGB picture, all of one height."""
    pictures = []
    for image in images:
        pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB")
        width = max(1, round(pixels.width * height / pixels.height))
        pictures.append(pixels.resize((width, height), Image.Resampling.BILINEAR))
    total = sum(picture.width for picture in pictures) + GAP_PX * (len(pictures) - 1)
    sheet = Image.new("RGB", (total, height), "white")
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + GAP_PX
    return sheet
