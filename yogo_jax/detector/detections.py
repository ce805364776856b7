"""What the detector reports of an image, in one canonical form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.nms import nms


class Detections(NamedTuple):
    """Detections of one image in arrays of fixed size; rows where `valid` is False are padding.

    Boxes are corners as fractions of the image and may reach over its edge. `unusable` counts the
    cells that were left out because a value of theirs is NaN or infinite.
    """

    boxes_xyxy: Float[Array, "*b n 4"]
    objectness: Float[Array, "*b n"]
    class_probs: Float[Array, "*b n k"]
    valid: Bool[Array, "*b n"]
    unusable: Int[Array, "*b"] | int = 0


def detect(
    predictions: Predictions,
    *,
    objectness_threshold: float,
    iou_threshold: float | None,
    min_class_confidence: float = 0.0,
    min_scores: tuple[float, ...] = (),
    max_detections: int,
) -> Detections:
    """Detections of one image from its decoded predictions, see `select`."""
    boxes_xyxy = cxcywh_to_xyxy(predictions.boxes_cxcywh).reshape(-1, 4)
    class_probs = jax.nn.softmax(predictions.class_logits)
    return select(
        boxes_xyxy,
        predictions.objectness.reshape(-1),
        class_probs.reshape(-1, class_probs.shape[-1]),
        objectness_threshold=objectness_threshold,
        iou_threshold=iou_threshold,
        min_class_confidence=min_class_confidence,
        min_scores=min_scores,
        max_detections=max_detections,
    )


def select(
    boxes_xyxy: Float[Array, "m 4"],
    objectness: Float[Array, " m"],
    class_probs: Float[Array, "m k"],
    *,
    objectness_threshold: float,
    iou_threshold: float | None,
    min_class_confidence: float = 0.0,
    min_scores: tuple[float, ...] = (),
    max_detections: int,
) -> Detections:
    """Detections of one image: threshold, then NMS over all classes together, then classes.

    Args:
      boxes_xyxy: corners of each cell's box.
      objectness: of each cell.
      class_probs: of each cell, probabilities.
      objectness_threshold: boxes must lie above it.
      iou_threshold: of the NMS, whose score is objectness times the largest class probability;
        the result is then in descending order of that score. None is no NMS: row-major cells.
      min_class_confidence: the largest class probability must lie above it, if it is over 0;
        asked after the NMS, so such a box still suppresses others.
      min_scores: by class, the least score of a box whose most probable class it is; asked after
        the NMS, too. Empty is none.
      max_detections: n, the fixed size of the result; without NMS it is at most the cells.

    Returns:
      Detections, with `valid` for those that passed everything.
    """
    finite = jnp.isfinite(objectness) & jnp.isfinite(boxes_xyxy).all(-1)
    finite = finite & jnp.isfinite(class_probs).all(-1)
    # A NaN is not below a threshold: it might have been an object. In a NMS it would be the largest
    # score of all, above which there is nothing to go on with.
    above = ~(objectness <= objectness_threshold)
    candidate = above & finite
    confidence = class_probs.max(-1)
    if iou_threshold is None:
        size = min(max_detections, objectness.shape[0])
        (chosen,) = jnp.nonzero(candidate, size=size, fill_value=0)
        valid = jnp.arange(size) < candidate.sum()
    else:
        chosen, valid = nms(
            boxes_xyxy,
            objectness * confidence,
            candidate,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )
    if min_class_confidence > 0:
        valid = valid & (confidence[chosen] > min_class_confidence)
    if min_scores:
        least = jnp.asarray(min_scores, confidence.dtype)[class_probs[chosen].argmax(-1)]
        valid = valid & ((objectness * confidence)[chosen] >= least)
    return Detections(
        boxes_xyxy=boxes_xyxy[chosen],
        objectness=objectness[chosen],
        class_probs=class_probs[chosen],
        valid=valid,
        unusable=(above & ~finite).sum(),
    )
