"""One inference from its first frame to its last file, and the same again after a kill."""

import csv
import dataclasses
import datetime
import itertools
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.postprocess import detections_of
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, write_json
from yogo_jax.inference.frame_sources import FrameSource, check_distinct_stems
from yogo_jax.inference.journal import JOURNAL_NAME, FrameRecord, Journal, check_same_settings
from yogo_jax.inference.models import Model
from yogo_jax.inference.pipeline import Loaded, ServingSpec, run_frames
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
from yogo_jax.progress import Rate, with_progress


PICTURES, LABELS = "pictures", "labels"
SUMMARY = "summary.json"
OF_ALL_FRAMES = ("counts.csv", "counts.json", "detections.csv", "coco.json", "skipped.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """The outputs that are asked for.

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """The way an inference runs, which does not change its outputs.

    Attributes:
      resume: go on with what an earlier run left in the folder.
      strict: stop at the first frame that cannot be read.
      workers: threads that read, and as many that write.
      bar: a moving progress bar, else plain lines; None for a bar at a terminal alone.
      say: is told what happens.
    """

    resume: bool = False
    strict: bool = False
    workers: int = 2
    bar: bool | None = None
    say: Callable[[str], None] = print


def array_name(title: str) -> str:
    """The name of the instrument's array; never that of another output."""
    taken = {Path(name).stem for name in (*OF_ALL_FRAMES, SUMMARY)}
    return f"{title}_run" if title in taken else title


def make_finish(
    folder: Path,
    wanted: Wanted,
    serving: ServingSpec,
    thresholds: Thresholds,
    running: Running,
) -> Callable[[Loaded, np.ndarray | None], FrameRecord]:
    """A function that finishes a frame: its detections, and the files of this frame.

    The files are there before the frame is in the journal, so that a frame in it is whole. It says
    once if frames are resized: cells of another size may not be found.
    """
    whole = serving.frame_hw or serving.image_hw
    lock = threading.Lock()
    told = False

    def tell_of_resizing(frame_hw: tuple[int, ...]) -> None:
        nonlocal told
        with lock:
            tells = not told and frame_hw not in (whole, serving.image_hw)
            told = told or tells
        if tells:
            running.say(
                f"frames of {frame_hw[0]}x{frame_hw[1]} px are resized to the {whole[0]}x"
                f"{whole[1]} px that the network was made for"
            )

    def finish(loaded: Loaded, outputs: np.ndarray | None) -> FrameRecord:
        if outputs is None or loaded.frame is None or loaded.view is None:
            reason = loaded.error or ""
            if running.strict:
                raise UserError(f"{reason}; without --strict it would be skipped")
            return FrameRecord(loaded.image_id, loaded.name, reason, None)
        tell_of_resizing(loaded.frame.shape[:2])
        found = detections_of(
            outputs,
            thresholds,
            class_names=serving.class_names,
            image_hw=loaded.frame.shape[:2],
            window_xyxy=loaded.view.window_xyxy,
            name=loaded.name,
        )
        if wanted.pictures is not None:
            path = folder / PICTURES / f"{loaded.stem}{wanted.pictures}"
            write_picture(path, loaded.frame, found)
        if wanted.labels:
            path = folder / LABELS / f"{loaded.stem}.txt"
            write_label_file(path, found, with_confidence=wanted.with_confidence)
        return FrameRecord(loaded.image_id, loaded.name, None, found)

    return finish


def write_over_all(
    journal: Journal, folder: Path, wanted: Wanted, serving: ServingSpec, settings: dict[str, Any]
) -> Totals:
    """Writes the files over all frames from the journal, `summary.json` last; gives the totals."""
    names = serving.class_names
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
            writers.append(scope_array(array, totals.boxes, len(names), serving.image_hw))
        if totals.skipped:
            writers.append(skipped_csv(folder / "skipped.csv"))
        adders = [stack.enter_context(writer) for writer in writers]
        for record in journal.records():
            for add in adders:
                add(record)
    if wanted.array:
        write_json(array.with_suffix(".json"), _array_notes(settings, serving))
    if wanted.counts:
        write_json(folder / "counts.json", totals.to_dict())
    write_json(folder / SUMMARY, {"settings": settings, **totals.to_dict()})
    return totals


def _array_notes(settings: dict[str, Any], serving: ServingSpec) -> dict[str, Any]:
    """The notes that the instrument's own software writes beside its array."""
    rows = serving.image_hw[0]
    is_crop = serving.frame_hw is not None and serving.frame_hw[0] != rows
    # The instrument knows no such thing: said only where it acted.
    thresholds = settings["class_thresholds"]
    return {
        **({"class_thresholds": thresholds} if thresholds else {}),
        "run_name": settings["run"],
        "model_name": settings["model_name"],
        "class_names": list(serving.class_names),
        "obj_thresh": settings["obj_thresh"],
        "iou_thresh": settings["iou_thresh"],
        "min_class_confidence_threshold": settings["min_class_confidence_threshold"],
        "vertical_crop_height_px": rows if is_crop else None,
        "write_date": datetime.datetime.now().isoformat(timespec="seconds"),
    }


def infer_frames(
    model: Model,
    source: FrameSource,
    folder: Path,
    *,
    model_name: str,
    thresholds: Thresholds,
    wanted: Wanted,
    running: Running,
) -> dict[str, Any]:
    """Finds objects in all frames, and writes what is wanted; returns the summary.

    Raises:
      UserError: the folder holds something else, a frame does not fit the model, the disk is full.
    """
    if wanted.pictures is not None or wanted.labels:
        check_distinct_stems(source)
    batch_size = model.batch_size_for(source.count)
    settings = _settings(model, source, model_name, batch_size, thresholds, wanted)
    make_folder(folder, "--output")
    earlier = _finished(folder, settings, source.count) if running.resume else None
    if earlier is not None:
        running.say("this run has already ended; there is nothing to do")
        return earlier
    if not (running.resume and (folder / JOURNAL_NAME).exists()):
        _check_unused(folder, settings, wanted)
    finish = make_finish(folder, wanted, model.serving, thresholds, running)
    rate = Rate()
    try:
        with Journal(folder, settings) as journal:
            if journal.count:
                running.say(f"{journal.count} frames were finished before and are not done again")
            skipped = (record.error for record in journal.records() if record.error is not None)
            if running.strict and (error := next(skipped, None)) is not None:
                raise UserError(
                    f"--strict: {error}; it was skipped before: mend it and begin anew, or leave "
                    "out --strict"
                )
            records = run_frames(
                source,
                model.serving,
                model.stream,
                finish,
                start=journal.count,
                batch_size=batch_size,
                workers=running.workers,
            )
            done = journal.count
            # Closed at once where this stops, so that its threads end.
            with closing(records):
                shown = with_progress(records, rate, done=done, total=source.count, bar=running.bar)
                for record in shown:
                    journal.append(record)
            if rate.frames:
                running.say(f"{rate.frames} frames at {rate.per_second:.1f} frames/s")
            totals = write_over_all(journal, folder, wanted, model.serving, settings)
            journal.remove()
    except OSError as error:
        raise UserError(
            f"--output {folder}: {error.strerror or error}; when that is mended, add --resume"
        ) from error
    return {"settings": settings, **totals.to_dict()}


def _settings(
    model: Model,
    source: FrameSource,
    model_name: str,
    batch_size: int,
    thresholds: Thresholds,
    wanted: Wanted,
) -> dict[str, Any]:
    """Everything that the outputs follow from, in plain values."""
    serving = model.serving
    return {
        "run": source.title,
        **source.identity,
        "model_name": model_name,
        "model": model.digest,
        "class_names": list(serving.class_names),
        "image_hw": list(serving.image_hw),
        "frame_hw": None if serving.frame_hw is None else list(serving.frame_hw),
        "precision": model.precision,
        "batch_size": batch_size,
        "obj_thresh": thresholds.objectness,
        "iou_thresh": thresholds.iou,
        "min_class_confidence_threshold": thresholds.min_class_confidence,
        "class_thresholds": list(thresholds.class_thresholds),
        **{f"output {name}": value for name, value in dataclasses.asdict(wanted).items()},
    }


def _finished(folder: Path, settings: dict[str, Any], count: int | None) -> dict[str, Any] | None:
    """The summary of a run that has ended before, for --resume; None if there is work to do.

    An interrupted run goes on with all `count` frames of its source; one that has ended must be of
    as many, because a store may have grown since.
    """
    summary = folder / SUMMARY
    if (folder / JOURNAL_NAME).exists() or not summary.exists():
        return None
    try:
        earlier = json.loads(summary.read_text(encoding="utf-8"))
        check_same_settings(summary, earlier["settings"], settings)
        before = earlier["frames"]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--resume: {summary} cannot be read: it is none of ours") from None
    if count not in (None, before):
        raise UserError(
            f"--resume: {summary} is of a run that ended with {before} frames, now there are "
            f"{count}: choose another --output for all of them"
        )
    return earlier


def _check_unused(folder: Path, settings: dict[str, Any], wanted: Wanted) -> None:
    """Refuses a folder that holds outputs, or a run that was interrupted."""
    if (folder / JOURNAL_NAME).exists():
        raise UserError(
            f"--output {folder} holds a run that was interrupted: add --resume to go on with it, "
            f"or choose another folder (to begin anew in this one, delete {JOURNAL_NAME})"
        )
    array = array_name(settings["run"])
    names = [SUMMARY, *OF_ALL_FRAMES, f"{array}.npy", f"{array}.json"]
    names += [PICTURES] if wanted.pictures is not None else []
    names += [LABELS] if wanted.labels else []
    if there := [name for name in names if (folder / name).exists()]:
        raise UserError(
            f"--output {folder} already holds {', '.join(there)}: choose another folder, or delete "
            "them first"
        )


def format_summary(summary: dict[str, Any], folder: Path, most_named: int = 10) -> str:
    """The end of a run for the terminal: counts, what was skipped, where things are."""
    frames = max(summary["frames"], 1)
    lines = [
        f"{summary['frames']} frame{'s' * (summary['frames'] != 1)}, {summary['skipped']} skipped, "
        f"{summary['total']} boxes"
    ]
    width = max(map(len, summary["by_class"]), default=0)
    lines += [
        f"  {name:<{width}}{count:>10}{count / frames:>12.2f} a frame"
        for name, count in summary["by_class"].items()
    ]
    if summary["skipped"]:
        path = folder / "skipped.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(itertools.islice(csv.DictReader(file), most_named))
        lines += ["skipped:", *(f"  {row['reason']}" for row in rows)]
        if summary["skipped"] > len(rows):
            lines.append(f"  and {summary['skipped'] - len(rows)} more, see {path}")
    written = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    lines.append(f"written to {folder}: {', '.join(written)}")
    return "\n".join(lines)
