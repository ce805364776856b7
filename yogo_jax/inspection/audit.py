"""The audit of files, images and boxes: everything is looked at, nothing is refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from yogo_jax.data.definition import DatasetDefinition
from yogo_jax.data.records import (
    EDGE_ROUNDING,
    Records,
    boxes_by_class,
    large_enough,
    without_small_boxes,
)
from yogo_jax.detector.architectures import get_backbone
from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou
from yogo_jax.detector.grid import cells_of_boxes
from yogo_jax.inspection.collected import LabelledImages, collect
from yogo_jax.inspection.duplicates import duplicate_findings
from yogo_jax.inspection.findings import KINDS, Finding, Listing
from yogo_jax.inspection.scan import ScannedImages, scan_images
from yogo_jax.reports.tables import align


# Two boxes of one image that overlap by more are one box drawn twice, not two cells that touch.
DUPLICATE_IOU = 0.9


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


@dataclass(frozen=True, eq=False)
class Inspection:
    """The content of a data set, and all that is wrong with it.

    Attributes:
      definition: of the data.
      splits: "train", "val", "test" -> their labelled images, with boxes of any size.
      used: the records of each split as a training takes them, without small boxes.
      scanned: every image file once: those of the splits in their order, then the unlabelled.
      grid: None if no image could be read to tell its size.
      min_box_area: least area of a box that is used, as a fraction of the image's.
      findings: kind -> findings, in the order of `KINDS`; kinds without any are left out.
    """

    definition: DatasetDefinition
    splits: dict[str, LabelledImages]
    used: dict[str, Records]
    scanned: ScannedImages
    grid: Grid | None
    min_box_area: float
    findings: dict[str, Listing[Finding]]

    @property
    def count(self) -> int:
        """Findings of all kinds."""
        return sum(found.count for found in self.findings.values())

    @property
    def lost_boxes(self) -> int:
        """Boxes that lose their cell of the grid to another."""
        return self.findings["shared_cell"].count if "shared_cell" in self.findings else 0

    @property
    def anchor(self) -> str | None:
        """The value of `model.anchor=auto`, as text for the flag; None without training boxes."""
        mean_wh = self.used["train"].mean_wh
        return None if mean_wh is None else f"{mean_wh[0]:.6f},{mean_wh[1]:.6f}"

    def class_rows(self) -> tuple[list[str], list[list[object]]]:
        """Header and rows of the table of boxes by class and split, with the images below."""
        used = self.used.values()
        by_class = np.transpose([boxes_by_class(records) for records in used]).tolist()
        values = {
            **dict(zip(self.definition.class_names, by_class, strict=True)),
            "all boxes": [len(records.class_ids) for records in used],
            "images": [len(records) for records in used],
            "empty frames": [int((records.box_counts == 0).sum()) for records in used],
        }
        rows = [[title, *counts, sum(counts)] for title, counts in values.items()]
        return ["boxes by class", *self.used, "all"], rows

    def to_text(self) -> str:
        """The inspection for a terminal: the content, then what is wrong with it."""
        scanned = self.scanned
        described = ", ".join(f"{n} of {h}x{w} px" for (h, w), n in scanned.sizes[:5])
        formats = ", ".join(f"{name} ({n})" for name, n in self.scanned.formats[:5])
        lines = [
            f"{len(scanned.paths)} images: {described or 'none could be read'}",
            f"stored as: {formats or '-'}",
            "",
            *align(*self.class_rows()),
            "",
        ]
        if not self.definition.names_split:
            lines.append(self.definition.usual_split_line())
        if self.grid is not None:
            lines.append(
                f"grid: {self.grid}; boxes that lose their cell to another: {self.lost_boxes}"
            )
        if self.anchor is not None:
            lines.append(f"anchor: --config.model.anchor={self.anchor}")
        if not self.findings:
            lines += ["", "nothing wrong was found with files, images and boxes"]
        for kind, found in self.findings.items():
            lines += found.lines(KINDS[kind])
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The content of `inspection.json`."""
        labelled = sum(map(len, self.splits.values()))
        return {
            "definition": str(self.definition.path),
            "class_names": list(self.definition.class_names),
            "images": {
                "labelled": labelled,
                "unlabelled": len(self.scanned.paths) - labelled,
                "unreadable": len(self.scanned.problems),
                "by_size": {f"{h}x{w}": n for (h, w), n in self.scanned.sizes},
                "by_format": dict(self.scanned.formats),
            },
            "splits": {name: _split_to_dict(records) for name, records in self.used.items()},
            "min_box_area": self.min_box_area,
            "anchor": self.anchor,
            "grid": None if self.grid is None else self.grid._asdict(),
            "findings": {
                kind: {
                    "count": found.count,
                    "title": KINDS[kind].title,
                    "advice": KINDS[kind].advice,
                    "listed": [finding.to_dict() for finding in found.listed],
                }
                for kind, found in self.findings.items()
            },
        }


def _split_to_dict(records: Records) -> dict[str, Any]:
    counts, by_class = records.box_counts, boxes_by_class(records).tolist()
    return {
        "images": len(records),
        "empty_frames": int((counts == 0).sum()),
        "boxes": len(records.class_ids),
        "boxes_by_class": dict(zip(records.class_names, by_class, strict=True)),
        "boxes_per_image": {
            "mean": float(counts.mean()) if len(counts) else None,
            "most": int(counts.max(initial=0)),
        },
        "mean_box_wh": records.mean_wh,
    }


def inspect_data(
    definition: DatasetDefinition,
    *,
    min_box_area: float,
    workers: int,
    architecture: str = "base_model",
    image_hw: tuple[int, int] | None = None,
    grid_hw: tuple[int, int] | None = None,
    apply_orientation: bool = True,
) -> Inspection:
    """Inspects the images and labels of a definition.

    Args:
      definition: of the data.
      min_box_area: boxes of less area (fraction of the image's) are not used.
      workers: threads that decode images.
      architecture: network of the grid on which boxes are binned.
      image_hw: size that images will be trained at; None for the size of most images.
      grid_hw: the grid itself, (rows, columns), instead of that of a network.
      apply_orientation: turn images as their EXIF or TIFF tag says.

    Raises:
      UserError: a folder cannot be read, or there is no such architecture.
    """
    backbone = get_backbone(architecture)
    data = collect(definition)
    paths = [path for split in data.splits.values() for path in split.records.image_paths]
    scanned = scan_images(
        [*paths, *data.unlabelled], workers=workers, apply_orientation=apply_orientation
    )
    grid, image_hw = None, image_hw or scanned.usual_hw
    if grid_hw is not None:
        grid = Grid(grid_hw, None, None)
    elif image_hw is not None:
        field = backbone.receptive_field
        grid = Grid(backbone.grid_hw(image_hw), image_hw, architecture, field)
    used = {
        name: without_small_boxes(split.records, min_box_area)[0]
        for name, split in data.splits.items()
    }
    found: dict[str, Listing[Finding]] = {kind: Listing() for kind in KINDS}
    for finding in data.findings:
        # Problems of files and rows have no limit: somebody has to mend each.
        found[finding.kind].count += 1
        found[finding.kind].listed.append(finding)
    for finding in chain(
        _images(scanned),
        _classes(definition.class_names, used),
        _small_classes(data.splits["train"].records, used["train"]),
        _outgrown_fields(used["train"], grid),
        duplicate_findings(data.splits, scanned, workers),
    ):
        found[finding.kind].add(finding)
    for split in data.splits.values():
        for kind, rows, others in suspicious_boxes(split.records, min_box_area, grid):
            listing = found[kind]
            listing.count += len(rows)
            listing.listed += box_findings(
                kind, split, rows[: listing.room], others[: listing.room]
            )
    found = {kind: listing for kind, listing in found.items() if listing.count}
    return Inspection(definition, data.splits, used, scanned, grid, min_box_area, found)


def _images(scanned: ScannedImages) -> Iterator[Finding]:
    for i, problem in scanned.problems.items():
        yield Finding("unreadable_image", scanned.paths[i], problem)
    done = "the pixels are turned by it" if scanned.apply_orientation else "it is not applied"
    for i, orientation in scanned.orientations.items():
        path = scanned.paths[i]
        yield Finding(
            "oriented_image",
            path,
            f"orientation {orientation}: {done}",
            (path,),
            values={"orientation": orientation},
        )


def _classes(class_names: tuple[str, ...], used: dict[str, Records]) -> Iterator[Finding]:
    """Classes without a box anywhere, or in one of the splits that have images."""
    counts = {name: boxes_by_class(records) for name, records in used.items() if len(records)}
    for class_id, class_name in enumerate(class_names):
        lacking = [split for split, by_class in counts.items() if not by_class[class_id]]
        if len(lacking) == len(counts):
            message = f"no box of the class {class_name!r} anywhere"
            yield Finding("class_without_box", class_name, message)
            continue
        for split in lacking:
            message = f"no box of the class {class_name!r} in the {split} split"
            yield Finding("class_missing_from_split", f"{split}/{class_name}", message)


def _small_classes(labelled: Records, used: Records) -> Iterator[Finding]:
    """Classes of which a training leaves out most of the boxes, as too small."""
    by_class = zip(boxes_by_class(labelled).tolist(), boxes_by_class(used).tolist(), strict=True)
    for class_name, (boxes, kept) in zip(labelled.class_names, by_class, strict=True):
        if boxes > 2 * kept:
            message = f"{boxes - kept} of {boxes} training boxes of {class_name} are too small"
            yield Finding("class_of_small_boxes", class_name, message)


def _outgrown_fields(train: Records, grid: Grid | None) -> Iterator[Finding]:
    """Classes whose usual training box has a side that is larger than the receptive field.

    The size that is recommended is the largest with the shape of the images at which the usual box
    of every class is seen whole, in multiples of 8 px.
    """
    if grid is None or grid.image_hw is None or grid.receptive_field is None:
        return
    height, width = grid.image_hw
    sides = (train.boxes_cxcywh[:, 2:] * (width, height)).max(1)
    usual = {
        name: float(np.median(sides[train.class_ids == class_id]))
        for class_id, name in enumerate(train.class_names)
        if (train.class_ids == class_id).any()
    }
    if not usual:
        return
    scale = grid.receptive_field / max(usual.values())
    small_hw = [max(int(side * scale) // 8 * 8, 16) for side in grid.image_hw]
    for name, side in usual.items():
        if side > grid.receptive_field:
            yield Finding(
                "outgrown_field",
                name,
                f"half of the {name} boxes are larger than {side:.0f} px at {height}x{width}, and "
                f"a cell of {grid.architecture} sees {grid.receptive_field} px: "
                f"--config.data.image_hw={small_hw[0]},{small_hw[1]}",
                values={
                    "class": name,
                    "median_side_px": side,
                    "receptive_field_px": grid.receptive_field,
                    "recommended_image_hw": small_hw,
                },
            )


def suspicious_boxes(
    records: Records, min_box_area: float, grid: Grid | None
) -> Iterator[tuple[str, Int64[np.ndarray, " found"], Int64[np.ndarray, " found"]]]:
    """Kind, rows of the boxes of that kind, and for each the box that it is in conflict with.

    Small boxes are not used by a training, so nothing else is said of them. Where there is no
    conflict with another box, a box stands for itself. Without a grid, shared cells are not looked
    for.
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
    """Boxes that reach over the edge by more than EDGE_ROUNDING of the image's side."""
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh)
    return np.any((boxes_xyxy < -EDGE_ROUNDING) | (boxes_xyxy > 1 + EDGE_ROUNDING), axis=1)


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
