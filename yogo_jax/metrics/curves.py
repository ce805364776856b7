"""Curves of an evaluation: precision, recall and false alarms at every threshold.

References:
  Fawcett 2006, An introduction to ROC analysis, Pattern Recognition Letters 27:861-874.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.metrics.mean_ap import (
    COCO_IOUS,
    Ranking,
    merge,
    rank_by_class,
    rank_image,
    top_class_scores,
)


def rank(
    images: Sequence[ImageResult],
    classes: int,
    *,
    ious: Sequence[float] | Float[np.ndarray, " ious"] = COCO_IOUS,
    by_objectness: bool = False,
) -> Ranking:
    """Ranks the boxes with objectness above 0.01, and decides which find a true box.

    Each box is a candidate of every class, as for COCO's mean AP. Equal scores rank in the order of
    the images, and in an image in the order given.

    Args:
      images: of an evaluation.
      classes: how many there are.
      ious: least IoU with a true box, ascending.
      by_objectness: rank by objectness alone, which is what a user sets a threshold on. Each box is
        then a candidate of its most probable class only, and is not cut at the frame.
    """
    ranked = []
    for image in images:
        found, labels = image.ranked, (image.label_boxes_xyxy, image.label_class_ids)
        if by_objectness:
            scores = top_class_scores(found.objectness, found.class_probs)
            ranked.append(rank_image(found.boxes_xyxy, scores, *labels, ious=ious))
        else:
            given = found.boxes_xyxy, found.objectness, found.class_probs, *labels
            ranked.append(rank_by_class(*given, ious=ious))
    return merge(ranked, classes)


class PrecisionRecall(NamedTuple):
    """Precision and recall of keeping what has a threshold or more, thresholds descending.

    Attributes:
      thresholds: the scores that occur, each once.
      precision: share of the kept detections that find a true box.
      recall: share of the true boxes that are found.
    """

    thresholds: Float[np.ndarray, " t"]
    precision: Float[np.ndarray, " t"]
    recall: Float[np.ndarray, " t"]

    @property
    def f1(self) -> Float[np.ndarray, " t"]:
        """Harmonic mean of both; 0 where both are 0."""
        total = self.precision + self.recall
        return np.divide(
            2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0
        )

    @property
    def best(self) -> int | None:
        """The index of the largest F1, at the highest such threshold; None without a detection."""
        return int(self.f1.argmax()) if len(self.thresholds) else None


def precision_recall(ranking: Ranking) -> PrecisionRecall | None:
    """The curve of one class, or of all together, at the first IoU of the ranking.

    Args:
      ranking: see `Ranking.of_class`.

    Returns:
      The curve, empty without a detection; None without a true box.
    """
    # Late: a training that has not come to its first evaluation has no need of it.
    from sklearn.metrics import precision_recall_curve

    objects, found = int(ranking.objects.sum()), ranking.is_true[:, 0]
    if not objects:
        return None
    # True boxes that nothing finds have no score. Below all others, they count as missed.
    missed = objects - int(found.sum())
    truth = np.concatenate([found, np.ones(missed, bool)])
    scores = np.concatenate([ranking.scores, np.full(missed, -1.0)])
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    kept = thresholds >= 0
    curve = (thresholds[kept], precision[:-1][kept], recall[:-1][kept])
    return PrecisionRecall(*(each[::-1].astype(np.float64) for each in curve))


class FreeResponse(NamedTuple):
    """Share of the true boxes that are found against false alarms a frame, thresholds descending.

    Attributes:
      false_per_frame: detections that find nothing, mean over the frames.
      sensitivity: share of the true boxes that are found.
    """

    false_per_frame: Float[np.ndarray, " t"]
    sensitivity: Float[np.ndarray, " t"]


def free_response(ranking: Ranking) -> FreeResponse | None:
    """The free-response curve (FROC) at the first IoU of the ranking; None without a true box.

    Args:
      ranking: of one class or of all together, see `Ranking.of_class`.

    References:
      Bunch, Hamilton, Sanderson and Simmons 1977, A free-response approach to the measurement and
      characterization of radiographic observer performance, Proc. SPIE 127:124-135.
    """
    objects = int(ranking.objects.sum())
    if not objects:
        return None
    found = ranking.is_true[:, 0]
    # Equal scores pass a threshold together.
    last_of_equals = np.diff(ranking.scores, append=-np.inf) != 0
    return FreeResponse(
        np.cumsum(~found)[last_of_equals] / len(ranking.objects),
        np.cumsum(found)[last_of_equals] / objects,
    )


class Roc(NamedTuple):
    """The ROC curve of one class against the others.

    Attributes:
      false_positive_rate: share of the pairs of other classes with the threshold or more.
      true_positive_rate: share of the pairs of the class with the threshold or more.
      area: under the curve.
      chosen: (false, true positive rate) of the classes that the boxes were given.
    """

    false_positive_rate: Float[np.ndarray, " t"]
    true_positive_rate: Float[np.ndarray, " t"]
    area: float
    chosen: tuple[float, float]

    def thinned(self, most: int) -> tuple[list[float], list[float]]:
        """False and true positive rates of at most so many points, the first and last among them.

        They are taken evenly along the curve's length, so that its corners stay.
        """
        rates = self.false_positive_rate, self.true_positive_rate
        along = np.cumsum(np.hypot(*(np.diff(each, prepend=each[0]) for each in rates)))
        at = np.searchsorted(along, np.linspace(0, along[-1], most)) if len(along) > most else ...
        false_rate, true_rate = (each[at].tolist() for each in rates)
        return false_rate, true_rate


def roc(images: Sequence[ImageResult], class_id: int) -> Roc | None:
    """The curve of one class: its probability in all matched pairs, that class against the rest.

    It tells how well boxes that were found are told apart; missed boxes and false alarms are not in
    it. None if no pair, or every pair, is of the class.
    """
    from sklearn.metrics import auc, roc_curve

    probabilities = [
        image.found.class_probs[image.matches.prediction_index, class_id] for image in images
    ]
    named = [image.found.class_ids[image.matches.prediction_index] == class_id for image in images]
    true = [image.label_class_ids[image.matches.label_index] == class_id for image in images]
    if not images or not 0 < sum(each.sum() for each in true) < sum(map(len, true)):
        return None
    is_class, is_named = np.concatenate(true), np.concatenate(named)
    false_rate, true_rate, _ = roc_curve(is_class, np.concatenate(probabilities))
    chosen = (float(is_named[~is_class].mean()), float(is_named[is_class].mean()))
    return Roc(false_rate, true_rate, float(auc(false_rate, true_rate)), chosen)
