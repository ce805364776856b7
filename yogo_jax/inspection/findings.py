"""Findings: single things that are wrong with a data set, by kinds that say what to do."""

from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar


# Of one kind so many are listed; all of them are counted.
MOST_LISTED = 10_000
Item = TypeVar("Item")


class Kind(NamedTuple):
    """A kind of finding: its title on pages and in tables, and what to do about it."""

    title: str
    advice: str


# In the order of reports: what stops a training first, then what spoils its figures, then what
# only costs a little.
KINDS = {
    "boxes_in_pixels": Kind(
        "sets whose boxes look like pixels",
        "Divide x and width by the width of the image, y and height by its height.",
    ),
    "other_box_form": Kind(
        "sets whose boxes look like no centres and sizes",
        "If so, convert them. Corners may stay, with `class xmin ymin xmax ymax` as the first row "
        "of each file.",
    ),
    "classes_from_one": Kind(
        "sets whose classes seem to count from 1",
        "If so, subtract 1, or put a notes.json beside the label folder that names each number: "
        '{"categories": [{"id": 1, "name": "ring"}, ...]}.',
    ),
    "bad_label": Kind(
        "bad rows of label files",
        "Correct the row, or train with --config.data.on_bad_label=skip, which leaves it out.",
    ),
    "unreadable_label_file": Kind(
        "label files that cannot be read",
        "Save as UTF-8 text, or remove the file: the image then counts as unlabelled.",
    ),
    "label_without_image": Kind(
        "label files without an image",
        "Add the image or move the label file elsewhere: training refuses the data as it is.",
    ),
    "ambiguous_name": Kind(
        "names with two images or two label files",
        "Remove one of the two: training refuses the data as it is.",
    ),
    "set_without_labels": Kind(
        "label folders without a label file",
        "Mend label_path in the definition: training refuses the data as it is.",
    ),
    "unreadable_image": Kind(
        "images that cannot be read",
        "Copy them again or convert them: a training stops when it meets one.",
    ),
    "oriented_image": Kind(
        "images with an orientation (EXIF or TIFF tag)",
        "Look whether the boxes fit the picture: viewers turn such an image, and so does a "
        "training unless --config.data.apply_orientation=False.",
    ),
    "empty_training_split": Kind(
        "a training split without images",
        "Add data under dataset_paths, or raise the train fraction.",
    ),
    "image_in_two_splits": Kind(
        "image files in two splits",
        "Name the folder (or the links to it) in one set only: training refuses it as it is.",
    ),
    "identical_across_splits": Kind(
        "groups of identical images across splits",
        "Keep one of each group: a model is tested on what it was trained on.",
    ),
    "near_duplicate_across_splits": Kind(
        "groups of nearly the same frame across splits",
        "Move each group into one split: test figures come out too good.",
    ),
    "identical_within_split": Kind(
        "groups of identical images within a split",
        "Keep one of each group: copies count double in training and in figures.",
    ),
    "near_duplicate_within_split": Kind(
        "groups of nearly the same frame within a split",
        "Look whether they say anything new; a random split would tear them apart.",
    ),
    "unlabelled_image": Kind(
        "images without a label file",
        "Label them. If there is nothing on a frame, give it an empty label file.",
    ),
    "class_missing_from_split": Kind(
        "classes that a split lacks",
        "Split otherwise: what is not trained is not found, what is not tested is not known.",
    ),
    "class_without_box": Kind(
        "classes without any box",
        "Look for a mistake in class_names; a class may stay if its data is still to come.",
    ),
    "class_of_small_boxes": Kind(
        "classes most of whose training boxes are under the least area",
        "Lower --config.data.min_box_area: what is left out is not learnt.",
    ),
    "duplicate_box": Kind(
        "boxes drawn twice",
        "Remove one of the two: a detector that finds the cell once misses the other box.",
    ),
    "shared_cell": Kind(
        "boxes that lose their cell of the grid",
        "Of two boxes in a cell the later one is learnt: choose a larger image size if many.",
    ),
    "outgrown_field": Kind(
        "classes larger than what a cell of the network sees",
        "Train at the --config.data.image_hw that is named, or with a network that sees more "
        "(--architecture): objects larger than the receptive field get poor boxes.",
    ),
    "overhanging_box": Kind(
        "boxes that reach over the edge of the image",
        "Allowed, but predictions are cut at the edge: cut such boxes there for a better fit.",
    ),
    "small_box": Kind(
        "boxes under the least area",
        "They are left out everywhere: lower --config.data.min_box_area to have them.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      kind: a key of `KINDS`.
      place: a file, `file:line`, or the name of a split or class.
      message: what is wrong there.
      images: paths of images to look at.
      boxes_cxcywh: boxes to look at on the first of them, fractions of the image.
      values: numbers for machines.
    """

    kind: str
    place: str
    message: str
    images: tuple[str, ...] = ()
    boxes_cxcywh: tuple[tuple[float, ...], ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "place": self.place,
            "message": self.message,
            "images": list(self.images),
            "boxes_cxcywh": [list(box) for box in self.boxes_cxcywh],
            **self.values,
        }


@dataclass
class Listing(Generic[Item]):
    """Items of one kind, findings or suspects: their count, and those that are listed."""

    count: int = 0
    listed: list[Item] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Items that may still be listed."""
        return max(MOST_LISTED - len(self.listed), 0)

    def add(self, item: Item) -> None:
        """Counts an item, and lists it if there is room."""
        self.count += 1
        if self.room:
            self.listed.append(item)

    def lines(self, kind: Kind, most: int = 3) -> list[str]:
        """The kind with its count and advice as text, and the first items."""
        lines = ["", f"{kind.title}: {self.count:,}", f"  {kind.advice}"]
        lines += [f"  - {item}" for item in self.listed[:most]]
        if self.count > most:
            lines.append(f"  - and {self.count - most:,} more")
        return lines
