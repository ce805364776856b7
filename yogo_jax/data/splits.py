"""The training, validation and test records of a definition."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from yogo_jax.data.definition import DatasetDefinition, PathPair, SplitFractions
from yogo_jax.data.records import (
    RecordReport,
    Records,
    boxes_by_class,
    read_records,
    without_small_boxes,
)
from yogo_jax.errors import UserError


# Fixed, and not the seed of a training run: all runs and evaluations share one test set.
SPLIT_SEED = 0


class SmallBoxes(NamedTuple):
    """Boxes under the least area by class, and the area of the largest box of all."""

    by_class: Int[np.ndarray, " k"]
    largest_area: float


@dataclass(frozen=True, eq=False)
class Splits:
    """Records of each split.

    Attributes:
      train, val, test: with the boxes that are used.
      report: on all of them together.
      small_train: boxes of the training split that are not used.
      definition: where they come from.
      split_is_usual: True if neither definition nor flags name a split, so `USUAL_SPLIT` is used.
    """

    train: Records
    val: Records
    test: Records
    report: RecordReport
    small_train: SmallBoxes
    definition: DatasetDefinition
    split_is_usual: bool

    def lines(self) -> list[str]:
        """Lines of text on what was read, the split, and what was left out."""
        lines = self.report.lines()
        if self.split_is_usual:
            lines.append(self.definition.usual_split_line())
        return lines


def load_splits(
    definition: DatasetDefinition,
    *,
    min_box_area: float,
    on_bad_label: str,
    split_override: tuple[float, float, float] | None = None,
    require_train: bool = True,
) -> Splits:
    """The records of a definition: its `dataset_paths` split at random, its other paths whole.

    A definition that names no split gets `USUAL_SPLIT`.

    Args:
      definition: a checked definition.
      min_box_area: boxes of less area (fraction of the image's) are left out.
      on_bad_label: "error" or "skip", as for `read_label_files`.
      split_override: (train, val, test) fractions of all paths together, instead of the
        definition's splits.
      require_train: whether to refuse an empty training split; False for evaluation.

    Raises:
      UserError: for an image in two splits, an empty training split, and as `read_records`.
    """
    fractions = definition.split_fractions
    pool_paths, val_paths, test_paths = (
        definition.dataset_paths,
        definition.val_paths,
        definition.test_paths,
    )
    if split_override is not None:
        in_range = all(0 <= share <= 1 for share in split_override)
        if len(split_override) != 3 or not in_range or abs(math.fsum(split_override) - 1) > 1e-6:
            raise UserError(
                f"data.split_override is {split_override}; expected three fractions (train, val, "
                "test) in [0, 1] with a sum of 1, such as --config.data.split_override=0.8,0.1,0.1"
            )
        fractions = SplitFractions(*map(float, split_override))
        pool_paths, val_paths, test_paths = (*pool_paths, *val_paths, *test_paths), (), ()

    def load(paths: tuple[PathPair, ...]) -> tuple[Records, RecordReport]:
        return read_records(paths, definition.class_names, on_bad_label=on_bad_label)

    pool, report = load(pool_paths)
    labelled_train, val, test = (
        pool.subset(indices) for indices in split_indices(len(pool), fractions)
    )
    # A definition has a fraction or paths for validation (and for test), never both.
    if val_paths:
        val, val_report = load(val_paths)
        report += val_report
    if test_paths:
        test, test_report = load(test_paths)
        report += test_report

    used = []
    for records in (labelled_train, val, test):
        kept, left_out = without_small_boxes(records, min_box_area)
        report += left_out
        used.append(kept)
    train, val, test = used

    paths_of = {"train": train.image_paths, "val": val.image_paths, "test": test.image_paths}
    for first, second, shared in images_in_two_splits(paths_of):
        raise UserError(
            f"{shared[0].file}: this image ({len(shared)} in all) is in the {first} and in the "
            f"{second} split; expected each image in one split; name its folder, or the "
            "links to it, in one set only"
        )
    if require_train and not len(train):
        found = f"{len(pool)} images, fractions {fractions.train:g}, {fractions.val:g}, "
        raise UserError(
            f"{definition.path}: the training split is empty ({found}{fractions.test:g}); expected "
            "at least 1 image; add data under dataset_paths or raise the train fraction"
        )
    small_train = SmallBoxes(
        boxes_by_class(labelled_train) - boxes_by_class(train),
        float(labelled_train.box_areas.max(initial=0)),
    )
    return Splits(
        train,
        val,
        test,
        report,
        small_train,
        definition,
        split_is_usual=split_override is None and not definition.names_split,
    )


def split_indices(n: int, fractions: SplitFractions) -> tuple[Int64[np.ndarray, " _"], ...]:
    """Sorted indices of train, val and test: a partition of range(n), the same on every machine.

    Sizes are round(fraction * n); the last split with a fraction above 0 takes the rest.
    """
    # Raw bits, because NumPy promises these to stay, but not what `permutation` makes of them.
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(n), kind="stable")
    shares = (fractions.train, fractions.val, fractions.test)
    last = max(i for i, share in enumerate(shares) if share > 0)
    ends = np.cumsum([round(share * n) for share in shares[:last]], dtype=np.int64)
    ends = np.concatenate([np.minimum(ends, n), np.full(3 - last, n)])
    starts = np.concatenate([[0], ends[:-1]])
    return tuple(np.sort(order[start:end]) for start, end in zip(starts, ends, strict=True))


class SharedImage(NamedTuple):
    """An image file of two splits, and the path that each of them has for it."""

    file: str
    path: str
    other_path: str


def images_in_two_splits(
    paths_of: Mapping[str, Sequence[str]],
) -> Iterator[tuple[str, str, list[SharedImage]]]:
    """Pairs of splits that share image files, also by way of a link, with these files."""
    files = {
        split: {os.path.realpath(p) if os.path.islink(p) else p: p for p in paths}
        for split, paths in paths_of.items()
    }
    for first, second in combinations(files, 2):
        if shared := sorted(files[first].keys() & files[second].keys()):
            yield (
                first,
                second,
                [SharedImage(each, files[first][each], files[second][each]) for each in shared],
            )
