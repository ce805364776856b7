"""Files of one frame: its picture with boxes, and its label file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from yogo_jax.output.draw import draw_boxes
from yogo_jax.output.files import whole_file
from yogo_jax.output.journal import FrameRecord


PICTURE_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
# Least of the work of a PNG is enough: boxes on a frame hardly get smaller with more.
_PNG_COMPRESSION = 1
# A box of no size is no label; six decimals are written.
_SMALLEST_SIDE = 1e-6
_WHOLE_FRAME = (0.0, 0.0, 1.0, 1.0)


def write_picture(
    path: Path,
    frame: UInt8[np.ndarray, "h w c"],
    record: FrameRecord,
    class_names: Sequence[str],
) -> None:
    """The whole frame with its detections; a dashed line is around the part that was looked at.

    Args:
      path: with a suffix of `PICTURE_FORMATS`.
      frame: as it was read.
      record: of that frame.
      class_names: in the order of the class ids.
    """
    window = None
    if record.window_xyxy != _WHOLE_FRAME:
        window = np.asarray([record.window_xyxy], np.float32)
    picture = draw_boxes(
        frame,
        record.boxes_in_frame(),
        record.found.class_ids,
        class_names,
        scores=record.found.scores,
        label_boxes_xyxy=window,
    )
    image_format = PICTURE_FORMATS[path.suffix]
    options = {"compress_level": _PNG_COMPRESSION} if image_format == "PNG" else {}
    with whole_file(path) as temporary:
        picture.save(temporary, format=image_format, **options)


def write_label_file(path: Path, record: FrameRecord, *, with_confidence: bool) -> None:
    """A YOLO label file: class id and box of each detection, best first.

    Boxes are cxcywh as fractions of the whole frame, cut at its edges as labels must be. An empty
    file is a frame without detections.

    Args:
      path: of the file.
      record: of the frame.
      with_confidence: a last column, objectness times the probability of the class.
    """
    lines = []
    boxes = record.boxes_in_frame().astype(np.float64).clip(0, 1)
    found = record.found
    for box, class_id, score in zip(boxes, found.class_ids, found.scores, strict=True):
        (x1, y1), (x2, y2) = box[:2], box[2:]
        sizes = [max(side, _SMALLEST_SIDE) for side in (x2 - x1, y2 - y1)]
        values = [(x1 + x2) / 2, (y1 + y2) / 2, *sizes]
        values += [score] if with_confidence else []
        lines.append(f"{class_id} " + " ".join(f"{value:.6f}" for value in values) + "\n")
    with whole_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
