"""Labels that a detector contradicts, over a whole data set, with the place to mend each."""

import csv
import dataclasses
import functools
import heapq
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from yogo_jax.data.pipeline import EpochOrder, open_batches
from yogo_jax.data.records import large_enough
from yogo_jax.data.source import RecordSource, padded_box_count
from yogo_jax.detector.detections import check_numbers
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.inspection.audit import Inspection
from yogo_jax.inspection.collected import LabelledImages
from yogo_jax.inspection.doubts import Doubt, Opinions, doubts_of_image, make_opinion_step
from yogo_jax.inspection.findings import MOST_LISTED, Kind, Listing
from yogo_jax.progress import with_progress


# In the advice also the order, as suspects are ranked.
SUSPECT_KINDS = {
    "other_class": Kind(
        "labels of another class than the detector sees",
        "The surest first. Correct the class in the label file where the detector is right.",
    ),
    "no_label": Kind(
        "detections without a label",
        "The surest first. Add a row to the label file where an object was forgotten.",
    ),
    "not_found": Kind(
        "labels that the detector does not find",
        "The least objectness first. Remove or correct a box with nothing in it.",
    ),
    "high_loss": Kind(
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

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"

    @property
    def message(self) -> str:
        """The class of the label, and what the detector sees in its place."""
        seen = f"{self.predicted} {self.probability:.2f}, objectness {self.objectness:.2f}"
        given = f"{self.given}, seen as {seen}" if self.given else f"seen as {seen}"
        return given if self.loss is None else f"{given}, loss {self.loss:.2f}"


@dataclasses.dataclass(frozen=True)
class Suspects:
    """Everything that a detector contradicts.

    Attributes:
      found: kind -> suspects in the order of their rank, for each of `SUSPECT_KINDS`.
    """

    found: dict[str, Listing[Suspect]]

    @property
    def count(self) -> int:
        """Contradictions of all kinds; the ranking by loss has good labels too, and is none."""
        return sum(found.count for kind, found in self.found.items() if kind != "high_loss")

    @property
    def warning(self) -> str:
        """The reason not to believe the detector; empty if it finds most of the labels."""
        labels, lost = self.found["high_loss"].count, self.found["not_found"].count
        if 2 * lost <= labels:
            return ""
        return (
            f"The detector finds only {labels - lost:,} of {labels:,} labels: it does not know "
            "images like these, or not in the size that it was trained for. Change no label "
            "because of it."
        )

    def lines(self) -> list[str]:
        """All kinds as text, with the first suspects of each."""
        lines = [self.warning] if self.warning else []
        for kind, found in self.found.items():
            lines += found.lines(SUSPECT_KINDS[kind])
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            kind: {
                "count": found.count,
                "title": SUSPECT_KINDS[kind].title,
                "listed": [dataclasses.asdict(suspect) for suspect in found.listed],
            }
            for kind, found in self.found.items()
        }

    def to_csv(self) -> str:
        """A table with a row for each that is listed."""
        buffer = io.StringIO()
        names = [field.name for field in dataclasses.fields(Suspect)]
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        for suspect in itertools.chain(*(found.listed for found in self.found.values())):
            writer.writerow(dataclasses.asdict(suspect))
        return buffer.getvalue()


class _Place(NamedTuple):
    split: str
    image: int
    row: int | None  # of the label in its file, small and used ones counted


class _Best:
    """The doubts of each kind with the largest weights."""

    def __init__(self, most: Mapping[str, int]) -> None:
        self.counts: Counter[str] = Counter()
        self._most = most
        self._heaps: dict[str, list[tuple[float, int, Doubt, _Place]]] = {
            kind: [] for kind in SUSPECT_KINDS
        }
        self._order = itertools.count(0, -1)

    def add(self, doubt: Doubt, place: _Place) -> None:
        """Counts a doubt, and keeps it if it is among the largest; of equal ones the first."""
        self.counts[doubt.kind] += 1
        heap = self._heaps[doubt.kind]
        heapq.heappush(heap, (doubt.weight, next(self._order), doubt, place))
        if len(heap) > self._most[doubt.kind]:
            heapq.heappop(heap)

    def ranked(self, kind: str) -> list[tuple[Doubt, _Place]]:
        """Those kept of a kind, the largest first."""
        heap = sorted(self._heaps[kind], key=lambda entry: entry[:2], reverse=True)
        return [(doubt, place) for _, _, doubt, place in heap]


def find_suspects(
    inspection: Inspection,
    spec: ModelSpec,
    variables: Mapping[str, Any],
    *,
    weights: LossWeights,
    batch_size: int,
    min_confidence: float,
    top: int,
) -> Suspects:
    """Everything that a detector contradicts in the labels of all splits, but unreadable images.

    Args:
      inspection: of the data, with the classes of the detector.
      spec: of the detector.
      variables: its weights.
      weights: of the loss by which labels are ranked.
      batch_size: images at a time.
      min_confidence: as for `doubts_of_image`.
      top: labels to rank by their loss.

    Raises:
      UserError: the network gives numbers that are not finite.
    """
    best = _Best({**dict.fromkeys(SUSPECT_KINDS, MOST_LISTED), "high_loss": top})
    step = jax.jit(make_opinion_step(spec, weights, objectness_threshold=0.5, iou_threshold=0.5))
    used_boxes = {
        split: large_enough(images.records, inspection.min_box_area)
        for split, images in inspection.splits.items()
    }
    opinions_of_all = _opinions(inspection, spec, functools.partial(step, variables), batch_size)
    total = sum(map(len, _readable(inspection).values()))
    for split, i, opinions in with_progress(opinions_of_all, what="labels of images", total=total):
        images, used = inspection.splits[split].records, inspection.used[split]
        check_numbers(int(opinions.detections.unusable), images.image_paths[i])
        boxes_cxcywh, _ = images.labels_of(i)
        keep = used_boxes[split][images.offsets[i] : images.offsets[i + 1]]
        for doubt in doubts_of_image(
            opinions,
            *used.labels_of(i),
            boxes_cxcywh[~keep],
            spec,
            min_confidence=min_confidence,
        ):
            row = None if doubt.label is None else int(np.flatnonzero(keep)[doubt.label])
            best.add(doubt, _Place(split, i, row))
    return _resolve(best, inspection.splits)


def _opinions(
    inspection: Inspection,
    spec: ModelSpec,
    step: Callable[[Any], Opinions],
    batch_size: int,
) -> Iterator[tuple[str, int, Opinions]]:
    """Split and index of each image that can be read, and the opinions on it."""
    max_boxes = padded_box_count([*inspection.used.values()], 0)
    for split, chosen in _readable(inspection).items():
        if not len(chosen):
            continue
        source = RecordSource(
            inspection.used[split].subset(chosen),
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            max_boxes=max_boxes,
            apply_orientation=spec.apply_orientation,
        )
        order = EpochOrder(num_records=len(source), batch_size=batch_size, seed=None)
        with open_batches(source, order) as batches:
            for batch in batches:
                outputs = jax.device_get(step(jax.device_put(batch)))
                for slot in np.flatnonzero(batch["image_valid"]).tolist():
                    one = jax.tree.map(lambda array, slot=slot: array[slot], outputs)
                    yield split, int(chosen[batch["record_index"][slot]]), one


def _readable(inspection: Inspection) -> dict[str, np.ndarray]:
    """Split -> indices of its images that could be decoded."""
    readable, start = {}, 0
    for split, images in inspection.splits.items():
        broken = [
            i - start for i in inspection.scanned.problems if start <= i < start + len(images)
        ]
        readable[split] = np.setdiff1d(np.arange(len(images)), np.array(broken, int))
        start += len(images)
    return readable


def _resolve(best: _Best, splits: Mapping[str, LabelledImages]) -> Suspects:
    """Suspects with their places in label files, which are read again for the purpose."""
    lines: dict[tuple[str, int], list[int]] = {}
    suspects = {kind: Listing[Suspect](best.counts[kind]) for kind in SUSPECT_KINDS}
    for kind, found in suspects.items():
        for rank, (doubt, place) in enumerate(best.ranked(kind), start=1):
            images = splits[place.split]
            line, given = None, None
            if place.row is not None:
                key = (place.split, place.image)
                if key not in lines:
                    lines[key] = images.lines_of(place.image)
                line = lines[key][place.row]
                class_id = images.records.labels_of(place.image)[1][place.row]
                given = images.records.class_names[class_id]
            found.listed.append(
                Suspect(
                    kind,
                    rank,
                    place.split,
                    images.records.image_paths[place.image],
                    images.label_paths[place.image],
                    line,
                    given,
                    images.records.class_names[doubt.class_id],
                    round(doubt.probability, 4),
                    round(doubt.objectness, 4),
                    None if doubt.loss is None else round(doubt.loss, 4),
                    *(round(value, 6) for value in doubt.box_cxcywh),
                )
            )
    return Suspects(suspects)
