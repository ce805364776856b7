"""Weights of the terms of the loss, as configs and checkpoints hold them; without importing JAX."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms of the loss.

    Attributes:
      no_object_weight: weight of the cells without an object, against 1 for those with one.
      iou_weight: weight of the box term.
      classify_weight: weight of the class term.
      label_smoothing: share of the target spread evenly over the classes, in [0, 1).
      objectness: "squared" error, the original's, or "cross_entropy".
      objectness_target: of a cell with an object: "one", the original's, or "iou", how well the
        predicted box fits.
      neighbour_weight: on top of `no_object_weight`, for the eight cells around one with an object,
        which see nearly the same.
      reference_count: `no_object_weight` is that of an image with so many objects, and of others in
        proportion, from a quarter to four times of it; 0 is the same for all.
      class_weights: of each class in the class term; empty is 1 for all.
      logit_adjustment: tau of the class term, see `losses.class_loss`; 0 is off.
      class_priors: share of each class among the training boxes, for `logit_adjustment`.
    """

    no_object_weight: float
    iou_weight: float
    classify_weight: float
    label_smoothing: float
    objectness: Literal["squared", "cross_entropy"] = "squared"
    objectness_target: Literal["one", "iou"] = "one"
    neighbour_weight: float = 1.0
    reference_count: float = 0.0
    class_weights: tuple[float, ...] = ()
    logit_adjustment: float = 0.0
    class_priors: tuple[float, ...] = ()

    def for_evaluation(self) -> "LossWeights":
        """All classes and all images alike, whatever the training made of them."""
        return dataclasses.replace(
            self, class_weights=(), reference_count=0.0, logit_adjustment=0.0, class_priors=()
        )


# The original's, for checkpoints that do not say.
ORIGINAL_WEIGHTS = LossWeights(
    no_object_weight=0.5, iou_weight=5.0, classify_weight=1.0, label_smoothing=0.01
)


def balanced_class_weights(boxes_by_class: Sequence[int], power: float) -> tuple[float, ...]:
    """Weights of the classes that make up for their different numbers of boxes.

    A class with the n-th part of the boxes has the weight n^power, times a factor that makes the
    mean over all boxes 1. Classes without a box count as if they had one.
    """
    seen = _at_least_one(boxes_by_class)
    return _with_mean_one([count**-power for count in seen], seen)


def effective_number_weights(boxes_by_class: Sequence[int], beta: float) -> tuple[float, ...]:
    """Weights of the classes by the inverse of their effective number of boxes.

    A class with n boxes has the effective number (1 - beta^n) / (1 - beta): more boxes add less and
    less. The mean over all boxes is 1. Classes without a box count as if they had one.

    References:
      Cui et al. 2019, Class-Balanced Loss, arXiv:1901.05555, equation 2 and section 3.3.
    """
    seen = _at_least_one(boxes_by_class)
    # As in the paper's limit, beta near 1 is the inverse of the count: expm1 keeps the digits.
    raw = [1 / -math.expm1(count * math.log(beta)) for count in seen]
    return _with_mean_one(raw, seen)


def shares_of_classes(boxes_by_class: Sequence[int]) -> tuple[float, ...]:
    """Share of each class among the boxes. Classes without a box count as if they had one."""
    seen = _at_least_one(boxes_by_class)
    return tuple(count / sum(seen) for count in seen)


def _at_least_one(boxes_by_class: Sequence[int]) -> list[int]:
    return [max(count, 1) for count in boxes_by_class]


def _with_mean_one(raw: Sequence[float], seen: Sequence[int]) -> tuple[float, ...]:
    mean = sum(count * weight for count, weight in zip(seen, raw, strict=True)) / sum(seen)
    return tuple(weight / mean for weight in raw)
