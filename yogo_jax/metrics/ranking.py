"""All detections of a data set, best first, and which of them find a true box, as COCO decides it.

`mean_ap.py` computes AP from boxes; curves and intervals need the decisions behind it, once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.detections import Detections
from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.metrics.mean_ap import MAX_DETECTIONS


COCO_IOUS = np.linspace(0.5, 0.95, 10)


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


def rank(
    images: Sequence[ImageResult],
    image_hw: tuple[int, int],
    classes: int,
    *,
    ious: Sequence[float] | Float[np.ndarray, " ious"] = COCO_IOUS,
    by_objectness: bool = False,
    max_detections: int = MAX_DETECTIONS,
) -> Ranking:
    """Ranks the detections with objectness above 0.05, and decides which find a true box.

    In each image the best detection chooses first: of the true boxes of its class that overlap it
    enough and are free it takes the one of the largest IoU. Equal scores rank in the order of the
    images, and in an image in the order given.

    Args:
      images: of an evaluation.
      image_hw: (rows, columns) in pixels.
      classes: how many there are.
      ious: what counts as enough, ascending.
      by_objectness: rank by objectness alone, which is what a user sets a threshold on, and not by
        COCO's score.
      max_detections: the best of an image, by COCO's score, that count.

    References:
      Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
    """
    thresholds = np.minimum(np.asarray(ious, np.float64), 1 - 1e-10)  # as COCO's code does
    indices, class_ids, scores, decisions = [], [], [], []
    objects = np.zeros((len(images), classes), np.int64)
    for index, image in enumerate(images):
        objects[index] = np.bincount(image.label_class_ids, minlength=classes)
        detections = _best(image.ranked, by_objectness, max_detections)
        image_scores = detections.objectness if by_objectness else detections.scores
        indices.append(np.full(len(image_scores), index))
        class_ids.append(detections.class_ids)
        scores.append(image_scores)
        decisions.append(_decide(detections, image, image_hw, thresholds))
    if not images:
        none = np.zeros(0)
        nothing = np.zeros((0, len(thresholds)), bool)
        return Ranking(none.astype(int), none.astype(int), none, nothing, objects)
    all_scores = np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")
    return Ranking(
        np.concatenate(indices)[order],
        np.concatenate(class_ids)[order],
        all_scores[order],
        np.concatenate(decisions)[order],
        objects,
    )


def _best(ranked: Detections, by_objectness: bool, max_detections: int) -> Detections:
    """The detections of one image that count, best first."""
    counting = np.argsort(-ranked.scores, kind="stable")[:max_detections]
    if by_objectness:
        counting = counting[np.argsort(-ranked.objectness[counting], kind="stable")]
    return ranked[counting]


def _decide(
    detections: Detections,
    image: ImageResult,
    image_hw: tuple[int, int],
    thresholds: Float[np.ndarray, " ious"],
) -> Bool[np.ndarray, "d ious"]:
    decisions = np.zeros((len(detections.objectness), len(thresholds)), bool)
    for class_id in np.unique(image.label_class_ids):
        rows = np.flatnonzero(detections.class_ids == class_id)
        labels = image.label_boxes_xyxy[image.label_class_ids == class_id]
        iou = _coco_iou(_to_px(detections.boxes_xyxy[rows], image_hw), _to_px(labels, image_hw))
        decisions[rows] = _take_turns(iou, thresholds)
    return decisions


def _take_turns(
    iou: Float[np.ndarray, "d m"], thresholds: Float[np.ndarray, " ious"]
) -> Bool[np.ndarray, "d ious"]:
    """Row by row, the free column of the largest overlap that is enough; of equal ones the last."""
    takes = np.zeros((len(iou), len(thresholds)), bool)
    free = np.ones((len(thresholds), iou.shape[1]), bool)
    levels = np.arange(len(thresholds))
    # Most false alarms overlap nothing: they need no turn.
    for row in np.flatnonzero((iou >= thresholds[0]).any(1)):
        offers = np.where(free & (iou[row] >= thresholds[:, None]), iou[row], -1.0)
        chosen = iou.shape[1] - 1 - offers[:, ::-1].argmax(1)
        takes[row] = offers[levels, chosen] >= 0
        free[levels[takes[row]], chosen[takes[row]]] = False
    return takes


def _to_px(
    boxes_xyxy: Float[np.ndarray, "n 4"], image_hw: tuple[int, int]
) -> Float[np.ndarray, "n 4"]:
    rows, columns = image_hw
    corners = boxes_xyxy * np.array([columns, rows, columns, rows], np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _coco_iou(
    first_xywh_px: Float[np.ndarray, "n 4"], second_xywh_px: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """COCO's arithmetic, step by step: an overlap of exactly a threshold must fall on its side."""
    first, second = first_xywh_px[:, None], second_xywh_px[None]
    ends = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    sides = np.clip(ends - np.maximum(first[..., :2], second[..., :2]), 0.0, None)
    overlap = sides[..., 0] * sides[..., 1]
    union = first[..., 2] * first[..., 3] + second[..., 2] * second[..., 3] - overlap
    return np.divide(overlap, union, out=np.zeros_like(union), where=overlap > 0)
