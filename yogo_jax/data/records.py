"""Records: the labelled images of some folders, with all their boxes in two flat arrays."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Int64

from yogo_jax.data.definition import PathPair
from yogo_jax.data.images import IMAGE_SUFFIXES
from yogo_jax.data.labels import LABEL_SUFFIXES, Labels, read_categories, read_label_files
from yogo_jax.errors import UserError


# Of the messages on bad rows.
MESSAGES_KEPT = 5
# The original's least area of a box, as a fraction of the image: 200 px of a 772x1032 frame.
MIN_BOX_AREA = 200 / (772 * 1032)
# Labels are stored as float32: a box of just the smallest area must not fall to rounding.
AREA_ROUNDING = 1e-6
# Fewer boxes may look like any form.
LEAST_BOXES = 5
# Labels are written with few digits: what reaches over the edge by less does not.
EDGE_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class Records:
    """Images with their boxes; the boxes of image i are rows `offsets[i]:offsets[i + 1]`.

    Flat arrays, not one small array an image, so that worker processes get them quickly.
    """

    class_names: tuple[str, ...]
    image_paths: tuple[str, ...]
    offsets: Int64[np.ndarray, " n_plus_1"]
    boxes_cxcywh: Float32[np.ndarray, "m 4"]
    class_ids: Int32[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def box_counts(self) -> Int64[np.ndarray, " n"]:
        """Number of boxes of each image."""
        return np.diff(self.offsets)

    @property
    def box_areas(self) -> Float64[np.ndarray, " m"]:
        """Area of each box, as a fraction of the image's."""
        return self.boxes_cxcywh[:, 2:].astype(np.float64).prod(axis=1)

    @property
    def mean_wh(self) -> tuple[float, float] | None:
        """Mean (width, height) of the boxes as fractions of the image; None without a box."""
        if not len(self.boxes_cxcywh):
            return None
        width, height = self.boxes_cxcywh[:, 2:].mean(0, dtype=np.float64).tolist()
        return width, height

    def labels_of(
        self, i: int | np.integer
    ) -> tuple[Float32[np.ndarray, "n 4"], Int32[np.ndarray, " n"]]:
        """Boxes and class ids of image i, in the order of its label file."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        return self.boxes_cxcywh[rows], self.class_ids[rows]

    def subset(self, indices: Sequence[int] | Int[np.ndarray, " k"]) -> "Records":
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        counts = self.box_counts[chosen]
        offsets = _offsets(counts)
        # Row numbers: those within each image, moved to where its boxes begin.
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts)
        return Records(
            self.class_names,
            tuple(self.image_paths[i] for i in chosen),
            offsets,
            self.boxes_cxcywh[rows],
            self.class_ids[rows],
        )

    def with_boxes(self, keep: Bool[np.ndarray, " m"]) -> "Records":
        """The same images with those boxes alone where `keep` is True."""
        kept_before = _offsets(keep.astype(np.int64))
        return Records(
            self.class_names,
            self.image_paths,
            kept_before[self.offsets],
            self.boxes_cxcywh[keep],
            self.class_ids[keep],
        )

    def fingerprint(self, *, with_image_sizes: bool = True) -> str:
        """SHA-256 (hex) of the classes, the labels, and the names and sizes of the image files.

        It is the same for a copy of the data in another place. Images are not read.

        Args:
          with_image_sizes: False leaves out the sizes of the files in bytes, so that a broken image
            may be mended without a change.

        Raises:
          UserError: if an image file has gone.
        """
        digest = hashlib.sha256(repr(self.class_names).encode())
        for path in self.image_paths:
            try:
                size = os.stat(path).st_size if with_image_sizes else 0
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; expected an image file") from None
            digest.update(os.fsencode(f"\0{os.path.basename(path)}\0{size}"))
        for array, kind in (
            (self.offsets, "<i8"),
            (self.boxes_cxcywh, "<f4"),
            (self.class_ids, "<i4"),
        ):
            digest.update(array.astype(kind).tobytes())
        return digest.hexdigest()


@dataclass
class RecordReport:
    """Counts of what was read and of what was left out.

    Attributes:
      images: images with a label file.
      unlabelled_images: images without one, not used.
      empty_frames: of `images`, those that end up without a box.
      boxes: boxes kept.
      small_boxes: boxes left out because of their area.
      bad_rows: rows of label files left out; the first few messages are in `messages`.
    """

    images: int = 0
    unlabelled_images: int = 0
    empty_frames: int = 0
    boxes: int = 0
    small_boxes: int = 0
    bad_rows: int = 0
    messages: list[str] = field(default_factory=list)

    def __add__(self, other: "RecordReport") -> "RecordReport":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        sums["messages"] = sums["messages"][:MESSAGES_KEPT]
        return RecordReport(**sums)

    def lines(self) -> list[str]:
        """The report as text; things left out have a line only if there are any."""
        lines = [f"{self.images} images with {self.boxes} boxes, {self.empty_frames} empty frames"]
        if self.unlabelled_images:
            lines.append(f"{self.unlabelled_images} images without a label file not used")
        if self.small_boxes:
            lines.append(f"{self.small_boxes} boxes smaller than data.min_box_area left out")
        if self.bad_rows:
            lines.append(f"{self.bad_rows} bad rows of label files skipped:")
            lines.extend(f"  {message}" for message in self.messages)
            if self.bad_rows > len(self.messages):
                lines.append(f"  and {self.bad_rows - len(self.messages)} more")
        return lines


def read_records(
    path_pairs: Sequence[PathPair], class_names: tuple[str, ...], *, on_bad_label: str
) -> tuple[Records, RecordReport]:
    """The labelled images of some sets, in the order of the sets, then of the file names.

    Args:
      path_pairs: the sets; every label file needs its image, an image may lack a label file.
      class_names: names of the classes, in order of their index.
      on_bad_label: "error" or "skip", as for `read_label_files`.

    Returns:
      The records with boxes of any size, and a report on files and rows alone.

    Raises:
      UserError: for labels without image, ambiguous names, or a bad row.
    """
    report = RecordReport()
    image_paths: list[str] = []
    labels: list[Labels] = []
    for pair in path_pairs:
        categories = read_categories(pair.label_path)
        matched, unlabelled = _match(pair)
        report.unlabelled_images += unlabelled
        labels += read_label_files(
            [f"{pair.label_path}{os.sep}{label_name}" for _, label_name in matched],
            class_names,
            categories,
            on_bad_label=on_bad_label,
        )
        image_paths += [f"{pair.image_path}{os.sep}{image_name}" for image_name, _ in matched]
    for found in labels:
        report.bad_rows += len(found.problems)
        report.messages += found.problems[: MESSAGES_KEPT - len(report.messages)]

    return records_of(class_names, image_paths, labels), report


def without_small_boxes(records: Records, min_box_area: float) -> tuple[Records, RecordReport]:
    """The records with the boxes that are used, and a report on images and boxes."""
    used = records.with_boxes(large_enough(records, min_box_area))
    return used, RecordReport(
        images=len(used),
        boxes=len(used.class_ids),
        small_boxes=len(records.class_ids) - len(used.class_ids),
        empty_frames=int(np.sum(used.box_counts == 0)),
    )


def records_of(
    class_names: tuple[str, ...], image_paths: Sequence[str], labels: Sequence[Labels]
) -> Records:
    """Records of images with what their label files hold, in this order."""
    return Records(
        class_names,
        tuple(image_paths),
        _offsets(np.array([len(found.class_ids) for found in labels], np.int64)),
        np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes_cxcywh for found in labels)]),
        np.concatenate([np.zeros(0, np.int32), *(found.class_ids for found in labels)]),
    )


def boxes_by_class(records: Records) -> Int[np.ndarray, " k"]:
    """Number of boxes of each class."""
    return np.bincount(records.class_ids, minlength=len(records.class_names))


def large_enough(records: Records, min_box_area: float) -> Bool[np.ndarray, " m"]:
    """True for boxes of at least `min_box_area`, a fraction of the image's."""
    return records.box_areas >= min_box_area * (1 - AREA_ROUNDING)


def mean_anchor(records: Records) -> tuple[float, float]:
    """Mean (w, h) of the boxes of some records, as fractions of the image.

    Raises:
      UserError: there is no box to take a mean of.
    """
    mean_wh = records.mean_wh
    if mean_wh is None:
        raise UserError(
            "model.anchor=auto takes the mean of the training boxes, but there is none: set "
            "--config.model.anchor=W,H as fractions of the image"
        )
    return mean_wh


def boxes_look_like(boxes: Float32[np.ndarray, "m 4"]) -> str | None:
    """A guess at the form of boxes that seem to be no centres and sizes; None if they look right.

    Corners x1 y1 x2 y2: the third number is always above the first, the fourth above the second,
    and as centre and size many would reach over the edge. The upper left corner and size: as centre
    and size some reach over the left or upper edge, but as corner and size none over the others.
    """
    if len(boxes) < LEAST_BOXES:
        return None
    starts, ends = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    before, behind = (starts < -EDGE_ROUNDING).any(1), (ends > 1 + EDGE_ROUNDING).any(1)
    if always_rise(boxes) and (before | behind).mean() > 0.2:
        return "look like corners x1 y1 x2 y2 instead of centre and size"
    if before.sum() >= max(LEAST_BOXES, 0.01 * len(boxes)) and (
        (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + EDGE_ROUNDING
    ):
        return "look like the upper left corner and the size instead of centre and size"
    return None


def always_rise(boxes: Float[np.ndarray, "m 4"]) -> bool:
    """True if all third numbers are above the first ones, and the fourth above the second."""
    return bool((boxes[:, 2:] > boxes[:, :2]).all())


class FilesOfASet(NamedTuple):
    """Names of the files of one set, sorted.

    Attributes:
      matched: (image name, label name) where there is one of each.
      unlabelled: images without a label file.
      without_image: label files without an image.
      ambiguous: (folder, names) of labelled stems with several label files or several images.
      labels: number of label files.
    """

    matched: list[tuple[str, str]]
    unlabelled: list[str]
    without_image: list[str]
    ambiguous: list[tuple[Path, list[str]]]
    labels: int


def list_files(pair: PathPair) -> FilesOfASet:
    """The files in the two folders of a set: pairs of image and label file, and those left over.

    Names that are the same text in another Unicode form go together, too: other systems write
    accents as characters of their own.

    Raises:
      UserError: a folder cannot be read.
    """
    images = _by_stem(pair.image_path, IMAGE_SUFFIXES)
    labels = _by_stem(pair.label_path, LABEL_SUFFIXES)
    _join_unicode_forms(images, labels)
    both = [stem for stem in labels if stem in images]
    ambiguous = [
        (folder, names_of[stem])
        for stem in both
        for folder, names_of in ((pair.label_path, labels), (pair.image_path, images))
        if len(names_of[stem]) > 1
    ]
    return FilesOfASet(
        matched=sorted(
            (images[stem][0], labels[stem][0])
            for stem in both
            if len(images[stem]) == len(labels[stem]) == 1
        ),
        unlabelled=sorted(
            name for stem, names in images.items() if stem not in labels for name in names
        ),
        without_image=[
            name for stem, names in sorted(labels.items()) if stem not in images for name in names
        ],
        ambiguous=ambiguous,
        labels=sum(len(names) for names in labels.values()),
    )


def _join_unicode_forms(images: dict[str, list[str]], labels: dict[str, list[str]]) -> None:
    """Brings labels without an image below the stem of the images of the same text.

    If there are several files of one text on a side, all of them come below one stem, so that they
    are ambiguous.
    """
    without_image = [stem for stem in labels if stem not in images and not stem.isascii()]
    if not without_image:
        return
    forms: dict[str, list[str]] = {}
    for stem in sorted(images):
        if not stem.isascii():
            forms.setdefault(unicodedata.normalize("NFC", stem), []).append(stem)
    for stem in sorted(without_image):
        same = forms.get(unicodedata.normalize("NFC", stem), [])
        # Images with a label file of just their own name are taken, unless nothing else is left.
        free = [other for other in same if other not in labels] or same[:1]
        for other in free[1:]:
            images[free[0]] += images.pop(other)
            same.remove(other)
        if free:
            labels.setdefault(free[0], []).extend(labels.pop(stem))
    # Sorted by name, as all of one stem are.
    for names_of in (images, labels):
        for names in names_of.values():
            names.sort()


def ambiguity(folder: Path, names: Sequence[str]) -> str:
    """The message for files of one folder with the same name but for suffix and Unicode form."""
    differ = "the suffix"
    shown = list(names)
    if len({os.path.splitext(name)[0] for name in names}) > 1:
        differ = "the suffix or the form of Unicode"
        # They look the same when printed.
        shown = [f"{name} ({name!a})" for name in names]
    found = f"{' and '.join(shown)} have the same name but for {differ}"
    return f"{folder}: {found}; expected one of them; remove the other"


def no_labels(pair: PathPair) -> str:
    """The message for a label folder that holds no label file."""
    expected = f"expected {' or '.join(LABEL_SUFFIXES)} files; mend label_path"
    return f"{pair.label_path}: holds no label file; {expected}"


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of the files with these suffixes (in any case), hidden ones left out, by stem."""
    names: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                # A broken link is no folder: it counts as a file, and is reported when read.
                if suffix.lower() in suffixes and stem[0] != "." and not entry.is_dir():
                    names.setdefault(stem, []).append(entry.name)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; expected a readable folder") from None
    return {stem: sorted(found) for stem, found in names.items()}


def _match(pair: PathPair) -> tuple[list[tuple[str, str]], int]:
    """(image name, label name) of each label file of a set, and the number of other images."""
    files = list_files(pair)
    if not files.labels:
        raise UserError(no_labels(pair))
    if missing := files.without_image:
        names = ", ".join(missing[:5])
        names += ", ..." if len(missing) > 5 else ""
        fix = "add the images, or move these files elsewhere"
        if any(os.path.splitext(name)[0] == "classes" for name in missing):
            fix += " (a list of names such as classes.txt belongs beside the folder)"
        raise UserError(
            f"{pair.label_path}: {len(missing)} of {files.labels} label files have no image in "
            f"{pair.image_path}: {names}; expected an image of the same name; {fix}"
        )
    if files.ambiguous:
        raise UserError(ambiguity(*files.ambiguous[0]))
    return files.matched, len(files.unlabelled)


def _offsets(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n_plus_1"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
