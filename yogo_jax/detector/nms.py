"""Detections of one image on the device: thresholds, greedy non-maximum suppression, classes.

Everything has a fixed size, so that it compiles once. `postprocess.py` does the same on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import Detections, Thresholds, passes


class PaddedDetections(NamedTuple):
    """Detections of one image in arrays of fixed size; rows where `valid` is False are padding.

    Boxes are corners as fractions of the image and may reach over its edge. `unusable` counts the
    cells that were left out because a value of theirs is NaN or infinite.
    """

    boxes_xyxy: Float[Array, "*b n 4"]
    objectness: Float[Array, "*b n"]
    class_probs: Float[Array, "*b n k"]
    valid: Bool[Array, "*b n"]
    unusable: Int[Array, "*b"] | int = 0

    def to_host(
        self,
        class_names: tuple[str, ...],
        image_hw: tuple[int, int],
        class_thresholds: tuple[float, ...] = (),
    ) -> Detections:
        """The detections of one image as NumPy arrays without padding."""
        valid = np.asarray(self.valid)
        return Detections(
            boxes_xyxy=np.asarray(self.boxes_xyxy)[valid],
            objectness=np.asarray(self.objectness)[valid],
            class_probs=np.asarray(self.class_probs)[valid],
            class_names=class_names,
            image_hw=image_hw,
            class_thresholds=class_thresholds,
        )


def detect(
    predictions: Predictions, thresholds: Thresholds, *, max_detections: int
) -> PaddedDetections:
    """Detections of one image from its decoded predictions, see `select`."""
    boxes_xyxy = cxcywh_to_xyxy(predictions.boxes_cxcywh).reshape(-1, 4)
    class_probs = jax.nn.softmax(predictions.class_logits)
    return select(
        boxes_xyxy,
        predictions.objectness.reshape(-1),
        class_probs.reshape(-1, class_probs.shape[-1]),
        thresholds,
        max_detections=max_detections,
    )


def select(
    boxes_xyxy: Float[Array, "m 4"],
    objectness: Float[Array, " m"],
    class_probs: Float[Array, "m k"],
    thresholds: Thresholds,
    *,
    max_detections: int,
) -> PaddedDetections:
    """Detections of one image: objectness, then NMS over all classes together, then classes.

    The score of the NMS is objectness times the largest class probability. Classes are decided
    after it, so that a box which does not count by its class still suppresses others.

    Args:
      boxes_xyxy: corners of each cell's box.
      objectness: of each cell.
      class_probs: of each cell, probabilities.
      thresholds: that boxes pass.
      max_detections: n, the fixed size of the result.

    Returns:
      Detections by descending score of the NMS, with `valid` for those that passed everything.
    """
    finite = jnp.isfinite(objectness) & jnp.isfinite(boxes_xyxy).all(-1)
    finite = finite & jnp.isfinite(class_probs).all(-1)
    # A NaN is not below a threshold: it might have been an object. In a NMS it would be the largest
    # score of all, above which there is nothing to go on with.
    above = ~(objectness <= thresholds.objectness)
    candidate = above & finite
    chosen, valid = nms(
        boxes_xyxy,
        objectness * class_probs.max(-1),
        candidate,
        iou_threshold=thresholds.iou,
        max_detections=max_detections,
    )
    valid = valid & passes(objectness[chosen], class_probs[chosen], thresholds)
    return PaddedDetections(
        boxes_xyxy=boxes_xyxy[chosen],
        objectness=objectness[chosen],
        class_probs=class_probs[chosen],
        valid=valid,
        unusable=(above & ~finite).sum(),
    )


def nms(
    boxes_xyxy: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """Rows of one image that survive, by descending score; of equal scores the first row leads.

    A box is suppressed when its IoU with a better surviving box is above `iou_threshold` (at
    exactly the threshold it stays). The loop runs once per survivor, so its cost follows what is
    in the image and not what there is room for.

    Args:
      boxes_xyxy: corners, in any one unit.
      scores: what to sort by. A row whose score is NaN does not take part.
      valid: rows that take part.
      iou_threshold: in [0, 1].
      max_detections: m, the fixed size of the result; further survivors are cut off.

    Returns:
      Row indices, and which of them are survivors (the rest is padding with index 0).
    """
    never = jnp.asarray(-jnp.inf, scores.dtype)

    def has_next(carry: tuple[Array, Array, Array]) -> Array:
        remaining, _, count = carry
        return (count < max_detections) & (remaining.max() > never)

    def take_best(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        remaining, kept, count = carry
        best = jnp.argmax(remaining).astype(jnp.int32)
        suppressed = iou(boxes_xyxy[best].reshape(1, 4), boxes_xyxy) > iou_threshold
        remaining = jnp.where(suppressed, never, remaining).at[best].set(never)
        return remaining, kept.at[count].set(best), count + 1

    start = (
        jnp.where(valid & ~jnp.isnan(scores), scores, never),
        jnp.zeros(max_detections, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    _, kept, count = jax.lax.while_loop(has_next, take_best, start)
    return kept, jnp.arange(max_detections) < count
