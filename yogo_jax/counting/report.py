"""The results of one sample, `counts estimate`: tables, `counts.json` and `counts.csv`."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.counting import thresholds
from yogo_jax.counting.compensation import LINES, Line, compensate, read_line
from yogo_jax.counting.estimate import (
    Estimate,
    Roles,
    corrected_evidence,
    detection_limit,
    estimate_counts,
    find_roles,
    raw_evidence,
)
from yogo_jax.counting.files import Sample, count_run, read_counts, read_run_array, reordered
from yogo_jax.counting.intervals import CONFIDENCE, Evidence, Interval
from yogo_jax.counting.matrix import Validation, read_pooled, validation_summary
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, write_atomically, write_json
from yogo_jax.metrics.confusion import name_beside
from yogo_jax.reports.tables import align, number


_COLUMNS = ("estimate", "lower", "upper")
_UNITS = (("parasitemia_percent", "parasitemia, %"), ("parasites_per_ul", "parasites per uL"))


def write_estimate(
    counts: Path,
    *,
    validation: Sequence[Path] | None,
    assume_right: Sequence[str],
    frames: int | None,
    compensation: Path | None,
    line: str | None,
    obj_thresh: float | None,
    min_class_confidence_threshold: float | None,
    limit_cells: Sequence[float] | None,
    class_names: Sequence[str] | None,
    parasite_classes: Sequence[str],
    red_cell_classes: Sequence[str],
    red_cells_per_ul: float,
    output: Path | None,
) -> None:
    """Prints the numbers of one sample, and writes them to a folder if one is given.

    Raises:
      UserError: counts, validation or compensation cannot be used, or do not fit each other.
    """
    if output:
        make_folder(output, "--output")
        if (output / thresholds.SUMMARY).exists():
            raise UserError(
                f"--output {output}: counts.json and counts.csv there are of `infer`, and "
                "would be overwritten: choose another folder"
            )
    pooled = read_pooled(validation) if validation else None
    confidence = min_class_confidence_threshold
    sample, counted_at, recorded = _read_sample(counts, pooled, class_names, obj_thresh, confidence)
    notes = [f"{counts}: {sample.note}."] if sample.note else []
    all_frames = frames or sample.frames
    evidence = None
    if pooled:
        sample = reordered(sample, pooled.class_names)
        threshold_notes = thresholds.compare(recorded, counted_at, pooled.recorded)
        evidence = corrected_evidence(sample, pooled, frames=all_frames, assume_right=assume_right)
        if all_frames is None:
            notes.append(
                "False boxes on background are not subtracted, the number of frames is not known: "
                "give --frames."
            )
        elif not frames and _is_array(counts):
            notes.append(
                f"{all_frames} frames have boxes; if others were looked at too, give all by "
                "--frames."
            )
        if assume_right:
            notes.append(
                f"Assumed, not validated: {', '.join(assume_right)} always found and named right."
            )
        notes += threshold_notes
    fitted = None
    if compensation:
        assert confidence is not None
        fitted = read_line(compensation, confidence)
    roles = find_roles(sample.class_names, parasite_classes, red_cell_classes)
    values = count_values(
        sample,
        roles,
        evidence,
        validation=pooled,
        frames=all_frames,
        red_cells_per_ul=red_cells_per_ul,
        limit_cells=limit_cells,
        notes=notes,
    )
    if fitted:
        _compensate(values, fitted, line or LINES[0], str(compensation))
    print(format_estimate(values))
    if output:
        write_json(output / "counts.json", values)
        write_atomically(output / "counts.csv", results_csv(values))
        print(f"written {output / 'counts.json'} and counts.csv")


def _is_array(counts: Path) -> bool:
    return counts.suffix.lower() == ".npy"


def _read_sample(
    path: Path,
    validation: Validation | None,
    class_names: Sequence[str] | None,
    obj_thresh: float | None,
    min_class_confidence: float | None,
) -> tuple[Sample, thresholds.CountedAt, thresholds.Recorded]:
    """Counts of a file, the thresholds they are counted at, and those that its run recorded."""
    if not _is_array(path):
        sample = read_counts(path)
        recorded = thresholds.recorded_by_run(path, sample.class_names)
        at = thresholds.of_counts(recorded, min_class_confidence=min_class_confidence)
        return sample, at, recorded
    expected = validation.class_names if validation else None
    run = read_run_array(path, class_names, expected=expected)
    recorded = thresholds.recorded_by_run(path, run.class_names)
    objectness, confidence = thresholds.of_array(
        recorded, objectness=obj_thresh, min_class_confidence=min_class_confidence
    )
    sample = count_run(run, objectness_threshold=objectness, min_class_confidence=confidence)
    at = recorded.at._replace(objectness=objectness, min_class_confidence=confidence)
    return sample, at, recorded


def count_values(
    sample: Sample,
    roles: Roles,
    evidence: Evidence | None,
    *,
    validation: Validation | None,
    frames: int | None,
    red_cells_per_ul: float,
    limit_cells: Sequence[float] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Computes raw and corrected counts, parasitemia, parasites per uL and limits of detection.

    Args:
      sample: its classes are those of the validation, if there is one.
      roles: classes of parasites and of red cells.
      evidence: the counts with the errors of the network; None if they are not corrected.
      validation: the validation behind it.
      frames: frames of the sample; None if their number is not known.
      red_cells_per_ul: red cells in a uL of blood.
      limit_cells: red cells to give the limit of detection for; None: those of the sample.
      notes: sentences for the user.

    Returns:
      The content of `counts.json`.

    Raises:
      UserError: no red cell was counted.
    """
    names = sample.class_names
    as_counted = raw_evidence(sample)
    raw = estimate_counts(as_counted, roles)
    corrected = estimate_counts(evidence, roles) if evidence else None
    red_cells = float((corrected or raw).red_cells.estimate)
    limits = [
        _limit(evidence or as_counted, roles, names, cells, red_cells, red_cells_per_ul)
        for cells in limit_cells or [max(round(red_cells), 1)]
    ]
    if not sample.counts[roles.parasites].any():
        notes = [*notes, _nothing_counted(raw, red_cells_per_ul)]
    return {
        "class_names": list(names),
        "parasite_classes": _named(names, roles.parasites),
        "red_cell_classes": _named(names, roles.red_cells),
        "frames": frames,
        "confidence": CONFIDENCE,
        "red_cells_per_ul": red_cells_per_ul,
        "raw_counts": _counts(raw, names),
        "raw": _parasitemia(raw, red_cells_per_ul),
        "corrected_counts": _counts(corrected, names) if corrected else None,
        "corrected_before_cut": (
            dict(zip(names, corrected.linear.tolist(), strict=True)) if corrected else None
        ),
        "corrected": _parasitemia(corrected, red_cells_per_ul) if corrected else None,
        "compensated": None,
        "detection_limit": limits,
        "validation": validation_summary(validation) if validation else None,
        "notes": [*notes],
    }


def _compensate(values: dict[str, Any], line: Line, kind: str, file: str) -> None:
    """Adds the compensated numbers to the content of `counts.json`."""
    counted = values["raw"]["parasites_per_ul"]
    per_ul = compensate(line, kind, (counted["estimate"], counted["lower"], counted["upper"]))
    values["compensated"] = {
        "parasitemia_percent": _plain(per_ul, 100.0 / values["red_cells_per_ul"]),
        "parasites_per_ul": _plain(per_ul),
    }
    fields = line._asdict().items()
    finite = {name: value if np.isfinite(value) else None for name, value in fields}
    values["compensation"] = {"file": file, "line": kind, **finite}
    # Networks tend to miss parasites.
    if line.m > 1 if kind == "counted" else line.m < 1:
        values["notes"].append(
            f"As --line {kind}, m = {line.m:.4g} says that more parasites are counted than there "
            "are: is the file of the other line?"
        )


def _limit(
    evidence: Evidence,
    roles: Roles,
    class_names: Sequence[str],
    cells: float,
    red_cells: float,
    red_cells_per_ul: float,
) -> dict[str, Any]:
    """The limit of detection in so many cells, for a sample that has `red_cells`."""
    # So many cells fill so many frames, at the density of this sample.
    frames_ratio = evidence.frames_ratio * cells / red_cells
    limit = detection_limit(evidence, roles, cells=cells, frames_ratio=frames_ratio)
    needed = limit.parasites[roles.parasites].tolist()
    known = [each if np.isfinite(each) else None for each in needed]
    return {
        "cells": limit.cells,
        "false_boxes": limit.false_boxes,
        "critical": limit.critical,
        "parasites": dict(zip(_named(class_names, roles.parasites), known, strict=True)),
        # The class that is hardest to find decides.
        "per_ul": None if None in known else max(needed) / cells * red_cells_per_ul,
    }


def _nothing_counted(raw: Estimate, red_cells_per_ul: float) -> str:
    # The one-sided upper limit of a Poisson mean for a count of 0: 3.0 at 95 %.
    cells = -math.log(1.0 - CONFIDENCE)
    per_ul = cells / float(raw.red_cells.estimate) * red_cells_per_ul
    return (
        f"No box was called a parasite. By the rule of three at most {cells:.1f} are expected, or "
        f"{per_ul:.4g} per uL as counted (one-sided, 95 %). The intervals above are two-sided, so "
        "they end at 3.69."
    )


def _counts(estimate: Estimate, class_names: Sequence[str]) -> dict[str, Any]:
    rows = {
        name: _plain(Interval(*(values[index] for values in estimate.classes)))
        for index, name in enumerate(class_names)
    }
    return rows | {
        name_beside(class_names, "parasites"): _plain(estimate.parasites),
        name_beside(class_names, "red cells"): _plain(estimate.red_cells),
    }


def _parasitemia(estimate: Estimate, red_cells_per_ul: float) -> dict[str, Any]:
    return {
        "parasitemia_percent": _plain(estimate.parasitemia, 100.0),
        "parasites_per_ul": _plain(estimate.parasitemia, red_cells_per_ul),
    }


def _plain(interval: Interval, factor: float = 1.0) -> dict[str, float | None]:
    """The interval in another unit, for JSON; None for an infinite limit."""
    values = {name: float(value * factor) for name, value in interval._asdict().items()}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _named(class_names: Sequence[str], members: np.ndarray) -> list[str]:
    return [name for name, member in zip(class_names, members, strict=True) if member]


def format_estimate(values: Mapping[str, Any]) -> str:
    """Returns the tables of one sample as text.

    Args:
      values: the content of `counts.json`.
    """
    corrected = values["corrected_counts"]
    header = ["class", "counted", "95 % from", "to"]
    if corrected:
        header += ["true cells", "95 % from", "to"]
    rows = []
    for name, counted in values["raw_counts"].items():
        both = [counted, corrected[name]] if corrected else [counted]
        rows.append([name, *(text for each in both for text in _interval(each))])
    results = [
        [f"{unit}, {title}", *_interval(values[key][field])]
        for key, title in (("raw", "as counted"), ("corrected",) * 2, ("compensated",) * 2)
        for field, unit in _UNITS
        if values[key]
    ]
    lines = [*align(header, rows), "", *align(["", "", "95 % from", "to"], results), ""]
    limits = values["detection_limit"]
    names = list(limits[0]["parasites"])
    rows = [
        [
            number(each["cells"]),
            number(each["false_boxes"]) if corrected else "-",
            str(each["critical"]),
            *map(number, (*each["parasites"].values(), each["per_ul"])),
        ]
        for each in limits
    ]
    lines.append("limit of detection: true parasites needed, if the blood has this class only")
    lines += align(["red cells", "false boxes", "present from", *names, "per uL"], rows)
    return "\n".join([*lines, *values["notes"]])


def results_csv(values: Mapping[str, Any]) -> str:
    """Returns a CSV table with a row for each number: quantity, class, estimate and limits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["quantity", "class", *_COLUMNS])
    for key in ("raw_counts", "corrected_counts"):
        for name, row in (values[key] or {}).items():
            writer.writerow([key, name, *(row[column] for column in _COLUMNS)])
    for key in ("raw", "corrected", "compensated"):
        for unit, row in (values[key] or {}).items():
            writer.writerow([f"{key}_{unit}", "parasites", *(row[column] for column in _COLUMNS)])
    return file.getvalue()


def _interval(row: Mapping[str, float | None]) -> list[str]:
    return [number(row[column]) for column in _COLUMNS]
