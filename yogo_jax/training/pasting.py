"""Cut-out cells pasted into one training image, each with its box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from yogo_jax.data.thumbnails import Thumbnails
from yogo_jax.detector.boxes import cxcywh_to_xyxy, intersection, xyxy_to_cxcywh


# So many px at the edge of a thumbnail the frame still shines through. More would cut the sides of
# cells that fill their box.
FEATHER_PX = 1
# A thumbnail's corners, where its ground is looked for: this share of each side.
_CORNER = 1 / 6
# The ground of a frame is found in every so many rows and columns of it.
_SAMPLED = 8


class DeviceThumbnails(NamedTuple):
    """`Thumbnails` in the memory of the device."""

    images: Num[Array, "t h w c"]
    sizes_hw: Int[Array, "t 2"]
    class_ids: Int[Array, " t"]
    shares: Float[Array, " t"]


# Pixels with room at the far edges; boxes in px, their classes, and which of them are there.
_Canvas = tuple[Array, Array, Array, Array]


def on_device(thumbnails: Thumbnails) -> DeviceThumbnails:
    """The arrays that `paste` takes."""
    return DeviceThumbnails(
        jnp.asarray(thumbnails.images),
        jnp.asarray(thumbnails.sizes_hw),
        jnp.asarray(thumbnails.class_ids),
        jnp.asarray(thumbnails.shares()),
    )


def paste(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    boxes_cxcywh: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    thumbnails: DeviceThumbnails,
    *,
    probability: float | Array,
    plain: float,
    tries: int,
    flips: tuple[float, float],
) -> tuple[Float[Array, "h w c"], Float[Array, "m 4"], Int[Array, " m"], Bool[Array, " m"]]:
    """The image with thumbnails at random places where no box is; m = n + tries.

    Each is made as bright as the place it comes to, by what lies in its corners, and blends into
    it over `FEATHER_PX`. Its box is the thumbnail.

    Args:
      image: pixels from 0 to 255.
      boxes_cxcywh: as fractions of the image.
      valid: False on padding rows.
      thumbnails: to choose from.
      probability: that anything is pasted.
      plain: share of those images that lose all else: their ground is their median colour.
      tries: places that are drawn; those on which there is a box already stay as they are.
      flips: probabilities of a thumbnail's own left-right and top-bottom exchange.

    References:
      Dwibedi et al. 2017, Cut, Paste and Learn, arXiv:1708.01642, section 4.3.
    """
    height, width, channels = image.shape
    high, wide = thumbnails.images.shape[1:3]
    coin_key, plain_key, tries_key = jax.random.split(key, 3)
    chosen = jax.random.uniform(coin_key) < probability
    empty = chosen & (jax.random.uniform(plain_key) < plain)
    first = min(_SAMPLED // 2, height - 1, width - 1)
    ground = jnp.median(image[first::_SAMPLED, first::_SAMPLED], axis=(0, 1))
    image = jnp.where(empty, ground.reshape(1, 1, -1), image)
    side_px = jnp.asarray((width, height, width, height), image.dtype).reshape(1, 4)
    boxes_px = jnp.concatenate([cxcywh_to_xyxy(boxes_cxcywh) * side_px, jnp.zeros((tries, 4))])
    taken = jnp.concatenate([valid & ~empty, jnp.zeros(tries, bool)])
    class_ids = jnp.concatenate([class_ids, jnp.zeros(tries, class_ids.dtype)])
    # Room for windows of the largest thumbnail at the far edges.
    canvas = jnp.pad(image, ((0, high), (0, wide), (0, 0)))

    def one_try(carry: _Canvas, at: tuple[Array, Array]) -> tuple[_Canvas, None]:
        canvas, boxes_px, class_ids, taken = carry
        row, key = at
        which_key, flip_key, place_key = jax.random.split(key, 3)
        which = jax.random.choice(which_key, thumbnails.shares.shape[0], p=thumbnails.shares)
        size_hw = thumbnails.sizes_hw[which]
        cell = _flipped(flip_key, thumbnails.images[which].astype(image.dtype), size_hw, flips)
        room = jnp.asarray((height, width)) - size_hw + 1
        top_left = jnp.floor(jax.random.uniform(place_key, (2,)) * room).astype(jnp.int32)
        y, x = jnp.minimum(top_left, room - 1)
        box_px = jnp.stack([x, y, x + size_hw[1], y + size_hw[0]]).astype(image.dtype)
        is_free = ~(taken & (intersection(boxes_px, box_px.reshape(1, 4)) > 0)).any()
        pasted = chosen & is_free
        window = jax.lax.dynamic_slice(canvas, (y, x, 0), (high, wide, channels))
        window = jnp.where(pasted, _blend(window, cell, size_hw), window)
        canvas = jax.lax.dynamic_update_slice(canvas, window, (y, x, 0))
        boxes_px = boxes_px.at[row].set(jnp.where(pasted, box_px, 0))
        class_ids = class_ids.at[row].set(jnp.where(pasted, thumbnails.class_ids[which], 0))
        return (canvas, boxes_px, class_ids, taken.at[row].set(pasted)), None

    rows = boxes_cxcywh.shape[0] + jnp.arange(tries)
    (canvas, boxes_px, class_ids, taken), _ = jax.lax.scan(
        one_try, (canvas, boxes_px, class_ids, taken), (rows, jax.random.split(tries_key, tries))
    )
    pasted_boxes = xyxy_to_cxcywh(boxes_px[boxes_cxcywh.shape[0] :] / side_px)
    # The frame's own boxes as they came: a way there and back would round them.
    return canvas[:height, :width], jnp.concatenate([boxes_cxcywh, pasted_boxes]), class_ids, taken


def _flipped(
    key: Key[Array, ""],
    cell: Float[Array, "h w c"],
    size_hw: Int[Array, "2"],
    flips: tuple[float, float],
) -> Float[Array, "h w c"]:
    """The thumbnail mirrored in place; what lies outside of it is of no interest."""
    coins = jax.random.uniform(key, (2,)) < jnp.asarray(flips)
    for axis, coin in ((0, coins[1]), (1, coins[0])):
        index = jnp.arange(cell.shape[axis])
        mirrored = jnp.maximum(size_hw[axis] - 1 - index, 0)
        cell = jnp.take(cell, jnp.where(coin, mirrored, index), axis=axis)
    return cell


def _blend(
    window: Float[Array, "h w c"], cell: Float[Array, "h w c"], size_hw: Int[Array, "2"]
) -> Float[Array, "h w c"]:
    """The window of a frame with a thumbnail in its top left corner."""
    # Pixels to the nearest edge along each axis: 1 in the first row, 0 and less outside.
    rows, columns = (
        jnp.minimum(jnp.arange(side) + 1, size - jnp.arange(side))
        for side, size in zip(window.shape[:2], size_hw, strict=True)
    )
    rows, columns = rows.reshape(-1, 1, 1), columns.reshape(1, -1, 1)
    inside = (rows > 0) & (columns > 0)
    corner_hw = jnp.maximum(jnp.floor(size_hw * _CORNER), 1)
    corners = inside & (rows <= corner_hw[0]) & (columns <= corner_hw[1])

    def ground(pixels: Array) -> Array:
        return jnp.nanmedian(jnp.where(corners, pixels, jnp.nan), axis=(0, 1), keepdims=True)

    share = jnp.clip(jnp.minimum(rows, columns) / (FEATHER_PX + 1), 0, 1)
    levelled = jnp.clip(cell + ground(window) - ground(cell), 0, 255)
    return window + share * (levelled - window)
