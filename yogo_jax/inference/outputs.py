"""What an inference leaves: files of each frame, and files over all of them."""

import dataclasses
import datetime
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.detector.found import Thresholds, check_numbers, on_host, select_from
from yogo_jax.errors import UserError
from yogo_jax.files import write_json
from yogo_jax.inference.journal import FrameRecord, Journal, skipped
from yogo_jax.inference.pipeline import Loaded
from yogo_jax.inference.serving import Served
from yogo_jax.inference.writers import (
    Totals,
    coco_json,
    counts_csv,
    detections_csv,
    scope_array,
    skipped_csv,
    write_label_file,
    write_picture,
)


PICTURES, LABELS = "pictures", "labels"
SUMMARY = "summary.json"
OF_ALL_FRAMES = ("counts.csv", "counts.json", "detections.csv", "coco.json", "skipped.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which outputs are asked for.

    Attributes:
      pictures: suffix of pictures with boxes; None is no pictures.
      labels: a YOLO label file of each frame.
      with_confidence: label files have a last column, the score.
      array: the instrument's array.
      csv: a table of all detections.
      coco: COCO JSON.
      counts: a table of counts, and their totals.
    """

    pictures: str | None = None
    labels: bool = False
    with_confidence: bool = False
    array: bool = False
    csv: bool = False
    coco: bool = False
    counts: bool = False

    @property
    def of_each_frame(self) -> bool:
        """Whether frames have files of their own."""
        return self.pictures is not None or self.labels


def array_name(title: str) -> str:
    """What the instrument's array is called; never like another output."""
    taken = {Path(name).stem for name in (*OF_ALL_FRAMES, SUMMARY)}
    return f"{title}_run" if title in taken else title


def make_finish(
    folder: Path, wanted: Wanted, served: Served, thresholds: Thresholds, *, strict: bool
) -> Callable[[Loaded, np.ndarray | None], FrameRecord]:
    """What is done with a frame and its outputs: detections, and the files of this frame.

    The files are there before the frame is in the journal, so that a frame in it is whole.
    """

    def finish(loaded: Loaded, outputs: np.ndarray | None) -> FrameRecord:
        if outputs is None or loaded.frame is None or loaded.view is None:
            reason = loaded.error or ""
            if strict:
                raise UserError(f"{reason}; without --strict it would be skipped")
            return skipped(loaded.image_id, loaded.name, reason, len(served.class_names))
        detections = select_from(outputs, thresholds)
        check_numbers(int(detections.unusable), loaded.name)
        record = FrameRecord(
            loaded.image_id,
            loaded.name,
            None,
            loaded.frame.shape[:2],
            loaded.view.window_xyxy,
            on_host(detections),
        )
        if wanted.pictures is not None:
            path = folder / PICTURES / f"{loaded.stem}{wanted.pictures}"
            write_picture(path, loaded.frame, record, served.class_names)
        if wanted.labels:
            path = folder / LABELS / f"{loaded.stem}.txt"
            write_label_file(path, record, with_confidence=wanted.with_confidence)
        return record

    return finish


def write_over_all(
    journal: Journal, folder: Path, wanted: Wanted, served: Served, settings: dict[str, Any]
) -> Totals:
    """Writes the files over all frames from the journal, and `summary.json` last.

    Args:
      journal: of all frames.
      folder: of the outputs.
      wanted: which of them.
      served: the model.
      settings: of the run, which go into the summary.

    Returns:
      The totals.
    """
    names = served.class_names
    totals = Totals(names)
    for record in journal.records():
        totals.add(record)
    array = folder / f"{array_name(settings['run'])}.npy"
    with ExitStack() as stack:
        writers = []
        if wanted.counts:
            writers.append(counts_csv(folder / "counts.csv", names))
        if wanted.csv:
            writers.append(detections_csv(folder / "detections.csv", names))
        if wanted.coco:
            writers.append(coco_json(folder / "coco.json", names))
        if wanted.array:
            writers.append(scope_array(array, totals.boxes, len(names), served.image_hw))
        if totals.skipped:
            writers.append(skipped_csv(folder / "skipped.csv"))
        adders = [stack.enter_context(writer) for writer in writers]
        for record in journal.records():
            for add in adders:
                add(record)
    if wanted.array:
        write_json(array.with_suffix(".json"), _array_notes(settings, served))
    if wanted.counts:
        write_json(folder / "counts.json", totals.to_dict())
    write_json(folder / SUMMARY, {"settings": settings, **totals.to_dict()})
    return totals


def _array_notes(settings: dict[str, Any], served: Served) -> dict[str, Any]:
    """What the instrument's own software writes beside its array."""
    rows = served.image_hw[0]
    is_crop = served.frame_hw is not None and served.frame_hw[0] != rows
    # The instrument knows no such thing: said only where it acted.
    scores = settings["score_thresholds"]
    return {
        **({"score_thresholds": scores} if scores else {}),
        "run_name": settings["run"],
        "model_name": settings["model_name"],
        "class_names": list(served.class_names),
        "obj_thresh": settings["obj_thresh"],
        "iou_thresh": settings["iou_thresh"],
        "min_class_confidence_threshold": settings["min_class_confidence_threshold"],
        "vertical_crop_height_px": rows if is_crop else None,
        "write_date": datetime.datetime.now().isoformat(timespec="seconds"),
    }
