"""Agreement of the predicted with the true counts of each frame."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from yogo_jax.metrics.evaluator import ImageResult


# Of a normal distribution, 95 % lie within so many standard deviations of the mean.
NORMAL_95 = 1.959964


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
