"""Files over all frames, written record by record: tables, COCO JSON, the instrument's array.

Each writer is a context manager that gives a function to call with every record in order. Files
have another name until they are whole.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.counting.files import counts_header
from yogo_jax.detector.detections import Detections
from yogo_jax.files import reserve_space, whole_file
from yogo_jax.inference.journal import FrameRecord


PICTURE_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
# Least of the work of a PNG is enough: boxes on a frame hardly get smaller with more.
_PNG_COMPRESSION = 1
# A box of no size is no label; six decimals are written.
_SMALLEST_SIDE = 1e-6


def write_picture(path: Path, frame: UInt8[np.ndarray, "h w c"], found: Detections) -> None:
    """Writes the whole frame with its detections, see `Detections.draw`.

    Args:
      path: with a suffix of `PICTURE_FORMATS`.
      frame: as it was read.
      found: in that frame.
    """
    image_format = PICTURE_FORMATS[path.suffix]
    options = {"compress_level": _PNG_COMPRESSION} if image_format == "PNG" else {}
    with whole_file(path) as temporary:
        Image.fromarray(found.draw(frame)).save(temporary, format=image_format, **options)


def write_label_file(path: Path, found: Detections, *, with_confidence: bool) -> None:
    """Writes a YOLO label file: class id and box of each detection, best first.

    Boxes are cxcywh as fractions of the whole frame, cut at its edges as labels must be. An empty
    file is a frame without detections.

    Args:
      path: of the file.
      found: in the frame.
      with_confidence: a last column, objectness times the probability of the class.
    """
    lines = []
    boxes = found.boxes_in_image_xyxy.astype(np.float64).clip(0, 1)
    for box, class_id, score in zip(boxes, found.class_ids, found.scores, strict=True):
        (x1, y1), (x2, y2) = box[:2], box[2:]
        sizes = [max(side, _SMALLEST_SIDE) for side in (x2 - x1, y2 - y1)]
        values = [(x1 + x2) / 2, (y1 + y2) / 2, *sizes]
        values += [score] if with_confidence else []
        lines.append(f"{class_id} " + " ".join(f"{value:.6f}" for value in values) + "\n")
    with whole_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


Add = Callable[[FrameRecord], None]

# Of the instrument's array, before the class probabilities.
ARRAY_ROWS = ("image id", "x1", "y1", "x2", "y2", "objectness", "class", "its probability")


class Totals:
    """Counts over all records, in memory that does not grow with them."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.frames = 0
        self.skipped = 0
        self.by_class = np.zeros(len(self.class_names), np.int64)

    def add(self, record: FrameRecord) -> None:
        """Counts one more record."""
        if record.detections is None:
            self.skipped += 1
            return
        self.frames += 1
        self.by_class += list(record.detections.counts().values())

    @property
    def boxes(self) -> int:
        """All detections."""
        return int(self.by_class.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "frames": self.frames,
            "skipped": self.skipped,
            "total": self.boxes,
            "by_class": dict(zip(self.class_names, self.by_class.tolist(), strict=True)),
        }


@contextmanager
def _table(path: Path, header: Sequence[str]) -> Iterator[Callable[[Sequence[Any]], object]]:
    """A CSV file; gives the function that writes a row."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer.writerow


@contextmanager
def counts_csv(path: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """Detections of each class in each frame; of frames that were skipped the fields are empty."""
    with _table(path, counts_header(class_names)) as write_row:

        def add(record: FrameRecord) -> None:
            counts: list[Any] = [""] * (len(class_names) + 1)
            if record.detections is not None:
                counts = [*record.detections.counts().values(), len(record.detections)]
            write_row([record.image_id, record.name, *counts])

        yield add


@contextmanager
def detections_csv(path: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """One row a detection; corners in px of the frame as it was read, as the network gives them."""
    corners = ("x1_px", "y1_px", "x2_px", "y2_px")
    head = ["image_id", "image", *corners, "objectness", "class_id", "class", "confidence"]
    with _table(path, [*head, *(f"p_{name}" for name in class_names)]) as write_row:

        def add(record: FrameRecord) -> None:
            if (found := record.detections) is None:
                return
            corners_px, scores = found.boxes_xyxy_px, found.scores
            for row, class_id in enumerate(found.class_ids.tolist()):
                write_row(
                    [
                        record.image_id,
                        record.name,
                        *map(str, corners_px[row]),
                        str(found.objectness[row]),
                        class_id,
                        class_names[class_id],
                        str(scores[row]),
                        *map(str, found.class_probs[row]),
                    ]
                )

        yield add


@contextmanager
def coco_json(path: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """A COCO data set whose annotations have a score; boxes are cut at the edges of the frame.

    Images and annotations are two lists, so the latter wait in a file of their own.
    """
    number = 0
    first = True
    annotations_path = path.with_name(f".{path.name}.annotations.tmp")
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        annotations_path.open("w+", encoding="utf-8") as annotations,
    ):
        file.write('{"images": [')

        def add(record: FrameRecord) -> None:
            nonlocal number, first
            if (found := record.detections) is None:
                return
            rows, columns = found.image_hw
            image = {
                "id": record.image_id,
                "file_name": record.name,
                "width": columns,
                "height": rows,
            }
            file.write(("" if first else ",") + "\n" + json.dumps(image))
            first = False
            for annotation in found.to_coco(record.image_id):
                number += 1  # from 1 on: to some readers, 0 is no annotation
                text = json.dumps({"id": number, **annotation})
                annotations.write(("" if number == 1 else ",") + "\n" + text)

        yield add
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        for line in annotations:
            file.write(line)
        categories = [{"id": index, "name": name} for index, name in enumerate(class_names)]
        file.write(f'\n],\n"categories": {json.dumps(categories)}\n}}\n')
    annotations_path.unlink()


@contextmanager
def scope_array(path: Path, boxes: int, classes: int, image_hw: tuple[int, int]) -> Iterator[Add]:
    """The instrument's array, float32 [8 + classes, boxes], a column a detection.

    Rows are `ARRAY_ROWS`, then all class probabilities; corners are in px of what the network was
    given, which is the crop where there is one.

    Args:
      path: of the .npy, which is mapped and not held in memory.
      boxes: detections of all records together.
      classes: number of classes.
      image_hw: what the network was given.
    """
    rows, columns = image_hw
    shape = (len(ARRAY_ROWS) + classes, boxes)
    start = 0
    with whole_file(path) as temporary:
        if boxes == 0:  # nothing cannot be mapped
            with temporary.open("wb") as file:
                np.save(file, np.zeros(shape, np.float32))
            yield lambda record: None
            return
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        reserve_space(temporary)

        def add(record: FrameRecord) -> None:
            nonlocal start
            if (found := record.detections) is None:
                return
            part = array[:, start : start + len(found.objectness)]
            part[0] = record.image_id
            part[1:5] = found.boxes_xyxy.T * np.asarray(
                (columns, rows, columns, rows), np.float32
            ).reshape(4, 1)
            part[5] = found.objectness
            part[6] = found.class_ids
            part[7] = found.class_confidences
            part[8:] = found.class_probs.T
            start += part.shape[1]

        yield add
        array.flush()


@contextmanager
def skipped_csv(path: Path) -> Iterator[Add]:
    """Frames that could not be read, and why."""
    with _table(path, ["image_id", "image", "reason"]) as write_row:

        def add(record: FrameRecord) -> None:
            if record.error is not None:
                write_row([record.image_id, record.name, record.error])

        yield add
