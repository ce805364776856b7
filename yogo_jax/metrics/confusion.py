"""Pairs of detections and true boxes, their counts over a data set, and their calibration.

An accumulator takes one image at a time and keeps counts only, so its size does not grow.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.boxes import iou


CALIBRATION_BINS = 30
BACKGROUND = "background"
# Up to so many pairs all of them are looked at; beyond, only those of neighbours, which grow with
# the boxes and not with their square.
_MOST_PAIRS_AT_ONCE = 20_000


class Matches(NamedTuple):
    """Predictions and labels of one image, paired one to one; what is left over on either side.

    `prediction_index[i]` is paired with `label_index[i]`; pairs are in order of the prediction.
    """

    prediction_index: Int[np.ndarray, " pairs"]
    label_index: Int[np.ndarray, " pairs"]
    missed: Int[np.ndarray, " missed"]  # labels without a prediction
    extra: Int[np.ndarray, " extra"]  # predictions without a label


def match_boxes(
    prediction_boxes_xyxy: Float[np.ndarray, "n 4"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    *,
    min_iou: float = 0.5,
) -> Matches:
    """The one-to-one pairing of one image that has the largest sum of IoU, classes ignored.

    The Hungarian assignment on `1 - IoU`. A pair under `min_iou` counts for nothing in that sum
    and is not kept: its label is missed and its prediction is extra.

    Args:
      prediction_boxes_xyxy: kept predictions, in any unit that the labels share.
      label_boxes_xyxy: the true boxes.
      min_iou: floor of a pair, which itself is still a pair. 0 keeps all `min(n, m)` pairs, even
        of boxes that do not touch, as the original implementation does.

    References:
      Kuhn 1955, The Hungarian method for the assignment problem.
    """
    predictions = prediction_boxes_xyxy.astype(np.float64)
    labels = label_boxes_xyxy.astype(np.float64)
    if min_iou > 0 and len(predictions) * len(labels) > _MOST_PAIRS_AT_ONCE:
        rows, columns = _assign_neighbours(predictions, labels, min_iou)
    else:
        rows, columns = _assign(iou(predictions[:, None], labels[None]), min_iou)
    return Matches(
        prediction_index=rows,
        label_index=columns,
        missed=np.setdiff1d(np.arange(len(labels)), columns),
        extra=np.setdiff1d(np.arange(len(predictions)), rows),
    )


class DetectionMetrics:
    """Confusion, precision, recall, accuracy and calibration of detections against true boxes.

    Predictions are paired with true boxes by `match_boxes`, whatever their classes. Calibration is
    that of the most probable class.

    Args:
      class_names: names in the order of the class ids.
      min_iou: floor of a pair (0: none, as the original implementation counts).
    """

    def __init__(self, class_names: Sequence[str], *, min_iou: float = 0.5) -> None:
        self.class_names = tuple(class_names)
        self.min_iou = min_iou
        self._images = 0
        # Row = true class, column = predicted class; the last of both is the background.
        self._confusion = np.zeros((len(class_names) + 1,) * 2, np.int64)
        self._calibration = Calibration()

    def update(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        class_probs: Float[np.ndarray, "n k"],
        label_boxes_xyxy: Float[np.ndarray, "m 4"],
        label_class_ids: Int[np.ndarray, " m"],
        class_ids: Int[np.ndarray, " n"] | None = None,
    ) -> Matches:
        """Adds one image: its kept predictions (after thresholds and NMS) and its true boxes.

        Args:
          boxes_xyxy: predicted boxes in [0, 1].
          class_probs: probability of each class of each prediction; not logits.
          label_boxes_xyxy: true boxes in [0, 1].
          label_class_ids: index into `class_names` of each true box.
          class_ids: decided class of each prediction; None: the most probable.

        Returns:
          The pairs of predictions and true boxes.

        Raises:
          ValueError: `class_probs` are not probabilities of these classes, or a class id is out of
            range.
        """
        classes = len(self.class_names)
        _check_probabilities(class_probs, classes)
        check_class_ids(label_class_ids, classes)
        most_probable = class_probs.argmax(axis=1)
        class_ids = most_probable if class_ids is None else class_ids
        pairs = match_boxes(boxes_xyxy, label_boxes_xyxy, min_iou=self.min_iou)
        self._confusion += confusion_of(class_ids, label_class_ids, pairs, classes)
        self._calibration.update(
            class_probs[pairs.prediction_index].max(axis=1, initial=0.0),
            most_probable[pairs.prediction_index] == label_class_ids[pairs.label_index],
        )
        self._images += 1
        return pairs

    def compute(self, *, include_background: bool = True) -> dict[str, Any]:
        """The metrics of the images so far, ready for JSON: None where nothing was there to count.

        Args:
          include_background: False leaves missed boxes and extra predictions out of the confusion
            matrix, of precision and of recall: matched pairs only, as the original implementation
            reports them (with `min_iou=0`).

        Returns:
          - `confusion`: `class_names` and `matrix`, row = true class, column = predicted class.
            With the background, its column holds the missed boxes and its row the extra
            predictions.
          - `precision_by_class`: share of the predictions of a class that are right.
          - `recall_by_class`: share of the true boxes of a class that are found and named right.
          - `accuracy_by_class`: share of the *matched* true boxes of a class that are named right.
          - `calibration_error`: mean distance between confidence and accuracy of matched pairs,
            in 30 bins.
          - `missed_by_class`, `extra_by_class`: counts by true and by predicted class.
          - `images`, `objects` (true boxes), `predictions`, `matched`: counts.

        References:
          Guo et al. 2017, On calibration of modern neural networks, arXiv:1706.04599.
        """
        paired = self._confusion[:-1, :-1]
        counted = self._confusion if include_background else paired
        right = paired.diagonal()
        missed, extra = self._confusion[:-1, -1], self._confusion[-1, :-1]
        names = self.class_names
        if include_background:
            names = (*names, name_beside(names, BACKGROUND))
        classes = len(self.class_names)
        return {
            "confusion": {"class_names": list(names), "matrix": counted.tolist()},
            "precision_by_class": self._by_class(_ratio(right, counted.sum(axis=0)[:classes])),
            "recall_by_class": self._by_class(_ratio(right, counted.sum(axis=1)[:classes])),
            "accuracy_by_class": self._by_class(_ratio(right, paired.sum(axis=1))),
            "calibration_error": self._calibration.compute(),
            "missed_by_class": self._by_class(missed.tolist()),
            "extra_by_class": self._by_class(extra.tolist()),
            "images": self._images,
            "objects": int(paired.sum() + missed.sum()),
            "predictions": int(paired.sum() + extra.sum()),
            "matched": int(paired.sum()),
        }

    def _by_class(self, values: list[Any]) -> dict[str, Any]:
        return dict(zip(self.class_names, values, strict=True))


class Calibration:
    """Expected calibration error (L1) from the sums of equally wide bins of confidence.

    Attributes:
      pairs: how many fell into each bin.
      confidence: the sum of their confidences, per bin.
      correct: how many of them were right, per bin.
    """

    def __init__(self) -> None:
        # float32 as the confidences are: the float32 nearest to 0.7 must fall in the bin of 0.7.
        self._edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1, dtype=np.float32)
        self.pairs = np.zeros(CALIBRATION_BINS, np.int64)
        self.confidence = np.zeros(CALIBRATION_BINS)
        self.correct = np.zeros(CALIBRATION_BINS)

    def update(
        self, confidence: Float[np.ndarray, " pairs"], correct: Bool[np.ndarray, " pairs"]
    ) -> None:
        """Adds matched pairs: the probability of the named class, and whether it is the true one.

        A bin owns its lower edge; the last one owns 1.0 as well.
        """
        bins = np.searchsorted(self._edges, confidence.astype(np.float32), side="right") - 1
        bins = np.clip(bins, 0, CALIBRATION_BINS - 1)
        np.add.at(self.pairs, bins, 1)
        np.add.at(self.confidence, bins, confidence)
        np.add.at(self.correct, bins, correct)

    def compute(self) -> float | None:
        """The error; None without a pair."""
        if not self.pairs.any():
            return None
        return float(np.abs(self.correct - self.confidence).sum() / self.pairs.sum())


def confusion_of(
    predicted_ids: Int[np.ndarray, " n"],
    label_class_ids: Int[np.ndarray, " m"],
    matches: Matches,
    classes: int,
) -> Int[np.ndarray, "k_and_background k_and_background"]:
    """Counts of one image: row = true class, column = predicted class, last = background."""
    counts = np.zeros((classes + 1,) * 2, np.int64)
    pairs = label_class_ids[matches.label_index], predicted_ids[matches.prediction_index]
    np.add.at(counts, pairs, 1)
    np.add.at(counts, (label_class_ids[matches.missed], classes), 1)
    np.add.at(counts, (classes, predicted_ids[matches.extra]), 1)
    return counts


def name_beside(class_names: Sequence[str], name: str) -> str:
    """Returns the name for a row or column beside those of the classes, such as a total.

    Stars are put behind it until no class has the name.
    """
    while name in class_names:
        name += "*"
    return name


def check_class_ids(class_ids: Int[np.ndarray, " n"], classes: int) -> None:
    """Refuses ids of none of the classes: a negative one would count as another class."""
    if class_ids.size and not 0 <= class_ids.min() <= class_ids.max() < classes:
        raise ValueError(
            f"class ids must lie in [0, {classes}), got {class_ids.min()} to {class_ids.max()}"
        )


def _check_probabilities(class_probs: Float[np.ndarray, "n k"], classes: int) -> None:
    """Refuses logits, which a threshold or a calibration would silently misread."""
    if class_probs.shape[1] != classes:
        raise ValueError(f"{classes} classes, but class_probs has {class_probs.shape[1]} columns")
    # Half precision may sum a softmax to a little above 1. NaN fails the comparison, as it should.
    if class_probs.size and not (class_probs.min() >= 0.0 and class_probs.max() <= 1.001):
        raise ValueError(
            "class_probs must be probabilities in [0, 1], got "
            f"{class_probs.min()} to {class_probs.max()}: apply softmax to logits first"
        )


def _ratio(part: Int[np.ndarray, " k"], whole: Int[np.ndarray, " k"]) -> list[float | None]:
    """`part / whole`, and None where the whole is empty."""
    return [int(p) / int(w) if w else None for p, w in zip(part, whole, strict=True)]


def _assign(
    overlap: Float[np.ndarray, "n m"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Rows and columns of the kept pairs, from the IoU of all pairs."""
    # Late: a training that has not come to its first evaluation has no need of it.
    from scipy.optimize import linear_sum_assignment

    allowed = overlap >= min_iou
    # Forbidden pairs are priced before the assignment, not struck out after it: else two useless
    # overlaps of 0.4 would be preferred to one good one of 0.7, and then be thrown away.
    rows, columns = linear_sum_assignment(np.where(allowed, 1.0 - overlap, 1.0))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def _assign_neighbours(
    predictions: Float[np.ndarray, "n 4"], labels: Float[np.ndarray, "m 4"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """The same for a floor above 0: group by group of boxes that allowed pairs hold together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = side_by_side(predictions, labels)
    overlap = iou(predictions[rows], labels[columns])
    allowed = overlap >= min_iou
    rows, columns, overlap = rows[allowed], columns[allowed], overlap[allowed]
    n, m = len(predictions), len(labels)
    graph = coo_array((np.ones(len(rows)), (rows, n + columns)), shape=(n + m, n + m))
    _, group_of = connected_components(graph, directed=False)
    by_group = np.argsort(group_of[rows], kind="stable")
    sizes = np.unique(group_of[rows], return_counts=True)[1]
    chosen = []
    for group in np.split(by_group, np.cumsum(sizes)[:-1]):
        if len(group) > 1:
            own_rows, at_row = np.unique(rows[group], return_inverse=True)
            own_columns, at_column = np.unique(columns[group], return_inverse=True)
            own_overlap = np.zeros((len(own_rows), len(own_columns)))
            own_overlap[at_row, at_column] = overlap[group]
            kept_rows, kept_columns = _assign(own_overlap, min_iou)
            chosen.append((own_rows[kept_rows], own_columns[kept_columns]))
        else:
            chosen.append((rows[group], columns[group]))
    rows, columns = (np.concatenate(each) for each in zip(*chosen, strict=True))
    order = np.argsort(rows)
    return rows[order], columns[order]


def side_by_side(
    first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """All pairs that share some x, and some that do not: no other can overlap."""
    order = np.argsort(second[:, 0])
    left = second[order, 0]
    widest = (second[:, 2] - second[:, 0]).max(initial=0)
    begin = np.searchsorted(left, first[:, 0] - widest, side="left")
    end = np.maximum(np.searchsorted(left, first[:, 2], side="right"), begin)
    counts = end - begin
    rows = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, order[np.repeat(begin, counts) + within]
