"""Random moves of one training image, and its boxes with it.

Boxes are moved whole. How much of them can still be seen is asked once, after the last of the moves
and the holes, by `cut_boxes`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from yogo_jax.detector.boxes import area, cxcywh_to_xyxy, intersection, xyxy_to_cxcywh


# A box stays a label while so much of its area, as it was labelled, can be seen. Of less nobody
# would say what it is.
MIN_VISIBLE = 0.25


class View(NamedTuple):
    """The visible part of a frame: corners, as fractions of the image.

    Attributes:
      frame_xyxy: the part of the image that shows the frame; around it there is nothing.
      hole_xyxy: what is hidden of it; without an area if nothing is.
    """

    frame_xyxy: Float[Array, "*b 4"]
    hole_xyxy: Float[Array, "*b 4"]

    def moved(self, scale_xy: Float[Array, "2"], offset_xy: Float[Array, "2"]) -> "View":
        """The view after a point x has moved to `scale * x + offset`, cut at the image's edges."""
        scale, offset = (jnp.concatenate([each, each]) for each in (scale_xy, offset_xy))
        return View(*(jnp.clip(each * scale + offset, 0, 1) for each in self))


def whole_view() -> View:
    """All of the frame, and no hole."""
    return View(jnp.asarray((0.0, 0.0, 1.0, 1.0)), jnp.zeros(4))


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


def quarter_turns(
    key: Key[Array, ""],
    image: Num[Array, "s s c"],
    boxes_cxcywh: Float[Array, "n 4"],
    *,
    probability: float,
) -> tuple[Num[Array, "s s c"], Float[Array, "n 4"]]:
    """The square image and its boxes, turned left by 90 degrees with that probability.

    Together with flips it reaches all eight positions of a square.
    """
    turned = jax.random.uniform(key) < probability
    x, y, w, h = boxes_cxcywh.T
    boxes = jnp.where(turned, jnp.stack([y, 1 - x, h, w], axis=1), boxes_cxcywh)
    return jnp.where(turned, image.transpose(1, 0, 2)[::-1], image), boxes


def zoom_and_shift(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    boxes_cxcywh: Float[Array, "n 4"],
    view: View,
    *,
    zoom: tuple[float, float],
    translation: float,
) -> tuple[Float[Array, "h w c"], Float[Array, "n 4"], View]:
    """The image at another scale and another place; what comes in from outside has its mean colour.

    Args:
      key: of the image.
      image: pixels.
      boxes_cxcywh: as fractions of the image; they may come to lie outside of it.
      view: of the image; it moves, too.
      zoom: range of the scale, drawn evenly in its logarithm.
      translation: largest shift of the centre along each axis, as a fraction of the image.
    """
    zoom_key, shift_key = jax.random.split(key)
    low, high = zoom
    scale = low * (high / low) ** jax.random.uniform(zoom_key)
    shift_xy = jax.random.uniform(shift_key, (2,), minval=-translation, maxval=translation)
    # Of a point x in [0, 1]: scale * x + offset.
    offset_xy = 0.5 - 0.5 * scale + shift_xy
    height, width, _ = image.shape
    colour = image.mean((0, 1), keepdims=True)
    moved = jax.image.scale_and_translate(
        image - colour,
        image.shape,
        (0, 1),
        jnp.stack([scale, scale]),
        jnp.stack([offset_xy[1] * height, offset_xy[0] * width]),
        method="linear",
    )
    centres = boxes_cxcywh[:, :2] * scale + offset_xy.reshape(1, 2)
    boxes = jnp.concatenate([centres, boxes_cxcywh[:, 2:] * scale], axis=1)
    return moved + colour, boxes, view.moved(jnp.stack([scale, scale]), offset_xy)


def random_strip(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    boxes_cxcywh: Float[Array, "n 4"],
    view: View,
    *,
    rows: int,
) -> tuple[Num[Array, "rows w c"], Float[Array, "n 4"], View]:
    """So many rows of the image from a random height on, and the boxes as fractions of them.

    Args:
      key: of the image.
      image: pixels.
      boxes_cxcywh: as fractions of the image; of the strip they may lie outside.
      view: of the image; becomes that of the strip.
      rows: of the strip, at most the image's.
    """
    height, width, channels = image.shape
    top = jax.random.randint(key, (), 0, height - rows + 1)
    strip = jax.lax.dynamic_slice(image, (top, 0, 0), (rows, width, channels))
    # Of a point y in [0, 1]: scale * y - offset.
    scale, offset = height / rows, top / rows
    x, y, w, h = boxes_cxcywh.T
    boxes = jnp.stack([x, y * scale - offset, w, h * scale], axis=1)
    return strip, boxes, view.moved(jnp.stack([1.0, scale]), jnp.stack([0.0, -offset]))


def cut_boxes(
    boxes_cxcywh: Float[Array, "n 4"], valid: Bool[Array, " n"], view: View
) -> tuple[Float[Array, "n 4"], Bool[Array, " n"]]:
    """Boxes cut where the frame ends, and which of them stay labels.

    Those stay of which `MIN_VISIBLE` can be seen of the whole box, as it was labelled: what a label
    reaches over the edge of its frame counts as not seen, and what a hole hides, too.

    Args:
      boxes_cxcywh: whole boxes, after all moves.
      valid: False on padding rows.
      view: after all moves.
    """
    boxes = cxcywh_to_xyxy(boxes_cxcywh)
    low, high = view.frame_xyxy[:2].reshape(1, 2), view.frame_xyxy[2:].reshape(1, 2)
    cut = jnp.clip(boxes, jnp.concatenate([low, low], 1), jnp.concatenate([high, high], 1))
    seen = area(cut) - intersection(cut, view.hole_xyxy.reshape(1, 4))
    stays = (seen >= MIN_VISIBLE * area(boxes)) & (area(cut) > 0)
    return xyxy_to_cxcywh(cut), valid & stays
