"""Greedy non-maximum suppression of fixed size, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import iou


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
