"""Guesses at what the numbers of a set are, where they are not what label files hold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from yogo_jax.data.findings import Finding
from yogo_jax.data.labels import Labels, numbers_of_rows


# Fewer boxes may look like anything.
LEAST_BOXES = 5
# Labels are written with few digits: what reaches over the edge by less does not.
ROUNDING = 1e-3
# Fractions are at most 1, and by rounding a little more; pixels are mostly far above.
LEAST_PIXELS = 2.0


def guess_findings(
    label_path: Path,
    paths: Sequence[str],
    labels: Sequence[Labels | None],
    class_names: tuple[str, ...],
    categories: Mapping[int, str] | None,
) -> Iterator[Finding]:
    """Findings on the numbers of a whole set.

    Args:
      label_path: the folder of the set, the place of the findings.
      paths: its label files.
      labels: what was read of each, with `problems` where rows were left out; None for nothing.
      class_names: names of the classes.
      categories: id -> name, if the set has such ids of its own.
    """
    read = [found for found in labels if found is not None]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes_cxcywh for found in read)])
    if (what := boxes_look_like(boxes)) is not None:
        yield Finding("other_box_form", str(label_path), f"all of its {len(boxes):,} boxes {what}")
    bad = [path for path, found in zip(paths, labels, strict=True) if found and found.problems]
    if not bad:
        return
    # Of the files with a bad row all rows, of the others those that were read.
    # One array a file: if all are bad, they are many, and lists of Python take ten times as much.
    of_files = (np.array(numbers_of_rows(path), np.float32).reshape(-1, 5) for path in bad)
    rows = np.concatenate([*of_files])
    good = [found for found in read if not found.problems]
    total = len(rows) + sum(len(found.class_ids) for found in good)
    in_pixels = rows[(rows[:, 1:] >= LEAST_PIXELS).any(1), 1:]
    if len(in_pixels) >= max(LEAST_BOXES, total / 2):
        form = "corners x1 y1 x2 y2" if _rise(in_pixels) else "centres and sizes"
        yield Finding(
            "boxes_in_pixels",
            str(label_path),
            f"{len(in_pixels):,} of {total:,} boxes have numbers up to {in_pixels.max():g}, which "
            f"look like {form} in pixels",
        )
    classes = len(class_names)
    numbers = rows[~np.isnan(rows[:, 0]), 0]
    from_zero = (numbers < 1).any() or any((found.class_ids == 0).any() for found in good)
    if categories is None and not from_zero and numbers.max(initial=0) == classes:
        yield Finding(
            "classes_from_one",
            str(label_path),
            f"{int((numbers == classes).sum()):,} of {total:,} boxes are of class {classes}, "
            f"none is of class 0: they seem to count from 1, expected 0 to {classes - 1}",
        )


def boxes_look_like(boxes: Float32[np.ndarray, "m 4"]) -> str | None:
    """A guess at what boxes, read as centre and size, are instead; None if they look right.

    Corners x1 y1 x2 y2: the third number is always above the first, the fourth above the second,
    and as centre and size many would reach over the edge. The upper left corner and size: as centre
    and size some reach over the left or upper edge, but as corner and size none over the others.
    """
    if len(boxes) < LEAST_BOXES:
        return None
    starts, ends = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    before, behind = (starts < -ROUNDING).any(1), (ends > 1 + ROUNDING).any(1)
    if _rise(boxes) and (before | behind).mean() > 0.2:
        return "look like corners x1 y1 x2 y2 instead of centre and size"
    if before.sum() >= max(LEAST_BOXES, 0.01 * len(boxes)) and (
        (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + ROUNDING
    ):
        return "look like the upper left corner and the size instead of centre and size"
    return None


def _rise(boxes: Float[np.ndarray, "m 4"]) -> bool:
    """True if all third numbers are above the first ones, and the fourth above the second."""
    return bool((boxes[:, 2:] > boxes[:, :2]).all())
