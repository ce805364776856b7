"""Pictures of detections: class-coloured boxes on a frame, with the true boxes if known."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from yogo_jax.errors import UserError


# What is shown around a box: so many times its size, but at least so many pixels.
SURROUNDINGS = 2.5
LEAST_SIDE_PX = 64
CROP_PX = 360
GAP_PX = 6


def as_frame(image: np.ndarray) -> UInt8[np.ndarray, "h w c"]:
    """The image with an axis of 1 or 3 channels, which a gray one may lack.

    Raises:
      UserError: it is no gray or RGB image of 8 bits.
    """
    frame = image[:, :, None] if image.ndim == 2 else image
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (1, 3) or not frame.size:
        raise UserError(
            "expected an image of uint8, of shape [rows columns], [rows columns 1] or [rows "
            f"columns 3], found {image.dtype} of shape {image.shape}"
        )
    return frame


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


# Okabe and Ito's colours, told apart with any common colour blindness; without their black, which
# would be lost in the cells. More classes than colours take the colours again: names are drawn too.
PALETTE = (
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Frames with a longer side under this many pixels are drawn at twice their size.
SMALL_FRAME_PX = 640
FONT_PX = 11
DASH_PX = 4  # of the thin line in two colours, seen on bright and on dark ground
# What became of a box, told apart by line and by colour: (colour, width, length of a dash or None).
FOUND, MISNAMED, MISSED, EXTRA = (
    (PALETTE[0], 2, None),
    (PALETTE[2], 4, None),
    (PALETTE[1], 3, 10),
    (PALETTE[3], 3, 3),
)
OUTCOMES_LEGEND = (
    "Green line: found and named right. Thick blue line: found, but named wrong. Long red "
    "dashes: a true box that was missed. Pink dots: extra, a detection without a true box. Thin "
    "black and white dashes: the true box of what was found."
)


def draw_boxes(
    image: UInt8[np.ndarray, "h w c"],
    boxes_xyxy: Float[np.ndarray, "n 4"],
    class_ids: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    *,
    scores: Float[np.ndarray, " n"] | None = None,
    label_boxes_xyxy: Float[np.ndarray, "m 4"] | None = None,
    label_class_ids: Int[np.ndarray, " m"] | None = None,
) -> Image.Image:
    """An RGB picture of one image with its predictions, and its true boxes as dashed lines.

    Small frames are drawn at twice their size, so that the text can be read.

    Args:
      image: gray (c = 1) or RGB (c = 3).
      boxes_xyxy: predicted boxes in [0, 1]; what lies outside the image is cut off.
      class_ids: index into `class_names` of each prediction; sets colour and text.
      class_names: names in the order of the class ids.
      scores: printed after the name where given.
      label_boxes_xyxy: true boxes in [0, 1].
      label_class_ids: classes of the true boxes, which set their colour (else they are white).

    Raises:
      ValueError: the image is neither gray nor RGB.
    """
    picture = _as_rgb(image)
    drawing = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_PX)
    boxes_px = _to_pixels(boxes_xyxy, picture.size)
    colours = _colours(class_ids)
    for box, colour in zip(boxes_px, colours, strict=True):
        drawing.rectangle(box, outline=colour, width=2)
    if label_boxes_xyxy is not None:
        labels_px = _to_pixels(label_boxes_xyxy, picture.size)
        label_colours = [WHITE] * len(labels_px)
        if label_class_ids is not None:
            label_colours = _colours(label_class_ids)
        for box, colour in zip(labels_px, label_colours, strict=True):
            _draw_line(drawing, box, (colour, 1, DASH_PX), gap=BLACK)
    # Text comes last, and that of the first prediction, the best one, at the very last: where
    # cells overlap it is what must stay readable.
    for i in reversed(range(len(boxes_px))):
        text = class_names[class_ids[i]] + ("" if scores is None else f" {scores[i]:.2f}")
        _draw_text(drawing, boxes_px[i], text, colours[i], font, picture.size)
    return picture


def draw_outcomes(
    image: UInt8[np.ndarray, "h w c"],
    boxes_xyxy: Float[np.ndarray, "n 4"],
    class_ids: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    label_class_ids: Int[np.ndarray, " m"],
    class_names: Sequence[str],
    *,
    pairs: Int[np.ndarray, "pairs 2"],
) -> Image.Image:
    """An RGB picture of one image that shows what was found, missed, extra and named wrong.

    Lines are those of `OUTCOMES_LEGEND`. Only what went wrong is named in text.

    Args:
      image: gray (c = 1) or RGB (c = 3).
      boxes_xyxy: predicted boxes in [0, 1].
      class_ids: index into `class_names` of each prediction.
      scores: of each prediction.
      label_boxes_xyxy: true boxes in [0, 1].
      label_class_ids: their classes.
      class_names: names in the order of the class ids.
      pairs: (index of a prediction, index of its true box); the others are extra and missed.

    Raises:
      ValueError: the image is neither gray nor RGB.
    """
    picture = _as_rgb(image)
    drawing = ImageDraw.Draw(picture)
    boxes_px = _to_pixels(boxes_xyxy, picture.size)
    labels_px = _to_pixels(label_boxes_xyxy, picture.size)
    true_of: dict[int, int] = dict(pairs.tolist())
    names = [class_names[i] for i in class_ids.tolist()]
    true_names = [class_names[i] for i in label_class_ids.tolist()]
    found_labels = set(true_of.values())
    outcomes: list[tuple[tuple[int, int, int, int], _Line, str]] = []
    for i, box in enumerate(boxes_px):
        if i not in true_of:
            outcomes.append((box, EXTRA, f"{names[i]} {scores[i]:.2f}"))
        elif class_ids[i] == label_class_ids[true_of[i]]:
            outcomes.append((box, FOUND, ""))
        else:
            outcomes.append((box, MISNAMED, f"{names[i]}, is {true_names[true_of[i]]}"))
    for j, box in enumerate(labels_px):
        if j not in found_labels:
            outcomes.append((box, MISSED, true_names[j]))
    # What went wrong lies above what is right.
    outcomes.sort(key=lambda outcome: outcome[1] is not FOUND)
    for box, line, _ in outcomes:
        _draw_line(drawing, box, line)
    for j in sorted(found_labels):
        _draw_line(drawing, labels_px[j], (WHITE, 1, DASH_PX), gap=BLACK)
    font = ImageFont.load_default(FONT_PX)
    for box, (colour, _, _), text in outcomes:
        if text:
            _draw_text(drawing, box, text, colour, font, picture.size)
    return picture


def _as_rgb(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """The image in RGB, at twice its size if it is small."""
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"an image is gray (1 channel) or RGB (3), got {channels} channels")
    picture = Image.fromarray(image[..., 0] if channels == 1 else image).convert("RGB")
    if max(picture.size) >= SMALL_FRAME_PX:
        return picture
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BILINEAR)


def _to_pixels(
    boxes_xyxy: Float[np.ndarray, "n 4"], size: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Corners in pixels that lie on a picture of this (width, height), in order for Pillow."""
    width, height = size
    corners = np.rint(boxes_xyxy * np.array([width, height, width, height]))
    corners = np.clip(corners, 0, np.array([width, height, width, height]) - 1).astype(int)
    # A box turned inside out has no area to show; Pillow would raise on it.
    corners[:, 2:] = np.maximum(corners[:, :2], corners[:, 2:])
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners.tolist()]


_Line = tuple[tuple[int, int, int], int, int | None]


def _draw_line(
    drawing: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    line: _Line,
    *,
    gap: tuple[int, int, int] | None = None,
) -> None:
    """The outline of a box inside its corners, whole or in dashes; `gap` colours those between."""
    colour, width, dash_px = line
    if dash_px is None:
        drawing.rectangle(box, outline=colour, width=width)
        return
    x1, y1, x2, y2 = box
    thick, colours = width - 1, (colour, gap)
    for i, start in enumerate(range(x1, x2 + 1, dash_px)):
        end = min(start + dash_px - 1, x2)
        if (fill := colours[i % 2]) is not None:
            drawing.rectangle((start, y1, end, min(y1 + thick, y2)), fill=fill)
            drawing.rectangle((start, max(y2 - thick, y1), end, y2), fill=fill)
    for i, start in enumerate(range(y1, y2 + 1, dash_px)):
        end = min(start + dash_px - 1, y2)
        if (fill := colours[i % 2]) is not None:
            drawing.rectangle((x1, start, min(x1 + thick, x2), end), fill=fill)
            drawing.rectangle((max(x2 - thick, x1), start, x2, end), fill=fill)


def _draw_text(
    drawing: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """The text on a plate of the colour: above the box, else below it, else inside its top."""
    left, top, right, bottom = drawing.textbbox((0, 0), text, font=font)
    plate_width, plate_height = int(right - left) + 4, int(bottom - top) + 4
    x = max(0, min(box[0], size[0] - plate_width))
    y = box[1] - plate_height
    if y < 0:
        below = box[3] + 1
        y = below if below + plate_height <= size[1] else box[1]
    drawing.rectangle((x, y, x + plate_width - 1, y + plate_height - 1), fill=colour)
    drawing.text((x + 2 - left, y + 2 - top), text, fill=_text_colour(colour), font=font)


def _colours(class_ids: Int[np.ndarray, " n"]) -> list[tuple[int, int, int]]:
    return [PALETTE[class_id % len(PALETTE)] for class_id in class_ids.tolist()]


def _text_colour(plate: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is read more easily on the plate (ITU-R BT.601 luma)."""
    red, green, blue = plate
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else WHITE
