"""Random changes of one training image and its boxes, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num


def random_flips(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    boxes_cxcywh: Float[Array, "n 4"],
    *,
    horizontal: float,
    vertical: float,
) -> tuple[Num[Array, "h w c"], Float[Array, "n 4"]]:
    """The image and its boxes, mirrored left-right and top-bottom with the given probabilities.

    Args:
      key: one per image, so that each tosses its own coins.
      image: pixels.
      boxes_cxcywh: as fractions of the image; padding rows are mirrored too, which is harmless.
      horizontal: probability of exchanging left and right.
      vertical: probability of exchanging top and bottom.
    """
    coins = jax.random.uniform(key, (2,)) < jnp.asarray((horizontal, vertical))
    image = jnp.where(coins[0], image[:, ::-1], image)
    image = jnp.where(coins[1], image[::-1], image)
    centres = boxes_cxcywh[:, :2]
    centres = jnp.where(coins.reshape(1, 2), 1 - centres, centres)
    return image, jnp.concatenate([centres, boxes_cxcywh[:, 2:]], axis=1)
