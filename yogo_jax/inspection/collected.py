"""All labelled images of a definition, with every problem noted: nothing stops at the first one.

Training reads data by `data/splits.py`, which refuses it instead.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yogo_jax.data.definition import DatasetDefinition, PathPair
from yogo_jax.data.labels import (
    Labels,
    label_lines,
    numbers_of_rows,
    read_categories,
    read_label_files,
)
from yogo_jax.data.records import (
    LEAST_BOXES,
    Records,
    always_rise,
    ambiguity,
    boxes_look_like,
    list_files,
    no_labels,
    records_of,
)
from yogo_jax.data.splits import images_in_two_splits, split_indices
from yogo_jax.errors import UserError
from yogo_jax.inspection.findings import Finding


SPLITS = ("train", "val", "test")
# Fractions are at most 1, and by rounding a little more; pixels are mostly far above.
LEAST_PIXELS = 2.0


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Records with all of their boxes, small ones too, and the label file of each image."""

    records: Records
    label_paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def subset(self, indices: np.ndarray) -> "LabelledImages":
        """The images at `indices`, in that order."""
        paths = tuple(self.label_paths[i] for i in indices)
        return LabelledImages(self.records.subset(indices), paths)

    def lines_of(self, i: int) -> list[int]:
        """Line numbers of the boxes of image i in its label file, which is read again."""
        path = self.label_paths[i]
        return label_lines(path, self.records.class_names, read_categories(os.path.dirname(path)))


@dataclass(frozen=True, eq=False)
class CollectedData:
    """Everything that a definition leads to.

    Attributes:
      splits: "train", "val", "test" -> the images that have a label file that can be read.
      unlabelled: paths of images without a label file.
      findings: every problem with files and rows.
    """

    splits: dict[str, LabelledImages]
    unlabelled: list[str]
    findings: list[Finding]


def collect(definition: DatasetDefinition) -> CollectedData:
    """Everything that can be read of a definition, split as a training splits it.

    Bad rows are left out of the boxes; label files and images that do not fit together are left out
    of the splits.

    Raises:
      UserError: a folder or a `notes.json` cannot be read, so that nothing can be said of a set.
    """
    data = CollectedData({}, [], [])
    pool = _load(definition.dataset_paths, definition.class_names, data)
    parts = split_indices(len(pool), definition.split_fractions)
    for split, part in zip(SPLITS, parts, strict=True):
        data.splits[split] = pool.subset(part)
    for split, paths in (("val", definition.val_paths), ("test", definition.test_paths)):
        if paths:
            data.splits[split] = _load(paths, definition.class_names, data)
    paths_of = {split: images.records.image_paths for split, images in data.splits.items()}
    for first, second, shared in images_in_two_splits(paths_of):
        for _, path, other in shared:
            named = "" if path == other else f", as {other}"
            message = f"this file is in the {first} and{named} in the {second} split"
            data.findings.append(Finding("image_in_two_splits", path, message, (path,)))
    if not len(data.splits["train"]):
        message = f"it holds no labelled image by {definition.path}"
        data.findings.append(Finding("empty_training_split", "train", message))
    return data


def _load(
    path_pairs: Sequence[PathPair], class_names: tuple[str, ...], data: CollectedData
) -> LabelledImages:
    """The images of some sets; what is wrong with them is added to `data`."""
    image_paths: list[str] = []
    label_paths: list[str] = []
    labels: list[Labels] = []
    for pair in path_pairs:
        matched = _files_of(pair, data)
        paths = [f"{pair.label_path}{os.sep}{label}" for _, label in matched]
        categories = read_categories(pair.label_path)
        found = _read_each(paths, class_names, categories, data.findings)
        data.findings.extend(guess_findings(pair.label_path, paths, found, class_names, categories))
        for (image, _), path, each in zip(matched, paths, found, strict=True):
            if each is None:
                continue
            image_paths.append(f"{pair.image_path}{os.sep}{image}")
            label_paths.append(path)
            labels.append(each)
            for problem in each.problems:
                line, _, message = problem.removeprefix(f"{path}:").partition(": ")
                finding = Finding("bad_label", f"{path}:{line}", message, (image_paths[-1],))
                data.findings.append(finding)
    records = records_of(class_names, image_paths, labels)
    return LabelledImages(records, tuple(label_paths))


def _files_of(pair: PathPair, data: CollectedData) -> list[tuple[str, str]]:
    """(image name, label name) of a set where there is one of each; the rest is noted."""
    files = list_files(pair)
    if not files.labels:
        message = no_labels(pair).removeprefix(f"{pair.label_path}: ")
        data.findings.append(Finding("set_without_labels", str(pair.label_path), message))
    for name in files.without_image:
        path = f"{pair.label_path}{os.sep}{name}"
        message = f"there is no image of this name in {pair.image_path}"
        data.findings.append(Finding("label_without_image", path, message))
    for folder, names in files.ambiguous:
        message = ambiguity(folder, names).removeprefix(f"{folder}: ")
        data.findings.append(Finding("ambiguous_name", str(folder), message))
    for name in files.unlabelled:
        path = f"{pair.image_path}{os.sep}{name}"
        data.unlabelled.append(path)
        message = f"there is no label file of this name in {pair.label_path}"
        data.findings.append(Finding("unlabelled_image", path, message, (path,)))
    return files.matched


def _read_each(
    paths: Sequence[str],
    class_names: tuple[str, ...],
    categories: Mapping[int, str] | None,
    findings: list[Finding],
) -> list[Labels | None]:
    """The labels of each file; None, with a finding, for a file that cannot be read.

    Files are read together, as that is fast; where this fails the half at fault is looked for.
    """
    if not paths:
        return []
    try:
        return [*read_label_files(paths, class_names, categories, on_bad_label="skip")]
    except UserError as error:
        if len(paths) > 1:
            middle = len(paths) // 2
            return [
                *_read_each(paths[:middle], class_names, categories, findings),
                *_read_each(paths[middle:], class_names, categories, findings),
            ]
        message = str(error).removeprefix(f"{paths[0]}: ")
        findings.append(Finding("unreadable_label_file", paths[0], message))
        return [None]


def guess_findings(
    label_path: Path,
    paths: Sequence[str],
    labels: Sequence[Labels | None],
    class_names: tuple[str, ...],
    categories: Mapping[int, str] | None,
) -> Iterator[Finding]:
    """Guesses at the numbers of a whole set, where they are not those of label files.

    `label_path` is its folder, `paths` are its label files, and `labels` what was read of each (or
    None), with `problems` where rows were left out. With `categories` the set has its own ids.
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
        form = "corners x1 y1 x2 y2" if always_rise(in_pixels) else "centres and sizes"
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
