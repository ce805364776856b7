"""Counts as plain text for a terminal, and as rows of a CSV file."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from yogo_jax.evaluation.tables import align


Row = tuple[str, Mapping[str, float | None]]
_COLUMNS = ("estimate", "lower", "upper")


def format_estimate(values: Mapping[str, Any]) -> str:
    """The tables of one sample.

    Args:
      values: what `counts.json` holds.
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
    """Parasitemia and parasites per uL: raw, corrected, compensated; those that are there."""
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
    """The table of detection limits."""
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
    title = "limit of detection: true parasites of each class needed, if the blood has no other"
    return [title, *align(header, rows)]


def results_csv(values: Mapping[str, Any]) -> str:
    """One row for each number: quantity, class, estimate and limits."""
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
    """The table of a simulation."""
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
    """Four digits, or all of a large whole number; "none" where there is no limit."""
    if value is None:
        return "none"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def _interval(row: Mapping[str, float | None]) -> list[str]:
    return [number(row[column]) for column in _COLUMNS]
