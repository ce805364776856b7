"""COCO's mean average precision over a data set, from all predictions and not from matched ones.

Mean AP, its intervals and the curves are made of one ranking: all detections of a data set, best
first, and which of them find a true box.

References:
  Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.boxes import iou
from yogo_jax.metrics.confusion import check_class_ids


COCO_IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Of one frame; COCO's own limit of 100 is too few for a field of cells.
MAX_DETECTIONS = 2000


class MeanAveragePrecision:
    """AP at IoU 0.5 and the mean over IoU 0.5, 0.55 … 0.95, of each class and over the classes.

    Precision is interpolated at COCO's 101 recalls. Equal scores rank in the order in which they
    were given. Each prediction has one label.

    Args:
      class_names: names in the order of the class ids.
      max_detections: best predictions of an image that count.

    References:
      Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
    """

    def __init__(self, class_names: Sequence[str], *, max_detections: int = MAX_DETECTIONS) -> None:
        self.class_names = tuple(class_names)
        self.max_detections = max_detections
        self._images: list[Ranking] = []
        self._images_over_max_detections = 0

    def update(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, " n"],
        class_ids: Int[np.ndarray, " n"],
        label_boxes_xyxy: Float[np.ndarray, "m 4"],
        label_class_ids: Int[np.ndarray, " m"],
    ) -> None:
        """Adds one image: its predictions in any order, and its true boxes.

        Args:
          boxes_xyxy: predicted boxes in [0, 1], after NMS, with hardly any threshold on the score.
          scores: confidence by which predictions are ranked over all images.
          class_ids: the one label of each prediction.
          label_boxes_xyxy: true boxes in [0, 1].
          label_class_ids: index into `class_names` of each true box.

        Raises:
          ValueError: a score or coordinate is not finite, or a class id is out of range.
        """
        for ids in (class_ids, label_class_ids):
            check_class_ids(ids, len(self.class_names))
        for values in (boxes_xyxy, scores, label_boxes_xyxy):
            # A NaN neither sorts nor overlaps: it would be scored, but as what?
            if not np.isfinite(values).all():
                raise ValueError("boxes and scores must be finite, got NaN or infinity")
        self._images_over_max_detections += len(scores) > self.max_detections
        best = np.argsort(-scores, kind="stable")[: self.max_detections]
        detections = boxes_xyxy[best], scores[best], class_ids[best]
        labels = label_boxes_xyxy, label_class_ids, len(self.class_names)
        self._images.append(rank_image(*detections, *labels))

    def compute(self) -> dict[str, Any]:
        """The metrics of the images so far, ready for JSON.

        Returns:
          - `mAP50`, `mAP50_95`: means over the classes with at least one true box; None if there is
            no such class.
          - `AP50_by_class`, `AP50_95_by_class`: None for a class without a true box, 0.0 for one
            that was never predicted.
          - `images_over_max_detections`: images whose predictions did not all count.
        """
        ranking = merge(self._images, len(self.class_names))
        once = np.ones((1, len(self._images)), np.int64)
        ap50: dict[str, float | None] = {}
        ap50_95: dict[str, float | None] = {}
        for class_id, name in enumerate(self.class_names):
            of_class = ranking.of_class(class_id)
            (by_iou,) = average_precision(of_class, once)
            exists = bool(of_class.objects.any())
            ap50[name] = float(by_iou[0]) if exists else None
            ap50_95[name] = float(by_iou.mean()) if exists else None
        return {
            "mAP50": _mean(ap50),
            "mAP50_95": _mean(ap50_95),
            "AP50_by_class": ap50,
            "AP50_95_by_class": ap50_95,
            "images_over_max_detections": self._images_over_max_detections,
        }


def _mean(by_class: dict[str, float | None]) -> float | None:
    """Mean over the classes that have a value."""
    values = [value for value in by_class.values() if value is not None]
    return float(np.mean(values)) if values else None


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
        image_index, class_ids, scores, is_true = (each[kept] for each in self[:4])
        objects = self.objects[:, class_id : class_id + 1]
        return Ranking(image_index, class_ids, scores, is_true, objects)


def rank_image(
    boxes_xyxy: Float[np.ndarray, "d 4"],
    scores: Float[np.ndarray, " d"],
    class_ids: Int[np.ndarray, " d"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    label_class_ids: Int[np.ndarray, " m"],
    classes: int,
    *,
    ious: Sequence[float] | Float[np.ndarray, " ious"] = COCO_IOUS,
) -> Ranking:
    """The ranking of one image among so many classes.

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
    objects = np.bincount(label_class_ids, minlength=classes)[None]
    image_index = np.zeros(len(order), np.int64)
    return Ranking(image_index, class_ids[order], scores[order], is_true, objects)


def merge(images: Sequence[Ranking], classes: int) -> Ranking:
    """The ranking of all images."""
    if not images:
        none, objects = np.zeros(0, np.int64), np.zeros((0, classes), np.int64)
        return Ranking(none, none, np.zeros(0), np.zeros((0, len(COCO_IOUS)), bool), objects)
    index = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])
    joined = Ranking(*map(np.concatenate, zip(*images, strict=True)))._replace(image_index=index)
    order = np.argsort(-joined.scores, kind="stable")
    image_index, class_ids, scores, is_true = (each[order] for each in joined[:4])
    return Ranking(image_index, class_ids, scores, is_true, joined.objects)


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
