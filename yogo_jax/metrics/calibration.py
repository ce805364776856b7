"""Calibration: a temperature for class probabilities.

References:
  Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599, section 4.2.
  Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2 (targets short of 1).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.metrics.confusion import Calibration
from yogo_jax.metrics.evaluator import ImageResult


# Limits of a temperature: outside of them the network would know nothing, or everything.
_LEAST, _MOST = 0.05, 20.0


class Pairs(NamedTuple):
    """Matched boxes of an evaluation: class probabilities, and the true class."""

    class_probs: Float[np.ndarray, "n k"]
    class_ids: Int[np.ndarray, " n"]


def matched_pairs(images: Sequence[ImageResult], num_classes: int) -> Pairs:
    """The matched boxes of all images."""
    probs = [image.found.class_probs[image.matches.prediction_index] for image in images]
    true = [image.label_class_ids[image.matches.label_index] for image in images]
    return Pairs(
        np.concatenate([np.zeros((0, num_classes)), *probs]),
        np.concatenate([np.zeros(0, np.int32), *true]).astype(np.int64),
    )


def at_temperature(
    class_probs: Float[np.ndarray, "n k"], temperature: float
) -> Float[np.ndarray, "n k"]:
    """The probabilities of the same logits, divided by a temperature."""
    # Logits but for a constant in each row; a probability of 0 stays one.
    with np.errstate(divide="ignore"):
        scaled = np.log(class_probs.astype(np.float64)) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def fit_temperature(pairs: Pairs) -> float:
    """The temperature at which the true classes are likeliest, in [0.05, 20].

    One pair more is taken to be wrong than is: n pairs without a mistake do not make a network
    that never makes any.

    Raises:
      ValueError: there is no pair, or there are no two classes.
    """
    # Late: evaluation and inference only read what was fitted.
    from scipy.optimize import minimize_scalar

    count, classes = pairs.class_probs.shape
    if count == 0 or classes < 2:
        raise ValueError("a temperature takes a matched box and two classes")
    wrong = 1 / (count + 2)
    targets = np.full((count, classes), wrong / (classes - 1))
    targets[np.arange(count), pairs.class_ids] = 1 - wrong

    def surprise(log_temperature: float) -> float:
        probs = at_temperature(pairs.class_probs, math.exp(log_temperature))
        return -(targets * np.log(np.maximum(probs, 1e-30))).sum(1).mean()

    bounds = (math.log(_LEAST), math.log(_MOST))
    return math.exp(minimize_scalar(surprise, bounds=bounds, method="bounded").x)


def calibration_error(pairs: Pairs) -> float | None:
    """The expected calibration error of the metrics; None without a pair."""
    calibration = Calibration()
    named = pairs.class_probs.argmax(1)
    calibration.update(pairs.class_probs.max(1, initial=0.0), named == pairs.class_ids)
    return calibration.compute()
