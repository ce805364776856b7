"""Holes in training images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from yogo_jax.training.augmentation.geometry import View


def cutout(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    view: View,
    *,
    probability: float | Array,
    largest: float = 0.25,
) -> tuple[Float[Array, "h w c"], View]:
    """The image with a hole of its mean colour, and what can still be seen.

    Args:
      key: of the image.
      image: pixels.
      view: of the image, without a hole.
      probability: of a hole.
      largest: its longest sides, as fractions of the image's.

    References:
      DeVries and Taylor 2017, Cutout, arXiv:1708.04552.
    """
    coin_key, centre_key, size_key = jax.random.split(key, 3)
    centre = jax.random.uniform(centre_key, (2,))
    size = jax.random.uniform(size_key, (2,), minval=0.2 * largest, maxval=largest)
    size = jnp.where(jax.random.uniform(coin_key) < probability, size, 0.0)
    hole = jnp.concatenate([centre - size / 2, centre + size / 2])
    height, width, _ = image.shape
    x = ((jnp.arange(width) + 0.5) / width).reshape(1, width, 1)
    y = ((jnp.arange(height) + 0.5) / height).reshape(height, 1, 1)
    inside = (hole[0] <= x) & (x < hole[2]) & (hole[1] <= y) & (y < hole[3])
    image = jnp.where(inside, image.mean((0, 1), keepdims=True), image)
    return image, view._replace(hole_xyxy=hole)
