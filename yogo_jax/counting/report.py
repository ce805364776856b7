"""The results of one sample as plain values for `counts.json`, and as tables and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from yogo_jax.counting.compensation import Compensated
from yogo_jax.counting.estimate import (
    CONFIDENCE,
    Estimate,
    Roles,
    as_plain,
    estimate_counts,
    raw_evidence,
    rule_of_three,
    scaled,
)
from yogo_jax.counting.files import Sample
from yogo_jax.counting.intervals import Evidence, Interval
from yogo_jax.counting.limits import detection_limit
from yogo_jax.counting.matrix import Validation, validation_summary
from yogo_jax.metrics.confusion import name_beside
from yogo_jax.reports.tables import align


Row = tuple[str, Mapping[str, float | None]]
_COLUMNS = ("estimate", "lower", "upper")


class Inputs(NamedTuple):
    """Everything that an estimate needs; `sample` has the classes of `validation`, if given.

    `evidence` and `validation` are None if the counts are not corrected. `frames` is the number of
    frames of the sample, None if it is not known. The limit of detection is given for each number
    of red cells in `limit_cells`; without any, for those of the sample.
    """

    sample: Sample
    roles: Roles
    evidence: Evidence | None
    validation: Validation | None
    frames: int | None
    red_cells_per_ul: float
    limit_cells: Sequence[float]
    notes: Sequence[str]


def count_values(inputs: Inputs) -> dict[str, Any]:
    """Computes raw and corrected counts, parasitemia, parasites per uL and limits of detection.

    Raises:
      UserError: no red cell was counted.
    """
    sample, roles = inputs.sample, inputs.roles
    raw = estimate_counts(raw_evidence(sample), roles)
    corrected = estimate_counts(inputs.evidence, roles) if inputs.evidence else None
    best = corrected or raw
    notes = list(inputs.notes)
    if not sample.counts[roles.parasites].any():
        notes.append(_nothing_counted(raw, inputs.red_cells_per_ul))
    return {
        "class_names": list(sample.class_names),
        "parasite_classes": _named(sample, roles.parasites),
        "red_cell_classes": _named(sample, roles.red_cells),
        "frames": inputs.frames,
        "confidence": CONFIDENCE,
        "red_cells_per_ul": inputs.red_cells_per_ul,
        "raw_counts": _counts(raw, sample),
        "raw": _parasitemia(raw, inputs.red_cells_per_ul),
        "corrected_counts": _counts(corrected, sample) if corrected else None,
        "corrected_before_cut": (
            dict(zip(sample.class_names, corrected.linear.tolist(), strict=True))
            if corrected
            else None
        ),
        "corrected": _parasitemia(corrected, inputs.red_cells_per_ul) if corrected else None,
        "compensated": None,
        "detection_limit": _limits(inputs, float(best.red_cells.estimate)),
        "validation": validation_summary(inputs.validation) if inputs.validation else None,
        "notes": notes,
    }


def compensated_values(found: Compensated, red_cells_per_ul: float) -> dict[str, Any]:
    """Returns the `compensated` part of `counts.json`."""
    per_ul = Interval(*(np.asarray(value) for value in found))
    return {
        "parasitemia_percent": as_plain(scaled(per_ul, 100.0 / red_cells_per_ul)),
        "parasites_per_ul": as_plain(per_ul),
    }


def _limits(inputs: Inputs, red_cells: float) -> list[dict[str, Any]]:
    evidence = inputs.evidence or raw_evidence(inputs.sample)
    values = []
    for cells in inputs.limit_cells or [max(round(red_cells), 1)]:
        limit = detection_limit(
            evidence,
            inputs.roles,
            cells=cells,
            # So many cells fill so many frames, at the density of this sample.
            frames_ratio=evidence.frames_ratio * cells / red_cells,
        )
        needed = limit.parasites[inputs.roles.parasites]
        finite = needed[np.isfinite(needed)]
        values.append(
            {
                "cells": limit.cells,
                "false_boxes": limit.false_boxes,
                "critical": limit.critical,
                "parasites": {
                    name: float(number) if np.isfinite(number) else None
                    for name, number in zip(
                        _named(inputs.sample, inputs.roles.parasites), needed, strict=True
                    )
                },
                # The class that is hardest to find decides.
                "per_ul": float(finite.max()) / cells * inputs.red_cells_per_ul
                if len(finite) == len(needed)
                else None,
            }
        )
    return values


def _nothing_counted(raw: Estimate, red_cells_per_ul: float) -> str:
    cells = rule_of_three()
    per_ul = cells / float(raw.red_cells.estimate) * red_cells_per_ul
    return (
        f"No box was called a parasite. By the rule of three at most {cells:.1f} are expected, or "
        f"{per_ul:.4g} per uL as counted (one-sided, 95 %). The intervals above are two-sided, so "
        "they end at 3.69."
    )


def _counts(estimate: Estimate, sample: Sample) -> dict[str, Any]:
    rows = {
        name: as_plain(Interval(*(values[index] for values in estimate.classes)))
        for index, name in enumerate(sample.class_names)
    }
    return rows | {
        name_beside(sample.class_names, "parasites"): as_plain(estimate.parasites),
        name_beside(sample.class_names, "red cells"): as_plain(estimate.red_cells),
    }


def _parasitemia(estimate: Estimate, red_cells_per_ul: float) -> dict[str, Any]:
    return {
        "parasitemia_percent": as_plain(scaled(estimate.parasitemia, 100.0)),
        "parasites_per_ul": as_plain(scaled(estimate.parasitemia, red_cells_per_ul)),
    }


def _named(sample: Sample, members: np.ndarray) -> list[str]:
    return [name for name, member in zip(sample.class_names, members, strict=True) if member]


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
        cells = _interval(counted)
        if corrected:
            cells += _interval(corrected[name])
        rows.append([name, *cells])
    lines = [*align(header, rows), ""]
    lines += align(
        ["", "", "95 % from", "to"], [[title, *_interval(row)] for title, row in results(values)]
    )
    lines += ["", *limit_lines(values["detection_limit"], corrected=bool(corrected))]
    return "\n".join([*lines, *values["notes"]])


def results(values: Mapping[str, Any]) -> list[Row]:
    """Returns titles and rows of parasitemia and parasites per uL: raw, corrected, compensated."""
    rows = []
    for key, title in (
        ("raw", "as counted"),
        ("corrected", "corrected"),
        ("compensated", "compensated"),
    ):
        if values[key]:
            for unit, name in (
                ("parasitemia_percent", "parasitemia, %"),
                ("parasites_per_ul", "parasites per uL"),
            ):
                if unit in values[key]:
                    rows.append((f"{name}, {title}", values[key][unit]))
    return rows


def limit_lines(limits: Sequence[Mapping[str, Any]], *, corrected: bool) -> list[str]:
    """Returns the table of the limits of detection as lines of text."""
    names = list(limits[0]["parasites"])
    header = ["red cells", "false boxes", "present from", *names, "per uL"]
    rows = [
        [
            number(each["cells"]),
            number(each["false_boxes"]) if corrected else "-",
            str(each["critical"]),
            *(number(each["parasites"][name]) for name in names),
            number(each["per_ul"]),
        ]
        for each in limits
    ]
    title = "limit of detection: true parasites needed, if the blood has this class only"
    return [title, *align(header, rows)]


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


def format_coverage(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of a simulation as text."""
    header = [
        "parasites",
        "mean estimate",
        "median limits",
        "",
        "coverage",
        "1.96 sigma",
        "1.69 sigma",
    ]
    return "\n".join(
        align(
            header,
            [
                [
                    number(row["parasites"]),
                    number(row["mean_estimate"]),
                    number(row["median_lower"]),
                    number(row["median_upper"]),
                    *(
                        f"{100 * row[key]:.1f} %"
                        for key in ("coverage", "coverage_1.96_sigma", "coverage_1.69_sigma")
                    ),
                ]
                for row in rows
            ],
        )
    )


def number(value: float | None) -> str:
    """Writes a number with four digits, or as a whole number from 1000 on; None as "none"."""
    if value is None:
        return "none"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def _interval(row: Mapping[str, float | None]) -> list[str]:
    return [number(row[column]) for column in _COLUMNS]
