"""Weights of the terms of the loss, as configs and checkpoints hold them; without importing JAX."""

import dataclasses
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
      neighbour_weight: on top of `no_object_weight`, for the eight cells around one with an object,
        which see nearly the same.
      reference_count: `no_object_weight` is that of an image with so many objects, and of others in
        proportion, from a quarter to four times of it; 0 is the same for all.
      class_weights: of each class in the class term; empty is 1 for all.
    """

    no_object_weight: float
    iou_weight: float
    classify_weight: float
    label_smoothing: float
    objectness: Literal["squared", "cross_entropy"] = "squared"
    neighbour_weight: float = 1.0
    reference_count: float = 0.0
    class_weights: tuple[float, ...] = ()

    def for_evaluation(self) -> "LossWeights":
        """All classes and all images alike, whatever the training made of them."""
        return dataclasses.replace(self, class_weights=(), reference_count=0.0)


# The original's, for checkpoints that do not say.
ORIGINAL_WEIGHTS = LossWeights(
    no_object_weight=0.5, iou_weight=5.0, classify_weight=1.0, label_smoothing=0.01
)


def balanced_class_weights(boxes_by_class: Sequence[int], power: float) -> tuple[float, ...]:
    """Weights of the classes that make up for their different numbers of boxes.

    A class with the n-th part of the boxes has the weight n^power, times a factor that makes the
    mean over all boxes 1. Classes without a box count as if they had one.
    """
    seen = [max(count, 1) for count in boxes_by_class]
    raw = [count**-power for count in seen]
    mean = sum(count * weight for count, weight in zip(seen, raw, strict=True)) / sum(seen)
    return tuple(weight / mean for weight in raw)
