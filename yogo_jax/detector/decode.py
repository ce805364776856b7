"""Decoding: raw channels of the head become boxes, objectness and classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


# Raw channels before those of the classes: tx, ty, tw, th, to.
BOX_CHANNELS = 5
# exp(80) is still finite in float32; the original cuts there as well.
MAX_LOG_SIZE = 80.0


class Predictions(NamedTuple):
    """Predictions on the grid of one image, before any threshold; boxes in [0, 1] of the image."""

    boxes_cxcywh: Float[Array, "gh gw 4"]
    objectness: Float[Array, "gh gw"]
    class_logits: Float[Array, "gh gw k"]


def cell_origins(grid_hw: tuple[int, int]) -> Float[Array, "gh gw 2"]:
    """(x, y) of each cell's top left corner, as fractions of the image."""
    rows, columns = grid_hw
    x = jnp.arange(columns, dtype=jnp.float32) / columns
    y = jnp.arange(rows, dtype=jnp.float32) / rows
    return jnp.stack(jnp.meshgrid(x, y), axis=-1)


def decode(
    raw: Float[Array, "gh gw outputs"],
    *,
    anchor_wh: tuple[float, float],
    size_multiplier_wh: tuple[float, float] = (1.0, 1.0),
) -> Predictions:
    """Predictions of one image by direct location prediction.

    `xc = sigmoid(tx) / gw + column / gw`, `w = anchor_w * exp(min(tw, 80)) * multiplier`, y and
    height alike, objectness `sigmoid(to)`.

    Args:
      raw: channels (tx, ty, tw, th, to, class logits).
      anchor_wh: size of the one prior, as fractions of the image the network was trained for.
      size_multiplier_wh: original size / cropped size of a network that runs on a crop.

    References:
      Redmon and Farhadi 2016, YOLO9000, arXiv:1612.08242, section 2 "Direct location prediction".
    """
    rows, columns, _ = raw.shape
    cells_per_image = jnp.asarray((columns, rows), raw.dtype)
    centres = jax.nn.sigmoid(raw[..., 0:2]) / cells_per_image.reshape(1, 1, 2)
    centres = centres + cell_origins((rows, columns))
    prior = jnp.asarray(anchor_wh, raw.dtype) * jnp.asarray(size_multiplier_wh, raw.dtype)
    sizes = jnp.exp(jnp.minimum(raw[..., 2:4], MAX_LOG_SIZE)) * prior.reshape(1, 1, 2)
    return Predictions(
        boxes_cxcywh=jnp.concatenate([centres, sizes], axis=-1),
        objectness=jax.nn.sigmoid(raw[..., BOX_CHANNELS - 1]),
        class_logits=raw[..., BOX_CHANNELS:],
    )
