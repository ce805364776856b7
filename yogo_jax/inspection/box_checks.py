"""Checks of boxes: those that share a cell, are drawn twice, overhang an edge or are too small."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from yogo_jax.data.records import Records, large_enough
from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou
from yogo_jax.detector.grid import cells_of_boxes
from yogo_jax.inspection.collected import LabelledImages
from yogo_jax.inspection.findings import Finding


# Two boxes of one image that overlap by more are one box drawn twice, not two cells that touch.
DUPLICATE_IOU = 0.9
# Labels are written with few digits: what reaches over the edge by less is no overhang.
EDGE_TOLERANCE = 1e-3


class Grid(NamedTuple):
    """The grid that boxes are binned on, and the images and the network that it belongs to.

    A cell sees a square of `receptive_field` px of such an image.
    """

    grid_hw: tuple[int, int]
    image_hw: tuple[int, int] | None
    architecture: str | None
    receptive_field: int | None = None

    def __str__(self) -> str:
        grid = f"{self.grid_hw[0]}x{self.grid_hw[1]} cells"
        if self.architecture is None or self.image_hw is None:
            return grid
        return f"{grid} ({self.architecture} at {self.image_hw[0]}x{self.image_hw[1]} px)"


def suspicious_boxes(
    records: Records, min_box_area: float, grid: Grid | None
) -> Iterator[tuple[str, Int64[np.ndarray, " found"], Int64[np.ndarray, " found"]]]:
    """Kind, rows of the boxes of that kind, and for each the box that it is in conflict with.

    Small boxes are not used by a training, so nothing else is said of them. Where there is no
    conflict with another box, a box stands for itself.

    Args:
      records: of one split, with boxes of any size.
      min_box_area: least area of a box that is used.
      grid: without one, shared cells are not looked for.
    """
    large = large_enough(records, min_box_area)
    small = np.flatnonzero(~large)
    yield "small_box", small, small
    rows = np.flatnonzero(large)
    used = records.with_boxes(large)
    over = rows[overhanging(used.boxes_cxcywh)]
    yield "overhanging_box", over, over
    first, second = rows[drawn_twice(used)].T
    yield "duplicate_box", first, second
    if grid is not None:
        winners = winners_of_cells(used, grid.grid_hw)
        lost = np.flatnonzero(winners != np.arange(len(winners)))
        yield "shared_cell", rows[lost], rows[winners[lost]]


def box_findings(
    kind: str,
    split: LabelledImages,
    rows: Int64[np.ndarray, " found"],
    others: Int64[np.ndarray, " found"],
) -> Iterator[Finding]:
    """Findings of one kind on boxes, with their place as `file:line`."""
    records = split.records
    image_of = images_of_boxes(records)
    lines: list[int] = []
    last = -1
    for row, other in zip(rows.tolist(), others.tolist(), strict=True):
        i = int(image_of[row])
        if i != last:
            lines, last = split.lines_of(i), i
        line, other_line = (lines[each - records.offsets[i]] for each in (row, other))
        class_name, other_name = (
            records.class_names[records.class_ids[each]] for each in (row, other)
        )
        width, height = records.boxes_cxcywh[row, 2:].tolist()
        size = f"{class_name} box, {100 * width:.2g} % x {100 * height:.2g} % of the image"
        message = {
            "small_box": f"{size}, is too small to be used",
            "overhanging_box": f"{size}, reaches over the edge",
            "duplicate_box": f"{size}, is nearly the {other_name} box of line {other_line}",
            "shared_cell": f"{size}, is in one cell with the {other_name} box of line "
            f"{other_line}, which is learnt in its place",
        }[kind]
        boxes = records.boxes_cxcywh[[row] if row == other else [row, other]]
        yield Finding(
            kind,
            f"{split.label_paths[i]}:{line}",
            message,
            (records.image_paths[i],),
            tuple(map(tuple, boxes.tolist())),
            {"class": class_name},
        )


def images_of_boxes(records: Records) -> Int64[np.ndarray, " m"]:
    """The index of the image of each box."""
    return np.repeat(np.arange(len(records)), records.box_counts)


def winners_of_cells(records: Records, grid_hw: tuple[int, int]) -> Int64[np.ndarray, " m"]:
    """For each box the box that has its cell: itself, or the last one of that image and cell."""
    cells = cells_of_boxes(records.boxes_cxcywh, grid_hw)
    cells = cells + images_of_boxes(records) * (grid_hw[0] * grid_hw[1])
    order = np.argsort(cells, kind="stable")
    ordered = cells[order]
    last = np.searchsorted(ordered, ordered, side="right") - 1
    winners = np.empty_like(order)
    winners[order] = order[last]
    return winners


def overhanging(boxes_cxcywh: Float32[np.ndarray, "m 4"]) -> Bool[np.ndarray, " m"]:
    """Boxes that reach over the edge by more than EDGE_TOLERANCE of the image's side."""
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh)
    return np.any((boxes_xyxy < -EDGE_TOLERANCE) | (boxes_xyxy > 1 + EDGE_TOLERANCE), axis=1)


def drawn_twice(records: Records) -> Int64[np.ndarray, "pairs 2"]:
    """Pairs of boxes of one image with an IoU above DUPLICATE_IOU, the earlier box first."""
    pairs = [np.zeros((0, 2), np.int64)]
    for start, end in zip(records.offsets[:-1].tolist(), records.offsets[1:].tolist(), strict=True):
        if end - start > 1:
            corners = cxcywh_to_xyxy(records.boxes_cxcywh[start:end].astype(np.float64))
            overlap = iou(corners[:, None], corners[None])
            first, second = np.nonzero(np.triu(overlap > DUPLICATE_IOU, k=1))
            pairs.append(np.stack([first, second], axis=1).astype(np.int64) + start)
    return np.concatenate(pairs)
