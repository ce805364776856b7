"""Labels that a detector contradicts, over a whole data set, with the place to mend each."""

import csv
import dataclasses
import io
import itertools
from typing import Any, NamedTuple


class SuspectKind(NamedTuple):
    """A kind of suspect: its title, and how it is ranked and what to do."""

    title: str
    advice: str


SUSPECT_KINDS = {
    "other_class": SuspectKind(
        "labels of another class than the detector sees",
        "The surest first. Correct the class in the label file where the detector is right.",
    ),
    "no_label": SuspectKind(
        "detections without a label",
        "The surest first. Add a row to the label file where an object was forgotten.",
    ),
    "not_found": SuspectKind(
        "labels that the detector does not find",
        "The least objectness first. Remove or correct a box with nothing in it.",
    ),
    "high_loss": SuspectKind(
        "labels ranked by their loss",
        "The largest first: class, place or size differ from what the detector expects.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A label, or a detection without one, for a person to look at; a row of `suspects.csv`.

    Attributes:
      kind: a key of `SUSPECT_KINDS`.
      rank: from 1, within its kind.
      split: of the image.
      image: path.
      label_file: path.
      line: of the label in that file; None for a detection without label.
      given: class of the label; None likewise.
      predicted: class that the detector takes it for.
      probability: of that class.
      objectness: of the detection, or of the label's cell.
      loss: of the label's cell, as trained.
      x_center: of the box, as in a label file, like the next three.
      y_center: likewise.
      width: likewise.
      height: likewise.
    """

    kind: str
    rank: int
    split: str
    image: str
    label_file: str
    line: int | None
    given: str | None
    predicted: str
    probability: float
    objectness: float
    loss: float | None
    x_center: float
    y_center: float
    width: float
    height: float

    @property
    def place(self) -> str:
        """`file:line`, or the file alone for a detection without label."""
        return self.label_file if self.line is None else f"{self.label_file}:{self.line}"

    def describe(self) -> str:
        """What label and detector say."""
        seen = f"{self.predicted} {self.probability:.2f}, objectness {self.objectness:.2f}"
        given = f"{self.given}, seen as {seen}" if self.given else f"seen as {seen}"
        return given if self.loss is None else f"{given}, loss {self.loss:.2f}"


@dataclasses.dataclass(frozen=True)
class Suspects:
    """Kind -> how many there are, and those that are listed, in the order of their rank."""

    counts: dict[str, int]
    listed: dict[str, list[Suspect]]

    @property
    def count(self) -> int:
        """Contradictions of all kinds; the ranking by loss holds good labels, too, and is none."""
        return sum(n for kind, n in self.counts.items() if kind != "high_loss")

    @property
    def warning(self) -> str:
        """Why not to believe the detector; empty if it finds most of the labels."""
        labels, lost = self.counts["high_loss"], self.counts["not_found"]
        if 2 * lost <= labels:
            return ""
        return (
            f"The detector finds only {labels - lost:,} of {labels:,} labels: it does not know "
            "images like these, or not in the size that it was trained for. Change no label "
            "because of it."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            kind: {
                "count": self.counts[kind],
                "title": SUSPECT_KINDS[kind].title,
                "listed": [dataclasses.asdict(suspect) for suspect in listed],
            }
            for kind, listed in self.listed.items()
        }

    def to_csv(self) -> str:
        """A table with a row for each that is listed."""
        buffer = io.StringIO()
        names = [field.name for field in dataclasses.fields(Suspect)]
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        for suspect in itertools.chain(*self.listed.values()):
            writer.writerow(dataclasses.asdict(suspect))
        return buffer.getvalue()
