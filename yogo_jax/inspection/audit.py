"""What is in a data set and what is wrong with it: everything is looked at, nothing is refused."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from yogo_jax.data.definition import DatasetDefinition
from yogo_jax.data.findings import KINDS, Finding
from yogo_jax.data.records import Records, boxes_by_class, large_enough
from yogo_jax.inspection.box_checks import Grid, box_findings, suspicious_boxes
from yogo_jax.inspection.collected import LabelledImages, collect
from yogo_jax.inspection.duplicates import duplicate_findings
from yogo_jax.inspection.scan import ScannedImages, scan_images


# Of one kind of finding on boxes, groups or images so many are listed; all of them are counted.
MOST_LISTED = 10_000


@dataclass(frozen=True)
class Listing:
    """Findings of one kind: how many there are, and those that are listed."""

    count: int
    listed: list[Finding]


@dataclass(frozen=True, eq=False)
class Inspection:
    """All that was found.

    Attributes:
      definition: of the data.
      splits: "train", "val", "test" -> their labelled images, with boxes of any size.
      used: the records of each split as a training takes them, without small boxes.
      scanned: every image file once: those of the splits in their order, then the unlabelled.
      grid: None if no image could be read to tell its size.
      min_box_area: least area of a box that is used, as a fraction of the image's.
      findings: kind -> what was found, in the order of `KINDS`; kinds without any are left out.
    """

    definition: DatasetDefinition
    splits: dict[str, LabelledImages]
    used: dict[str, Records]
    scanned: ScannedImages
    grid: Grid | None
    min_box_area: float
    findings: dict[str, Listing]

    @property
    def count(self) -> int:
        """Findings of all kinds."""
        return sum(found.count for found in self.findings.values())

    @property
    def usual_image_hw(self) -> tuple[int, int] | None:
        """The size of most images, None if none could be read."""
        return usual_size(self.scanned)


def inspect_data(
    definition: DatasetDefinition,
    *,
    min_box_area: float,
    choose_grid: Callable[[tuple[int, int] | None], Grid | None],
    workers: int,
    on_start: Callable[[int], Callable[[], None]] = lambda _: lambda: None,
    apply_orientation: bool = True,
) -> Inspection:
    """Looks at the images and labels of a definition.

    Args:
      definition: where they are.
      min_box_area: boxes of less area (fraction of the image's) are not used.
      choose_grid: the grid, given the size of most images (None if none could be read).
      workers: threads that decode images.
      on_start: is given the number of images, and returns what is to be called after each.
      apply_orientation: turn images as their EXIF or TIFF tag says.

    Raises:
      UserError: a folder cannot be read.
    """
    data = collect(definition)
    paths = [path for split in data.splits.values() for path in split.records.image_paths]
    paths += data.unlabelled
    scanned = scan_images(
        paths,
        workers=workers,
        advance=on_start(len(paths)),
        apply_orientation=apply_orientation,
    )
    grid = choose_grid(usual_size(scanned))
    used = {
        name: split.records.with_boxes(large_enough(split.records, min_box_area))
        for name, split in data.splits.items()
    }
    collector = _Collector()
    for finding in data.findings:
        collector.add(finding, most=None)
    of_images = (*_unreadable(scanned), *_oriented(scanned))
    for finding in (*of_images, *_classes(definition.class_names, used)):
        collector.add(finding)
    for finding in small_classes(data.splits["train"].records, used["train"]):
        collector.add(finding)
    for finding in outgrown_fields(used["train"], grid):
        collector.add(finding)
    for finding in duplicate_findings(data.splits, scanned, workers):
        collector.add(finding)
    for split in data.splits.values():
        for kind, rows, others in suspicious_boxes(split.records, min_box_area, grid):
            collector.counts[kind] += len(rows)
            room = MOST_LISTED - len(collector.listed[kind])
            collector.listed[kind] += box_findings(kind, split, rows[:room], others[:room])
    return Inspection(definition, data.splits, used, scanned, grid, min_box_area, collector.found())


def usual_size(scanned: ScannedImages) -> tuple[int, int] | None:
    """(rows, columns) of most images; None if none could be read."""
    sizes = Counter(size for size in scanned.images_hw if size != (0, 0))
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else None


class _Collector:
    """Counts findings by kind and keeps those that are listed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: dict[str, list[Finding]] = {kind: [] for kind in KINDS}

    def add(self, finding: Finding, *, most: int | None = MOST_LISTED) -> None:
        """Counts a finding, and lists it if there are fewer than `most`."""
        self.counts[finding.kind] += 1
        if most is None or len(self.listed[finding.kind]) < most:
            self.listed[finding.kind].append(finding)

    def found(self) -> dict[str, Listing]:
        """Everything, in the order of `KINDS`."""
        return {
            kind: Listing(self.counts[kind], self.listed[kind])
            for kind in KINDS
            if self.counts[kind]
        }


def _unreadable(scanned: ScannedImages) -> Iterator[Finding]:
    for i, problem in scanned.problems.items():
        yield Finding("unreadable_image", scanned.paths[i], problem)


def _oriented(scanned: ScannedImages) -> Iterator[Finding]:
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


def small_classes(labelled: Records, used: Records) -> Iterator[Finding]:
    """Classes of which a training leaves out most of the boxes, as too small."""
    by_class = zip(boxes_by_class(labelled).tolist(), boxes_by_class(used).tolist(), strict=True)
    for class_name, (boxes, kept) in zip(labelled.class_names, by_class, strict=True):
        if boxes > 2 * kept:
            message = f"{boxes - kept} of {boxes} training boxes of {class_name} are too small"
            yield Finding("class_of_small_boxes", class_name, message)


def outgrown_fields(train: Records, grid: Grid | None) -> Iterator[Finding]:
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
