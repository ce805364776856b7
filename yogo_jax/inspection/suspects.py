"""Labels that a detector contradicts, over a whole data set, with the place to mend each.

The detector gives its opinions on every label and its own detections. Where the two say different
things of one image is a doubt; the largest doubts of each kind become suspects.
"""

import csv
import dataclasses
import functools
import heapq
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.data.pipeline import EpochOrder, RecordSource, open_batches, padded_box_count
from yogo_jax.data.records import large_enough
from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import Detections, Thresholds, check_numbers
from yogo_jax.detector.grid import cells_of_boxes
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import LossTerms, box_loss, class_loss, objectness_loss
from yogo_jax.detector.nms import PaddedDetections, detect
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.detector.targets import winners_by_cell
from yogo_jax.inspection.audit import Inspection
from yogo_jax.inspection.collected import LabelledImages
from yogo_jax.inspection.findings import MOST_LISTED, Kind, Listing
from yogo_jax.metrics.confusion import match_boxes
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
MAX_DETECTIONS = 2000
# A detection that overlaps a label by this IoU is of the same object, even if badly placed.
NEAR_A_LABEL = 0.3


class LabelScores(NamedTuple):
    """Loss and predictions at the cells of the labels of one image.

    Attributes:
      terms: the weighted loss of each label's cell; their sum over the labels that own their cell
        is the loss of the image less that of the cells without an object.
      objectness: of the label's cell.
      class_probs: of the label's cell.
      owns_cell: False for padding, and for a label whose cell a later one has.
    """

    terms: LossTerms
    objectness: Float[Array, "*b n"]
    class_probs: Float[Array, "*b n k"]
    owns_cell: Bool[Array, "*b n"]


def score_labels(
    predictions: Predictions,
    boxes_cxcywh: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    weights: LossWeights,
) -> LabelScores:
    """The loss of each label of one image at its cell, term by term as `label_loss` has it.

    Args:
      predictions: decoded predictions, classes as logits.
      boxes_cxcywh, class_ids, valid: labels as `bin_targets` takes them.
      weights: of the terms.
    """
    rows, columns = predictions.objectness.shape
    cells = cells_of_boxes(boxes_cxcywh, (rows, columns))
    winner = winners_by_cell(cells, valid, num_cells=rows * columns)
    owns_cell = valid & (winner[cells] == jnp.arange(cells.shape[0], dtype=jnp.int32))

    objectness = predictions.objectness.reshape(-1)[cells]
    logits = predictions.class_logits.reshape(rows * columns, -1)[cells]
    found_cxcywh = predictions.boxes_cxcywh.reshape(-1, 4)[cells]

    cross_entropy = class_loss(logits, class_ids, weights)
    box = box_loss(found_cxcywh, cxcywh_to_xyxy(boxes_cxcywh), owns_cell)
    terms = LossTerms(
        objectness=objectness_loss(objectness, jnp.ones_like(objectness), weights) * owns_cell,
        box=weights.iou_weight * box,
        classification=weights.classify_weight * cross_entropy * owns_cell,
    )
    return LabelScores(terms, objectness, jax.nn.softmax(logits), owns_cell)


class Opinions(NamedTuple):
    """The opinions of a detector on a batch: on each label, and its own detections."""

    labels: LabelScores
    detections: PaddedDetections


class Doubt(NamedTuple):
    """Something that labels and detector say differently of one image.

    Attributes:
      kind: "other_class", "not_found" or "no_label", or "high_loss" for a label with its loss.
      weight: of one kind, the larger the more it should be looked at.
      label: index of the label in its image, None for `no_label`.
      class_id: what the detector takes it for.
      probability: of that class, if there is an object.
      objectness: of the detection, or of the label's cell if there is none.
      loss: of the label's cell; None for `no_label`.
      box_cxcywh: of the label, or of the detection for `no_label`.
    """

    kind: str
    weight: float
    label: int | None
    class_id: int
    probability: float
    objectness: float
    loss: float | None
    box_cxcywh: tuple[float, ...]


def doubts_of_image(
    opinions: Opinions,
    boxes_cxcywh: Float[np.ndarray, "n 4"],
    class_ids: Int[np.ndarray, " n"],
    others_cxcywh: Float[np.ndarray, "m 4"],
    spec: ModelSpec,
    *,
    min_confidence: float,
) -> list[Doubt]:
    """All doubts on the labels of one image; labels that lost their cell are left alone.

    Args:
      opinions: of this image; the first n rows of its labels count.
      boxes_cxcywh: the labels that a training uses.
      class_ids: their classes.
      others_cxcywh: labels that it does not use: objects all the same.
      spec: of the detector.
      min_confidence: least probability of the class for `other_class`, and least objectness times
        probability for `no_label`.
    """
    found = opinions.detections.to_host(spec.class_names, spec.image_hw)
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh)
    losses = np.sum(opinions.labels.terms, axis=0).tolist()
    objectness, class_probs, owns_cell = (np.asarray(array) for array in opinions.labels[1:])

    def doubt(kind: str, weight: float, i: int, seen: float, probs: np.ndarray) -> Doubt:
        box = tuple(boxes_cxcywh[i].tolist())
        return Doubt(kind, weight, i, int(probs.argmax()), float(probs.max()), seen, losses[i], box)

    doubts = []
    matches = match_boxes(found.boxes_xyxy, boxes_xyxy)
    for j, i in zip(matches.prediction_index.tolist(), matches.label_index.tolist(), strict=True):
        probs = found.class_probs[j]
        if owns_cell[i] and probs.argmax() != class_ids[i] and probs.max() >= min_confidence:
            score, seen = float(found.scores[j]), float(found.objectness[j])
            doubts.append(doubt("other_class", score, i, seen, probs))
    for kind, labels in (("not_found", matches.missed), ("high_loss", np.arange(len(class_ids)))):
        for i in labels[owns_cell[labels]].tolist():
            seen = float(objectness[i])
            weight = losses[i] if kind == "high_loss" else 1 - seen
            doubts.append(doubt(kind, weight, i, seen, class_probs[i]))
    everything_xyxy = np.concatenate([boxes_xyxy, cxcywh_to_xyxy(others_cxcywh)])
    return doubts + _without_label(found, everything_xyxy, min_confidence)


def _without_label(
    found: Detections, labels_xyxy: Float[np.ndarray, "n 4"], min_confidence: float
) -> list[Doubt]:
    """Sure detections that are not near any label."""
    overlap = iou(found.boxes_xyxy.astype(np.float64)[:, None], labels_xyxy[None])
    far = overlap.max(axis=1, initial=0) < NEAR_A_LABEL
    boxes_cxcywh = xyxy_to_cxcywh(found.boxes_xyxy)
    return [
        Doubt(
            "no_label",
            float(found.scores[j]),
            None,
            int(found.class_ids[j]),
            float(found.class_probs[j].max()),
            float(found.objectness[j]),
            None,
            tuple(boxes_cxcywh[j].tolist()),
        )
        for j in np.flatnonzero(far & (found.scores >= min_confidence)).tolist()
    ]


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A label, or a detection without one, for a person to look at; a row of `suspects.csv`.

    Attributes:
      kind: a key of `SUSPECT_KINDS`.
      rank: from 1, within its kind.
      split: of the image.
      image, label_file: paths.
      line: of the label in that file; None for a detection without label.
      given: class of the label; None likewise.
      predicted: class that the detector takes it for.
      probability: of that class.
      objectness: of the detection, or of the label's cell.
      loss: of the label's cell, as trained.
      x_center, y_center, width, height: of the box, as in a label file.
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
    """Everything that a detector contradicts: of each of `SUSPECT_KINDS` suspects by their rank."""

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


# A doubt of the largest of its kind: weight, minus its number, the doubt, split, image, and the row
# of the label in its file, small and used ones counted.
_Ranked = tuple[float, int, Doubt, str, int, int | None]


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
    find = functools.partial(
        detect,
        thresholds=Thresholds(),
        max_detections=min(MAX_DETECTIONS, spec.grid_hw[0] * spec.grid_hw[1]),
    )
    score = functools.partial(score_labels, weights=weights)

    @jax.jit
    def step(variables: Any, batch: Any) -> Opinions:
        predictions = spec.predict(variables, batch["image"])
        labels = (batch["boxes_cxcywh"], batch["class_ids"], batch["valid"])
        return Opinions(jax.vmap(score)(predictions, *labels), jax.vmap(find)(predictions))

    counts: Counter[str] = Counter()
    best: dict[str, list[_Ranked]] = {kind: [] for kind in SUSPECT_KINDS}
    used_boxes = {
        split: large_enough(images.records, inspection.min_box_area)
        for split, images in inspection.splits.items()
    }
    readable = _readable(inspection)
    opinions_of_all = _opinions(
        inspection, readable, spec, functools.partial(step, variables), batch_size
    )
    total = sum(map(len, readable.values()))
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
            kind = doubt.kind
            row = None if doubt.label is None else int(np.flatnonzero(keep)[doubt.label])
            counts[kind] += 1
            heapq.heappush(best[kind], (doubt.weight, -counts[kind], doubt, split, i, row))
            if len(best[kind]) > (top if kind == "high_loss" else MOST_LISTED):
                heapq.heappop(best[kind])

    return Suspects(
        {
            kind: Listing(counts[kind], _with_places(best[kind], inspection.splits))
            for kind in SUSPECT_KINDS
        }
    )


def _with_places(best: Sequence[_Ranked], splits: Mapping[str, LabelledImages]) -> list[Suspect]:
    """The doubts of one kind as suspects; label files are read again for their lines."""
    lines_of = functools.cache(lambda split, i: splits[split].lines_of(i))
    suspects = []
    ranked = sorted(best, key=lambda entry: entry[:2], reverse=True)
    for rank, (_, _, doubt, split, i, row) in enumerate(ranked, start=1):
        images = splits[split].records
        suspects.append(
            Suspect(
                doubt.kind,
                rank,
                split,
                images.image_paths[i],
                splits[split].label_paths[i],
                None if row is None else lines_of(split, i)[row],
                None if row is None else images.class_names[images.labels_of(i)[1][row]],
                images.class_names[doubt.class_id],
                round(doubt.probability, 4),
                round(doubt.objectness, 4),
                None if doubt.loss is None else round(doubt.loss, 4),
                *(round(value, 6) for value in doubt.box_cxcywh),
            )
        )
    return suspects


def _opinions(
    inspection: Inspection,
    readable: Mapping[str, np.ndarray],
    spec: ModelSpec,
    step: Callable[[Any], Opinions],
    batch_size: int,
) -> Iterator[tuple[str, int, Opinions]]:
    """Yields split and index of each image that can be read, and the opinions on it."""
    max_boxes = padded_box_count([*inspection.used.values()], 0)
    for split, chosen in readable.items():
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
    broken = np.array([*inspection.scanned.problems], int)
    readable, start = {}, 0
    for split, images in inspection.splits.items():
        readable[split] = np.setdiff1d(np.arange(len(images)), broken - start)
        start += len(images)
    return readable
