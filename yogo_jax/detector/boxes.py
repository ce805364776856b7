"""Boxes of one image: conversions, intersection over union, and its complete form as a loss.

The format is part of every name: `cxcywh` is centre and size, `xyxy` is two corners. Coordinates
are fractions of the image unless a name ends in `_px`; the functions work in either unit.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cxcywh_to_xyxy(boxes_cxcywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Corners (x1, y1, x2, y2) of boxes given by centre and size."""
    centres, half_sizes = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return jnp.concatenate([centres - half_sizes, centres + half_sizes], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Centre and size (xc, yc, w, h) of boxes given by their corners."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Areas; negative where the corners of one axis are swapped."""
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return sizes[..., 0] * sizes[..., 1]


def intersection(
    a_xyxy: Float[Array, "*#n 4"], b_xyxy: Float[Array, "*#n 4"]
) -> Float[Array, "*#n"]:
    """Area that two boxes share, 0 where they do not meet; shapes broadcast."""
    low = jnp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = jnp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    sizes = jnp.maximum(high - low, 0)
    return sizes[..., 0] * sizes[..., 1]


def iou(a_xyxy: Float[Array, "*#n 4"], b_xyxy: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Intersection over union of pairs of boxes; shapes broadcast; 0 for two empty boxes."""
    shared = intersection(a_xyxy, b_xyxy)
    union = area(a_xyxy) + area(b_xyxy) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def ciou_loss(
    boxes_xyxy: Float[Array, "*n 4"], target_xyxy: Float[Array, "*n 4"], *, eps: float = 1e-7
) -> Float[Array, "*n"]:
    """Complete IoU loss, `1 - IoU + distance^2 / diagonal^2 + alpha * v`, in [0, 3) or so.

    `v = 4 / pi^2 * (atan(w_t / h_t) - atan(w / h))^2` compares the aspects, and
    `alpha = v / (1 - IoU + v)` takes no gradient.

    Args:
      boxes_xyxy: predicted corners.
      target_xyxy: true corners, of the same shape.
      eps: keeps the quotients and their slopes finite. A box that is narrower or lower than this
        has the aspect of one that is as wide or as high as this.

    References:
      Zheng et al. 2019, Distance-IoU Loss, arXiv:1911.08287, equations 10 and 11.
    """
    shared = intersection(boxes_xyxy, target_xyxy)
    overlap = shared / (area(boxes_xyxy) + area(target_xyxy) - shared + eps)
    hull_low = jnp.minimum(boxes_xyxy[..., :2], target_xyxy[..., :2])
    hull_high = jnp.maximum(boxes_xyxy[..., 2:], target_xyxy[..., 2:])
    diagonal_squared = jnp.square(hull_high - hull_low).sum(-1) + eps
    box, target = xyxy_to_cxcywh(boxes_xyxy), xyxy_to_cxcywh(target_xyxy)
    distance_squared = jnp.square(box[..., :2] - target[..., :2]).sum(-1)
    v = 4 / math.pi**2 * jnp.square(_aspect(target, eps) - _aspect(box, eps))
    alpha = jax.lax.stop_gradient(v / (1 - overlap + v + eps))
    return 1 - overlap + distance_squared / diagonal_squared + alpha * v


def _aspect(boxes_cxcywh: Float[Array, "*n 4"], eps: float) -> Float[Array, "*n"]:
    """The angle whose tangent is width / height. Its slope holds the square of the height."""
    sizes = jnp.maximum(boxes_cxcywh[..., 2:], eps)
    return jnp.arctan(sizes[..., 0] / sizes[..., 1])
