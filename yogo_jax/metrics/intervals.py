"""95 % intervals of the metrics of a test, and limits of agreement of its counts.

Images are drawn again for an interval, not boxes: the cells of one frame share its focus, its stain
and its patient. The decisions behind a metric are made once; a resample weighs them by how often it
drew their image.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.metrics.confusion import confusion_of
from yogo_jax.metrics.curves import rank
from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.metrics.mean_ap import Ranking, average_precision


RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
# Fewer resamples of very many detections: this bounds the time, and is told beside the intervals.
MAX_WORK = 300_000_000
MIN_RESAMPLES = 200
# Weights of this many detections are held at once.
CHUNK = 2_000_000
# Of a normal distribution, 95 % lie within so many standard deviations of the mean.
NORMAL_95 = 1.959964


def bootstrap_intervals(
    images: Sequence[ImageResult],
    class_names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Percentile intervals of the metrics of some images, ready for JSON.

    A resample draws as many images as there are, with replacement. In a resample without a true box
    of a class its AP and recall do not exist; the interval is that of the resamples that have one.

    Args:
      images: of an evaluation.
      class_names: names in the order of the class ids.
      resamples: how many, fewer if there are very many detections.
      seed: of the draws.

    Returns:
      `mAP50`, `mAP50_95`, `AP50_by_class`, `precision_by_class`, `recall_by_class` and
      `count_bias_by_class` (predicted minus true boxes a frame), each as [low, high] or None where
      it cannot be known: of one image, or of a class that is not there. `level` and `resamples` say
      which and of how many.

    References:
      Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
    """
    ranking = rank(images, len(class_names))
    confusions = image_confusions(images, len(class_names))
    resamples = _affordable(resamples, len(ranking.scores))
    drawn: dict[str, list[np.ndarray]] = {}
    if len(images) > 1:
        for weights in _draws(len(images), resamples, max(len(ranking.scores), 1), seed):
            for name, values in weighted_metrics(ranking, confusions, weights).items():
                drawn.setdefault(name, []).append(values)
    intervals: dict[str, Any] = {"level": LEVEL, "resamples": resamples if drawn else 0}
    for name in ("mAP50", "mAP50_95"):
        intervals[name] = interval(np.concatenate(drawn[name])) if drawn else None
    for name in (
        "AP50_by_class",
        "precision_by_class",
        "recall_by_class",
        "count_bias_by_class",
    ):
        values = np.concatenate(drawn[name]) if drawn else np.full((1, len(class_names)), np.nan)
        by_class = [interval(column) for column in values.T]
        intervals[name] = dict(zip(class_names, by_class, strict=True))
    return intervals


def interval(values: Float[np.ndarray, " r"]) -> list[float] | None:
    """The middle 95 % of the values that are numbers; None if there is none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    tail = 100 * (1 - LEVEL) / 2
    return np.percentile(known, [tail, 100 - tail]).tolist()


def image_confusions(
    images: Sequence[ImageResult], classes: int
) -> Int[np.ndarray, "images k_and_background k_and_background"]:
    """The confusion matrix of each image: row = true class, column = predicted, last background."""
    matrices = [
        confusion_of(image.found.class_ids, image.label_class_ids, image.matches, classes)
        for image in images
    ]
    return np.array(matrices, np.int64).reshape(-1, classes + 1, classes + 1)


def weighted_metrics(
    ranking: Ranking,
    confusions: Int[np.ndarray, "images k1 k1"],
    weights: Int[np.ndarray, "r images"],
) -> dict[str, np.ndarray]:
    """Metrics of resamples: each image counts `weights` times. NaN where there is none.

    Returns:
      `mAP50` and `mAP50_95` as [r], the others of `bootstrap_intervals` as [r k].
    """
    summed = np.tensordot(weights, confusions, axes=1)
    right = np.diagonal(summed, axis1=1, axis2=2)[:, :-1]
    predicted, true = summed.sum(1)[:, :-1], summed.sum(2)[:, :-1]
    return {
        **weighted_mean_ap(ranking, weights),
        "precision_by_class": _ratio(right, predicted),
        "recall_by_class": _ratio(right, true),
        "count_bias_by_class": (predicted - true) / weights.sum(1, keepdims=True),
    }


def weighted_mean_ap(
    ranking: Ranking, weights: Int[np.ndarray, "r images"]
) -> dict[str, np.ndarray]:
    """Mean AP of resamples: each image counts `weights` times. NaN where there is no true box.

    Returns:
      `mAP50` and `mAP50_95` as [r], `AP50_by_class` as [r k].
    """
    classes = ranking.objects.shape[1]
    ap = np.stack(
        [average_precision(ranking.of_class(class_id), weights) for class_id in range(classes)],
        axis=1,
    )
    return {
        "mAP50": _mean_of_known(ap[:, :, 0]),
        "mAP50_95": _mean_of_known(ap.mean(-1)),
        "AP50_by_class": ap[:, :, 0],
    }


def _affordable(resamples: int, detections: int) -> int:
    return min(resamples, max(MIN_RESAMPLES, MAX_WORK // max(detections, 1)))


def _draws(
    images: int, resamples: int, detections: int, seed: int
) -> Iterator[Int[np.ndarray, "r images"]]:
    """Weights of the resamples, some at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CHUNK // max(images, detections))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=rows)


def _ratio(part: Int[np.ndarray, "r k"], whole: Int[np.ndarray, "r k"]) -> Float[np.ndarray, "r k"]:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean_of_known(values: Float[np.ndarray, "r k"]) -> Float[np.ndarray, " r"]:
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0.0).sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


class Agreement(NamedTuple):
    """Agreement of two ways to count the same frames.

    Attributes:
      bias: mean over the frames of predicted minus true.
      lower: lower limit of agreement: bias - 1.96 standard deviations of the differences; None of
        fewer than two frames.
      upper: the upper limit.
    """

    bias: float
    lower: float | None
    upper: float | None


def counts_by_image(
    images: Sequence[ImageResult], classes: int
) -> tuple[Int[np.ndarray, "images k"], Int[np.ndarray, "images k"]]:
    """(predicted, true) boxes of each class in each image; predicted ones above the thresholds."""
    predicted = np.zeros((len(images), classes), np.int64)
    true = np.zeros_like(predicted)
    for index, image in enumerate(images):
        predicted[index] = np.bincount(image.found.class_ids, minlength=classes)
        true[index] = np.bincount(image.label_class_ids, minlength=classes)
    return predicted, true


def agreement(predicted: Int[np.ndarray, " images"], true: Int[np.ndarray, " images"]) -> Agreement:
    """Bias and 95 % limits of agreement of the counts of at least one frame.

    References:
      Bland and Altman 1986, Statistical methods for assessing agreement between two methods of
      clinical measurement, Lancet 327:307-310.
    """
    differences = (predicted - true).astype(np.float64)
    bias = float(differences.mean())
    if len(differences) < 2:
        return Agreement(bias, None, None)
    spread = NORMAL_95 * math.sqrt(differences.var(ddof=1))
    return Agreement(bias, bias - spread, bias + spread)
