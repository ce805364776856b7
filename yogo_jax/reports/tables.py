"""Tables as plain text for a terminal or a log file; the metrics of a test are 100 columns wide."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


WIDTH = 100
GAP = "  "
# Longer names are cut in tables, but not in metrics.json.
NAME_WIDTH = 24

_CLASS_COLUMNS = (
    ("AP50", "AP50_by_class"),
    ("AP50-95", "AP50_95_by_class"),
    ("precision", "precision_by_class"),
    ("recall", "recall_by_class"),
    ("accuracy", "accuracy_by_class"),
    ("missed", "missed_by_class"),
    ("extra", "extra_by_class"),
)
_TOTALS = (
    ("mAP50", "mAP50"),
    ("mAP50-95", "mAP50_95"),
    ("calibration error", "calibration_error"),
    ("test loss", "test_loss"),
    ("images", "images"),
    ("true boxes", "objects"),
    ("predictions", "predictions"),
    ("matched", "matched"),
)


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Returns tables: a row for each class, the totals, sensitivity, and the confusion matrix.

    Args:
      metrics: content of `metrics.json`. A missing key leaves its column or row out. None, a value
        that cannot be computed, is printed as "-".
    """
    sections = (
        _class_table(metrics),
        _totals_table(metrics),
        _sensitivity_lines(metrics),
        _confusion_table(metrics),
    )
    return "\n\n".join("\n".join(section) for section in sections if section)


def _class_table(metrics: Mapping[str, Any]) -> list[str]:
    columns = [(title, metrics[key]) for title, key in _CLASS_COLUMNS if key in metrics]
    objects = objects_by_class(metrics)
    if objects:
        columns.append(("objects", objects))
    if not columns:
        return []
    names = list(dict.fromkeys(name for _, values in columns for name in values))
    header = ["class", *(title for title, _ in columns)]
    return align(
        header,
        [[_cut(name), *(_cell(values.get(name)) for _, values in columns)] for name in names],
    )


def objects_by_class(metrics: Mapping[str, Any]) -> dict[str, int]:
    """True boxes of each class: the sum of its row of the confusion matrix, with missed ones."""
    if "confusion" not in metrics or "missed_by_class" not in metrics:
        return {}
    names, matrix = metrics["confusion"]["class_names"], metrics["confusion"]["matrix"]
    missed = metrics["missed_by_class"]
    classes = len(missed)
    # A matrix without the background has one column less, and its rows lack the missed boxes.
    return {
        name: sum(row[:classes]) + missed[name]
        for name, row in zip(names[:classes], matrix, strict=False)
    }


def originals_mean_ap(metrics: Mapping[str, Any]) -> str:
    """Returns the mean AP of the original's protocol in a sentence; empty if it is not there."""
    if metrics.get("mAP50_original") is None:
        return ""
    over = metrics.get("images_over_max_detections", 0)
    more = f" {over} image(s) had more; the best were used." if over else ""
    return (
        f"By the original's protocol mAP50 is {metrics['mAP50_original']:.4f} and mAP50-95 "
        f"{metrics['mAP50_95_original']:.4f}: each box has its most probable class alone, its "
        "objectness is above 0.05, it is not cut at the frame, and at most 2,000 of a frame count."
        f"{more}"
    )


def note_on_earlier_versions(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence on tests of versions that had the original's protocol only, or nothing.

    Args:
      tests: content of `metrics.json` by what was tested.
    """
    earlier = [name for name, metrics in tests.items() if "mAP50_original" not in metrics]
    if not earlier:
        return ""
    return (
        " Tested by an earlier version, with every mAP and AP by the original's protocol: "
        f"{', '.join(earlier)}."
    )


class SensitivityTable(NamedTuple):
    """Sensitivity by class at each rate of false positives.

    Attributes:
      title: what the numbers are.
      header: titles of the columns; a star marks rates for which the labels are too few.
      rows: cells, one row for each class; None is no value.
      note: what a star means; empty without a star.
    """

    title: str
    header: list[str]
    rows: list[list[Any]]
    note: str


def sensitivity_table(metrics: Mapping[str, Any]) -> SensitivityTable | None:
    """Returns the table; None without true boxes, with one class, or if it is not in `metrics`."""
    values = metrics.get("sensitivity_at_false_positives")
    if values is None or not values["by_class"]:
        return None
    name, cells, allowed = (
        values[key] for key in ("red_cell_class", "red_cells", "allowed_false_positives")
    )
    title = (
        f"Sensitivity if at most this number of false positives is allowed per 10^6 boxes of "
        f"{_cut(name)}. The set has {cells:,} of these boxes."
    )
    too_few = [int(rate) for rate, count in allowed.items() if not count]
    needed = ", ".join(f"{1_000_000 // rate:,} for {rate}" for rate in too_few)
    note = (
        "* The set is too small for this number: the value is the sensitivity without any false "
        f"positive. Boxes of {_cut(name)} that are needed: {needed}."
    )
    header = [f"{rate}{'' if count else '*'}" for rate, count in allowed.items()]
    rows = [
        [name, *((by_rate or {}).get(rate) for rate in allowed)]
        for name, by_rate in values["by_class"].items()
    ]
    return SensitivityTable(title, ["class", *header], rows, note if too_few else "")


def _sensitivity_lines(metrics: Mapping[str, Any]) -> list[str]:
    table = sensitivity_table(metrics)
    if table is None:
        return []
    rows = [[_cut(name), *map(_cell, values)] for name, *values in table.rows]
    return [*_wrap(table.title), *align(table.header, rows), *_wrap(table.note)]


def _totals_table(metrics: Mapping[str, Any]) -> list[str]:
    rows = [[title, _cell(metrics[key])] for title, key in _TOTALS if key in metrics]
    for title, key in (("missed", "missed_by_class"), ("extra", "extra_by_class")):
        if key in metrics:
            rows.append([title, _cell(sum(metrics[key].values()))])
    lines = align(["total", ""], rows) if rows else []
    return lines + _wrap(originals_mean_ap(metrics))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _confusion_table(metrics: Mapping[str, Any]) -> list[str]:
    """The confusion matrix; columns that do not fit side by side follow below, in blocks."""
    if "confusion" not in metrics:
        return []
    names, matrix = metrics["confusion"]["class_names"], metrics["confusion"]["matrix"]
    title = "confusion (row: true class, column: predicted class)"
    columns = [_column(_cut(name), [row[i] for row in matrix]) for i, name in enumerate(names)]
    labels = _column("", [_cut(name) for name in names], left=True)
    lines = [title]
    for block in _blocks(columns, WIDTH - len(labels[0])):
        if len(lines) > 1:
            lines.append("")
        lines += [GAP.join(cells).rstrip() for cells in zip(labels, *block, strict=True)]
    return lines


def _blocks(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Groups columns so that each group, with the gap before each column, fits in `width`."""
    blocks: list[list[list[str]]] = [[]]
    used = 0
    for column in columns:
        needed = len(GAP) + len(column[0])
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed
    return blocks


def align(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Returns the lines of a table: the first column is left-aligned, the others right-aligned."""
    columns = [
        _column(title, [row[i] for row in rows], left=i == 0) for i, title in enumerate(header)
    ]
    return [GAP.join(cells).rstrip() for cells in zip(*columns, strict=True)]


def number(value: float | None, *, digits: int = 4) -> str:
    """Writes a number with so many digits, or as a whole number from 1000 on; None as "none"."""
    if value is None:
        return "none"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _column(title: str, cells: Sequence[object], *, left: bool = False) -> list[str]:
    texts = [title, *map(str, cells)]
    width = max(map(len, texts))
    return [text.ljust(width) if left else text.rjust(width) for text in texts]


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _cut(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 2]}.."
