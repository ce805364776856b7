"""Training images made of several, and images with holes; their boxes are put together alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from yogo_jax.detector.boxes import area, cxcywh_to_xyxy, intersection
from yogo_jax.training.augmentation.geometry import MIN_VISIBLE, cut_boxes


def mosaic(
    key: Key[Array, ""],
    images: Float[Array, "4 h w c"],
    boxes_cxcywh: Float[Array, "4 n 4"],
    valid: Bool[Array, "4 n"],
    *,
    probability: float | Array,
) -> tuple[Float[Array, "h w c"], Float[Array, "m 4"], Bool[Array, " m"]]:
    """One image of the four, each in one quarter around a random crossing, in its own place.

    Args:
      key: of the image.
      images: the image itself and three others, pixels.
      boxes_cxcywh: as fractions of each of them.
      valid: False on padding rows.
      probability: else it is the first image alone.

    Returns:
      The image, the boxes of all four, cut at the crossing, and which of them are still to be seen;
      m = 4n.

    References:
      Bochkovskiy et al. 2020, YOLOv4, arXiv:2004.10934, section 3.3 (mosaic); Yun et al. 2019,
      CutMix, arXiv:1905.04899 (parts that keep their scale).
    """
    coin_key, crossing_key = jax.random.split(key)
    crossing = jax.random.uniform(crossing_key, (2,), minval=0.25, maxval=0.75)
    crossing = jnp.where(jax.random.uniform(coin_key) < probability, crossing, 1.0)
    x, y = crossing[0], crossing[1]
    _, height, width, _ = images.shape
    left = ((jnp.arange(width) + 0.5) / width < x).reshape(1, width, 1)
    top = ((jnp.arange(height) + 0.5) / height < y).reshape(height, 1, 1)
    image = jnp.where(
        top, jnp.where(left, images[0], images[1]), jnp.where(left, images[2], images[3])
    )
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    windows = jnp.stack(
        [
            jnp.stack([zero, zero, x, y]),
            jnp.stack([x, zero, one, y]),
            jnp.stack([zero, y, x, one]),
            jnp.stack([x, y, one, one]),
        ]
    )
    boxes, seen = jax.vmap(cut_boxes)(boxes_cxcywh, valid, windows)
    return image, boxes.reshape(-1, 4), seen.reshape(-1)


def mixup(
    key: Key[Array, ""],
    images: Float[Array, "2 h w c"],
    valid: Bool[Array, "2 n"],
    *,
    probability: float | Array,
) -> tuple[Float[Array, "h w c"], Bool[Array, " m"]]:
    """The first image with the second shining through, and which boxes of both are labels; m = 2n.

    References:
      Zhang et al. 2019, Bag of Freebies for Training Object Detection, arXiv:1902.04103, section
      3.1.
    """
    coin_key, share_key = jax.random.split(key)
    mixed = jax.random.uniform(coin_key) < probability
    share = jnp.where(mixed, jax.random.beta(share_key, 8.0, 8.0), 1.0)
    image = share * images[0] + (1 - share) * images[1]
    return image, jnp.concatenate([valid[0], valid[1] & mixed])


def cutout(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    boxes_cxcywh: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    *,
    probability: float | Array,
    largest: float = 0.25,
) -> tuple[Float[Array, "h w c"], Bool[Array, " n"]]:
    """The image with a hole of its mean colour, and which boxes can still be seen.

    Args:
      key: of the image.
      image: pixels.
      boxes_cxcywh: as fractions of the image; they keep their size.
      valid: False on padding rows, and afterwards on boxes that the hole covers.
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
    boxes = cxcywh_to_xyxy(boxes_cxcywh)
    covered = intersection(boxes, hole.reshape(1, 4))
    return image, valid & (covered <= (1 - MIN_VISIBLE) * area(boxes))


def partners_of(image_valid: Bool[Array, " b"], *, count: int) -> Int[Array, "b count"]:
    """For each image itself and the ones after it in its batch, itself again for padding ones."""
    own = jnp.arange(image_valid.shape[0])
    others = (own.reshape(-1, 1) + jnp.arange(count).reshape(1, -1)) % image_valid.shape[0]
    return jnp.where(image_valid[others], others, own.reshape(-1, 1))
