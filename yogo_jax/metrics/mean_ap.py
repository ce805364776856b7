"""Mean average precision over a data set, from all predictions and not from matched ones.

There are two protocols. COCO's, which Ultralytics reports too: each box is a candidate of every
class, with that class's own score. The original's: each box has its most probable class alone.
Mean AP, its intervals and the curves are made of one ranking: all candidates of a data set, best
first, and which of them find a true box.

References:
  Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.boxes import iou
from yogo_jax.metrics.confusion import check_class_ids, side_by_side


COCO_IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Boxes take part above this objectness: in COCO's protocol, and in the original's.
MEAN_AP_OBJECTNESS = 0.01
ORIGINAL_OBJECTNESS = 0.05
# A box with a lower score of a class is no candidate of that class, as in Ultralytics: there are
# very many of them, and what they add to the area is next to nothing.
MIN_SCORE = 0.001
# Of one frame, in the original's protocol.
MAX_DETECTIONS = 2000


class MeanAveragePrecision:
    """COCO's AP at IoU 0.5 and the mean over IoU 0.5, 0.55 … 0.95, by class and over the classes.

    After NMS each box is a candidate of every class; its score is objectness times the probability
    of that class, at least `MIN_SCORE`. Boxes are cut at the frame, and an image may have any
    number of them. Precision is interpolated at COCO's 101 recalls. Equal scores rank in the order
    in which they were given.

    Args:
      class_names: names in the order of the class ids.

    References:
      Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._images: list[Ranking] = []

    def update(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        objectness: Float[np.ndarray, " n"],
        class_probs: Float[np.ndarray, "n k"],
        label_boxes_xyxy: Float[np.ndarray, "m 4"],
        label_class_ids: Int[np.ndarray, " m"],
    ) -> None:
        """Adds one image: its predictions in any order, and its true boxes.

        Args:
          boxes_xyxy: predicted boxes, 1 is the size of the frame, after NMS, with objectness above
            `MEAN_AP_OBJECTNESS`.
          objectness: of each box.
          class_probs: probability of each class of each box.
          label_boxes_xyxy: true boxes, cut at the frame like the others.
          label_class_ids: index into `class_names` of each true box.

        Raises:
          ValueError: a value is not finite, or a class id is out of range.
        """
        image = boxes_xyxy, objectness, class_probs, label_boxes_xyxy, label_class_ids
        _check(*image, classes=len(self.class_names))
        self._images.append(rank_by_class(*image))

    def compute(self) -> dict[str, Any]:
        """The metrics of the images so far, ready for JSON.

        Returns:
          - `mAP50`, `mAP50_95`: means over the classes with at least one true box; None if there is
            no such class.
          - `AP50_by_class`, `AP50_95_by_class`: None for a class without a true box, 0.0 for one
            that was never predicted.
        """
        return _average_precisions(self._images, self.class_names)


class OriginalMeanAveragePrecision:
    """The same in the original's protocol: each box has its most probable class alone.

    Boxes are not cut at the frame, and of an image the best ones count. The score is objectness
    times the probability of that class.

    Args:
      class_names: names in the order of the class ids.
      max_detections: best predictions of an image that count.
    """

    def __init__(self, class_names: Sequence[str], *, max_detections: int = MAX_DETECTIONS) -> None:
        self.class_names = tuple(class_names)
        self.max_detections = max_detections
        self._images: list[Ranking] = []
        self._images_over_max_detections = 0

    def update(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        objectness: Float[np.ndarray, " n"],
        class_probs: Float[np.ndarray, "n k"],
        label_boxes_xyxy: Float[np.ndarray, "m 4"],
        label_class_ids: Int[np.ndarray, " m"],
    ) -> None:
        """Adds one image, see `MeanAveragePrecision.update`; objectness above 0.05."""
        image = boxes_xyxy, objectness, class_probs, label_boxes_xyxy, label_class_ids
        _check(*image, classes=len(self.class_names))
        self._images_over_max_detections += len(objectness) > self.max_detections
        scores = top_class_scores(objectness * class_probs.max(1, initial=0), class_probs)
        best = np.argsort(-scores.max(1, initial=-np.inf), kind="stable")[: self.max_detections]
        self._images.append(
            rank_image(boxes_xyxy[best], scores[best], label_boxes_xyxy, label_class_ids)
        )

    def compute(self) -> dict[str, Any]:
        """The metrics of the images so far, ready for JSON.

        Returns:
          Those of `MeanAveragePrecision.compute` with `_original` behind their names, and
          `images_over_max_detections`: images whose predictions did not all count.
        """
        values = _average_precisions(self._images, self.class_names)
        return {
            **{f"{name}_original": value for name, value in values.items()},
            "images_over_max_detections": self._images_over_max_detections,
        }


def _check(
    boxes_xyxy: np.ndarray,
    objectness: np.ndarray,
    class_probs: np.ndarray,
    label_boxes_xyxy: np.ndarray,
    label_class_ids: np.ndarray,
    *,
    classes: int,
) -> None:
    check_class_ids(label_class_ids, classes)
    if class_probs.shape != (len(boxes_xyxy), classes):
        raise ValueError(
            f"{len(boxes_xyxy)} boxes and {classes} classes, but class_probs is {class_probs.shape}"
        )
    for values in (boxes_xyxy, objectness, class_probs, label_boxes_xyxy):
        # A NaN neither sorts nor overlaps: it would be scored, but as what?
        if not np.isfinite(values).all():
            raise ValueError("boxes and scores must be finite, got NaN or infinity")


def _average_precisions(images: Sequence["Ranking"], class_names: Sequence[str]) -> dict[str, Any]:
    ranking = merge(images, len(class_names))
    once = np.ones((1, len(images)), np.int64)
    ap50: dict[str, float | None] = {}
    ap50_95: dict[str, float | None] = {}
    for class_id, name in enumerate(class_names):
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
    }


def _mean(by_class: dict[str, float | None]) -> float | None:
    """Mean over the classes that have a value."""
    values = [value for value in by_class.values() if value is not None]
    return float(np.mean(values)) if values else None


class Ranking(NamedTuple):
    """Candidates of all images in descending order of their score: boxes with a class each.

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
        """Only the candidates and objects of one class, which are then [images 1]; None: of all."""
        if class_id is None:
            return self._replace(objects=self.objects.sum(1, keepdims=True))
        kept = self.class_ids == class_id
        image_index, class_ids, scores, is_true = (each[kept] for each in self[:4])
        objects = self.objects[:, class_id : class_id + 1]
        return Ranking(image_index, class_ids, scores, is_true, objects)


def rank_by_class(
    boxes_xyxy: Float[np.ndarray, "n 4"],
    objectness: Float[np.ndarray, " n"],
    class_probs: Float[np.ndarray, "n k"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    label_class_ids: Int[np.ndarray, " m"],
    *,
    ious: Sequence[float] | Float[np.ndarray, " ious"] = COCO_IOUS,
) -> Ranking:
    """The ranking of one image by COCO's protocol, see `MeanAveragePrecision`."""
    boxes, labels = boxes_xyxy.clip(0, 1), label_boxes_xyxy.clip(0, 1)
    scores = objectness[:, None] * class_probs
    left = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    scores = np.where((scores >= MIN_SCORE) & left[:, None], scores, -np.inf)
    return rank_image(boxes, scores, labels, label_class_ids, ious=ious)


def top_class_scores(
    scores: Float[np.ndarray, " n"], class_probs: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    """Scores with which each box is a candidate of its most probable class alone."""
    by_class = np.full(class_probs.shape, -np.inf, scores.dtype)
    if len(scores):
        by_class[np.arange(len(scores)), class_probs.argmax(1)] = scores
    return by_class


def rank_image(
    boxes_xyxy: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, "n k"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    label_class_ids: Int[np.ndarray, " m"],
    *,
    ious: Sequence[float] | Float[np.ndarray, " ious"] = COCO_IOUS,
) -> Ranking:
    """The ranking of one image.

    The best candidate of a class chooses first: of the true boxes of its class that overlap it
    enough and are free it takes the one of the largest IoU, of equal ones the last.

    Args:
      boxes_xyxy: predicted boxes.
      scores: of each class; at minus infinity the box is no candidate of the class.
      label_boxes_xyxy: true boxes.
      label_class_ids: their classes.
      ious: least IoU with a true box, ascending.
    """
    thresholds = np.minimum(np.asarray(ious, np.float64), 1 - 1e-10)  # as COCO's code does
    box_index, class_ids = np.nonzero(scores > -np.inf)
    values = scores[box_index, class_ids]
    order = np.argsort(-values, kind="stable")
    place = np.full(scores.shape, -1)
    place[box_index[order], class_ids[order]] = np.arange(len(order))
    boxes, labels = boxes_xyxy.astype(np.float64), label_boxes_xyxy.astype(np.float64)
    box, label = side_by_side(boxes, labels)
    candidate, overlap = place[box, label_class_ids[label]], iou(boxes[box], labels[label])
    # Most candidates overlap no true box of their class: they have nothing to choose from.
    near = (overlap >= thresholds[0]) & (candidate >= 0)
    is_true = _choose(
        candidate[near], label[near], overlap[near], thresholds, (len(order), len(labels))
    )
    objects = np.bincount(label_class_ids, minlength=scores.shape[1])[None]
    image_index = np.zeros(len(order), np.int64)
    return Ranking(image_index, class_ids[order], values[order], is_true, objects)


def _choose(
    candidate: Int[np.ndarray, " p"],
    label: Int[np.ndarray, " p"],
    overlap: Float[np.ndarray, " p"],
    thresholds: Float[np.ndarray, " ious"],
    shape: tuple[int, int],
) -> Bool[np.ndarray, "d ious"]:
    """Which candidates get a true box, from the pairs of both that may belong together."""
    is_true = np.zeros((shape[0], len(thresholds)), bool)
    chooses = np.bincount(candidate, minlength=shape[0])[candidate] > 1
    wanted = np.bincount(label, minlength=shape[1])[label] > 1
    # Most pairs stand alone: nobody else wants the true box, and there is no other to choose.
    alone = ~(chooses | wanted)
    is_true[candidate[alone]] = overlap[alone, None] >= thresholds
    contested = np.flatnonzero(~alone)
    contested = contested[np.lexsort((label[contested], candidate[contested]))]
    free = np.ones((len(thresholds), shape[1]), bool)
    levels = np.arange(len(thresholds))
    starts = np.flatnonzero(np.diff(candidate[contested], prepend=-1))
    for pairs in np.split(contested, starts)[1:]:
        labels = label[pairs]
        able = free[:, labels] & (overlap[pairs] >= thresholds[:, None])
        offers = np.where(able, overlap[pairs], -1.0)
        chosen = len(labels) - 1 - offers[:, ::-1].argmax(1)
        gets = able[levels, chosen]
        is_true[candidate[pairs[0]]] = gets
        free[levels[gets], labels[chosen[gets]]] = False
    return is_true


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
    # What ranks below the last candidate that finds something changes nothing.
    finds = np.flatnonzero(ranking.is_true.any(1))
    of_detection = weights[:, ranking.image_index[: finds.max(initial=-1) + 1]]
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
