"""All detections of a data set, best first, and which of them find a true box, as COCO decides it.

Mean AP, its intervals and the curves are made of these decisions.

References:
  Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.boxes import iou


COCO_IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Of one frame; COCO's own limit of 100 is too few for a field of cells.
MAX_DETECTIONS = 2000


class Ranking(NamedTuple):
    """Detections of all images in descending order of their score.

    Attributes:
      image_index: which image each is of, [d].
      class_ids: their classes, [d].
      scores: what they are ranked by, [d].
      is_true: whether each finds a true box of its class, [d ious].
      objects: true boxes of each class in each image, [images k].
    """

    image_index: Int[np.ndarray, " d"]
    class_ids: Int[np.ndarray, " d"]
    scores: Float[np.ndarray, " d"]
    is_true: Bool[np.ndarray, "d ious"]
    objects: Int[np.ndarray, "images k"]

    def of_class(self, class_id: int | None) -> "Ranking":
        """Only the detections and objects of one class, which are then [images 1]; None: of all."""
        if class_id is None:
            return self._replace(objects=self.objects.sum(1, keepdims=True))
        kept = self.class_ids == class_id
        return Ranking(
            self.image_index[kept],
            self.class_ids[kept],
            self.scores[kept],
            self.is_true[kept],
            self.objects[:, class_id : class_id + 1],
        )


class RankedImage(NamedTuple):
    """The detections of one image that count, best first; see `Ranking`."""

    class_ids: Int[np.ndarray, " d"]
    scores: Float[np.ndarray, " d"]
    is_true: Bool[np.ndarray, "d ious"]
    label_class_ids: Int[np.ndarray, " m"]


def rank_image(
    boxes_xyxy: Float[np.ndarray, "d 4"],
    scores: Float[np.ndarray, " d"],
    class_ids: Int[np.ndarray, " d"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    label_class_ids: Int[np.ndarray, " m"],
    *,
    ious: Sequence[float] | Float[np.ndarray, " ious"] = COCO_IOUS,
) -> RankedImage:
    """Ranks the detections of one image, and decides which find a true box.

    The best detection chooses first: of the true boxes of its class that overlap it enough and are
    free it takes the one of the largest IoU, of equal ones the last.
    """
    thresholds = np.minimum(np.asarray(ious, np.float64), 1 - 1e-10)  # as COCO's code does
    order = np.argsort(-scores, kind="stable")
    boxes, labels = boxes_xyxy[order].astype(np.float64), label_boxes_xyxy.astype(np.float64)
    same_class = class_ids[order][:, None] == label_class_ids[None]
    overlap = np.where(same_class, iou(boxes[:, None], labels[None]), 0.0)
    is_true = np.zeros((len(boxes), len(thresholds)), bool)
    free = np.ones((len(thresholds), len(labels)), bool)
    levels = np.arange(len(thresholds))
    # Most false alarms overlap nothing: they have nothing to choose from.
    for row in np.flatnonzero((overlap >= thresholds[0]).any(1)):
        offers = np.where(free & (overlap[row] >= thresholds[:, None]), overlap[row], -1.0)
        chosen = len(labels) - 1 - offers[:, ::-1].argmax(1)
        is_true[row] = offers[levels, chosen] >= 0
        free[levels[is_true[row]], chosen[is_true[row]]] = False
    return RankedImage(class_ids[order], scores[order], is_true, label_class_ids)


def merge(images: Sequence[RankedImage], classes: int) -> Ranking:
    """The ranking of all images."""
    if not images:
        none, objects = np.zeros(0, np.int64), np.zeros((0, classes), np.int64)
        return Ranking(none, none, np.zeros(0), np.zeros((0, len(COCO_IOUS)), bool), objects)
    scores = np.concatenate([image.scores for image in images])
    index = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])
    order = np.argsort(-scores, kind="stable")
    return Ranking(
        index[order],
        np.concatenate([image.class_ids for image in images])[order],
        scores[order],
        np.concatenate([image.is_true for image in images])[order],
        np.array([np.bincount(image.label_class_ids, minlength=classes) for image in images]),
    )


def average_precision(
    ranking: Ranking, weights: Int[np.ndarray, "r images"]
) -> Float[np.ndarray, "r ious"]:
    """COCO's AP of one class, for each row of weights and at each IoU; NaN without a true box.

    Precision is interpolated at 101 recalls.

    Args:
      ranking: of one class, see `Ranking.of_class`.
      weights: how often each image counts.
    """
    of_detection = weights[:, ranking.image_index]
    seen = of_detection.cumsum(1)
    total = weights @ ranking.objects[:, 0]
    needed = _least_found(total)
    ap = np.zeros((len(weights), ranking.is_true.shape[1]))
    for level in range(ap.shape[1]):
        # Precision only rises where a box is found, so nothing else can be the best from there on.
        at = np.flatnonzero(ranking.is_true[:, level])
        if len(at):
            found = of_detection[:, at].cumsum(1)
            precision = found / np.maximum(seen[:, at], 1)
            best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            ap[:, level] = _at_recalls(best_after, found, needed, int(total.max()) + 1)
    ap[total == 0] = np.nan
    return ap


def _at_recalls(
    best_after: Float[np.ndarray, "r t"],
    found: Int[np.ndarray, "r t"],
    needed: Int[np.ndarray, "r recalls"],
    stride: int,
) -> Float[np.ndarray, " r"]:
    """Mean over the recalls of the best precision from where each is reached; 0 where it is not."""
    rows, columns = found.shape
    # One search for all rows: each has numbers of its own, `stride` apart.
    offsets = np.arange(rows)[:, None] * stride
    places = np.searchsorted((found + offsets).ravel(), (needed + offsets).ravel(), side="left")
    column = places.reshape(needed.shape) - np.arange(rows)[:, None] * columns
    padded = np.concatenate([best_after, np.zeros((rows, 1))], axis=1)
    return np.take_along_axis(padded, column, axis=1).mean(1)


def _least_found(total: Int[np.ndarray, " r"]) -> Int[np.ndarray, "r recalls"]:
    """The least number of found boxes of `total` that is each recall, as a comparison of floats."""
    whole = np.maximum(total, 1)[:, None]
    least = np.ceil(RECALLS * whole).astype(np.int64)
    least -= (least - 1) / whole >= RECALLS
    least += least / whole < RECALLS
    return least
