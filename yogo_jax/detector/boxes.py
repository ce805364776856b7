"""Boxes of one image: conversions, areas, and intersection over union.

The format is part of every name: `cxcywh` is centre and size, `xyxy` is two corners. Coordinates
are fractions of the image unless a name ends in `_px`; the functions work in either unit.

All functions take JAX arrays or NumPy arrays, and give arrays of the same library. JAX is not
imported here, so that the host can do without it.
"""

from typing import Any

from jaxtyping import Float


def cxcywh_to_xyxy(boxes_cxcywh: Float[Any, "*n 4"]) -> Float[Any, "*n 4"]:
    """Corners (x1, y1, x2, y2) of boxes given by centre and size."""
    xp = boxes_cxcywh.__array_namespace__()
    centres, half_sizes = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return xp.concatenate([centres - half_sizes, centres + half_sizes], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Any, "*n 4"]) -> Float[Any, "*n 4"]:
    """Centre and size (xc, yc, w, h) of boxes given by their corners."""
    xp = boxes_xyxy.__array_namespace__()
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return xp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(boxes_xyxy: Float[Any, "*n 4"]) -> Float[Any, "*n"]:
    """Areas; negative where the corners of one axis are swapped."""
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return sizes[..., 0] * sizes[..., 1]


def intersection(a_xyxy: Float[Any, "*#n 4"], b_xyxy: Float[Any, "*#n 4"]) -> Float[Any, "*#n"]:
    """Area that two boxes share, 0 where they do not meet; shapes broadcast."""
    xp = a_xyxy.__array_namespace__()
    low = xp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = xp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    sizes = xp.maximum(high - low, 0)
    return sizes[..., 0] * sizes[..., 1]


def iou(a_xyxy: Float[Any, "*#n 4"], b_xyxy: Float[Any, "*#n 4"]) -> Float[Any, "*#n"]:
    """Intersection over union of pairs of boxes; shapes broadcast.

    A box without area overlaps nothing, not even itself: its IoU is 0.
    """
    xp = a_xyxy.__array_namespace__()
    shared = intersection(a_xyxy, b_xyxy)
    union = area(a_xyxy) + area(b_xyxy) - shared
    return xp.where(union > 0, shared / xp.where(union > 0, union, 1), 0)
