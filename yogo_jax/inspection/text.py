"""An inspection in plain values for JSON, and as text for a terminal."""

from collections import Counter
from typing import Any

import numpy as np

from yogo_jax.data.findings import KINDS
from yogo_jax.data.records import Records, boxes_by_class
from yogo_jax.inspection.audit import Inspection, Listing
from yogo_jax.reports.tables import align


# Of each kind of finding the terminal shows so many.
SHOWN_IN_TEXT = 3


def to_dict(inspection: Inspection) -> dict[str, Any]:
    """What `inspection.json` holds."""
    scanned = inspection.scanned
    grid = inspection.grid
    labelled = sum(map(len, inspection.splits.values()))
    return {
        "definition": str(inspection.definition.path),
        "class_names": list(inspection.definition.class_names),
        "images": {
            "labelled": labelled,
            "unlabelled": len(scanned.paths) - labelled,
            "unreadable": len(scanned.problems),
            "by_size": {f"{h}x{w}": n for (h, w), n in sizes(inspection)},
            "by_format": dict(Counter(filter(None, scanned.stored_as)).most_common()),
        },
        "splits": {name: _split(records) for name, records in inspection.used.items()},
        "min_box_area": inspection.min_box_area,
        "anchor": anchor(inspection),
        "grid": None if grid is None else grid._asdict(),
        "findings": {
            kind: {
                "count": found.count,
                "title": KINDS[kind].title,
                "advice": KINDS[kind].advice,
                "listed": [finding.to_dict() for finding in found.listed],
            }
            for kind, found in inspection.findings.items()
        },
    }


def _split(records: Records) -> dict[str, Any]:
    counts = records.box_counts
    return {
        "images": len(records),
        "empty_frames": int((counts == 0).sum()),
        "boxes": len(records.class_ids),
        "boxes_by_class": dict(
            zip(records.class_names, boxes_by_class(records).tolist(), strict=True)
        ),
        "boxes_per_image": {
            "mean": float(counts.mean()) if len(counts) else None,
            "most": int(counts.max(initial=0)),
        },
        "mean_box_wh": mean_size(records),
    }


def sizes(inspection: Inspection) -> list[tuple[tuple[int, int], int]]:
    """((rows, columns), number of images), the most common first; unreadable ones are left out."""
    found = Counter(size for size in inspection.scanned.images_hw if size != (0, 0))
    return found.most_common()


def mean_size(records: Records) -> list[float] | None:
    """Mean (width, height) of the boxes as fractions of the image, None if there is none."""
    if not len(records.boxes_cxcywh):
        return None
    return records.boxes_cxcywh[:, 2:].mean(0, dtype=np.float64).tolist()


def anchor(inspection: Inspection) -> str | None:
    """What `model.anchor=auto` would take, as text for the flag; None without training boxes."""
    mean = mean_size(inspection.used["train"])
    return None if mean is None else f"{mean[0]:.6f},{mean[1]:.6f}"


def class_rows(inspection: Inspection) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the table of boxes by class and split, with the images below."""
    used = inspection.used
    by_split = [boxes_by_class(records) for records in used.values()]
    rows: list[list[object]] = [
        [name, *(int(counts[i]) for counts in by_split), int(sum(counts[i] for counts in by_split))]
        for i, name in enumerate(inspection.definition.class_names)
    ]
    for title, values in (
        ("all boxes", [len(records.class_ids) for records in used.values()]),
        ("images", [len(records) for records in used.values()]),
        ("empty frames", [int((records.box_counts == 0).sum()) for records in used.values()]),
    ):
        rows.append([title, *values, sum(values)])
    return ["boxes by class", *used, "all"], rows


def format_inspection(inspection: Inspection) -> str:
    """The inspection as text: what there is, then what is wrong with it."""
    scanned = inspection.scanned
    described = ", ".join(f"{n} of {h}x{w} px" for (h, w), n in sizes(inspection)[:5])
    formats = Counter(filter(None, scanned.stored_as)).most_common(5)
    lines = [
        f"{len(scanned.paths)} images: {described or 'none could be read'}",
        f"stored as: {', '.join(f'{name} ({n})' for name, n in formats) or '-'}",
        "",
        *align(*class_rows(inspection)),
        "",
    ]
    if not inspection.definition.names_split:
        lines.append(inspection.definition.usual_split_line())
    if inspection.grid is not None:
        lost = inspection.findings.get("shared_cell", Listing(0, [])).count
        lines.append(f"grid: {inspection.grid}; boxes that lose their cell to another: {lost}")
    if (text := anchor(inspection)) is not None:
        lines.append(f"anchor: --config.model.anchor={text}")
    if not inspection.findings:
        return "\n".join([*lines, "", "nothing wrong was found with files, images and boxes"])
    for kind, found in inspection.findings.items():
        lines += ["", f"{KINDS[kind].title}: {found.count:,}", f"  {KINDS[kind].advice}"]
        shown = found.listed[:SHOWN_IN_TEXT]
        lines += [f"  - {finding.place}: {finding.message}" for finding in shown]
        if found.count > len(shown):
            lines.append(f"  - and {found.count - len(shown):,} more")
    return "\n".join(lines)
