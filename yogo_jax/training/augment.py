"""Augmentation of training images and their boxes, on the device, before each step.

`augment_batch` applies all parts to each image of a batch, in their order: pasted cells, moves, a
hole, light and lens. Parts that are off leave no trace in the step.
Boxes are moved whole. How much of them can still be seen is asked once, after the last of the moves
and the holes, by `cut_boxes`.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from yogo_jax.config.schema import AugmentConfig
from yogo_jax.detector.boxes import area, cxcywh_to_xyxy, intersection, xyxy_to_cxcywh
from yogo_jax.training.pasting import DeviceThumbnails, paste
from yogo_jax.training.rare_cells import CutCells, light_of, replace_cells


# boxes_cxcywh [n 4], class_ids [n] and valid [n] of one image, or of a batch [b n ...].
Labels = tuple[jax.Array, jax.Array, jax.Array]
# Numbers of the parts in their keys. They stay as they are, so that runs draw the same as before.
KEY_NUMBERS = {
    "turn": 1,
    "move": 2,
    "cutout": 5,
    "relight": 6,
    "blur": 7,
    "noise": 8,
    "paste": 9,
    "strip": 10,
    "rare_cells": 11,
    "stain": 12,
}


def augment_batch(
    key: jax.Array,
    images: jax.Array,
    labels: Labels,
    augment: AugmentConfig,
    *,
    paste_enabled: jax.Array | bool = True,
    thumbnails: DeviceThumbnails | None = None,
    rare_cells: CutCells | None = None,
) -> tuple[jax.Array, Labels]:
    """Images and labels as the network is trained on.

    Args:
      images: uint8 pixels, [b h w c].
      labels: boxes_cxcywh [b n 4], class_ids [b n] and valid [b n].
      paste_enabled: False in the last epochs, without holes and pasted cells.
      thumbnails: what `augment.thumbnails` pastes.
      rare_cells: what `augment.rare_cells` puts in the place of frequent cells.

    Returns:
      Pixels from 0 to 255, uint8 where nothing but their places has changed, of fewer rows with
      `augment.vertical_crop`; and as many labels, or more where cells are pasted in.
    """
    count = images.shape[0]
    keys = {
        part: jax.random.split(jax.random.fold_in(key, number), count)
        for part, number in KEY_NUMBERS.items()
    }
    keys["flip"] = jax.random.split(key, count)
    one_image = functools.partial(
        _augment_image,
        augment=augment,
        paste_enabled=paste_enabled,
        thumbnails=thumbnails,
        rare_cells=rare_cells,
    )
    return jax.vmap(one_image)(keys, images, *labels)


def _augment_image(
    keys: Mapping[str, Key[Array, ""]],
    image: Num[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    augment: AugmentConfig,
    paste_enabled: jax.Array | bool,
    thumbnails: DeviceThumbnails | None,
    rare_cells: CutCells | None,
) -> tuple[jax.Array, Labels]:
    """One image and its labels, after all parts; `keys` are those of the image, by part."""
    flips = (augment.horizontal_flip, augment.vertical_flip)
    if rare_cells is not None:
        image, boxes, class_ids = replace_cells(
            keys["rare_cells"],
            image.astype(jnp.float32),
            boxes,
            class_ids,
            valid,
            rare_cells,
            share=augment.rare_cells * paste_enabled,
            most=augment.rare_cells,
            turned=min(flips) > 0,
        )
    if thumbnails is not None:
        image, boxes, class_ids, valid = paste(
            keys["paste"],
            image.astype(jnp.float32),
            boxes,
            class_ids,
            valid,
            thumbnails,
            probability=augment.thumbnails * paste_enabled,
            plain=augment.thumbnails_plain,
            tries=augment.thumbnails_tried,
            flips=flips,
        )
    image, boxes = random_flips(keys["flip"], image, boxes, horizontal=flips[0], vertical=flips[1])
    if augment.quarter_turns:
        image, boxes = quarter_turns(keys["turn"], image, boxes, probability=augment.quarter_turns)
    moves = augment.zoom != (1.0, 1.0) or augment.translation > 0
    relights = augment.brightness or augment.contrast or augment.gamma or augment.colour
    pastes = augment.cutout or augment.thumbnails
    # Without any of them pixels at most change places.
    if moves or relights or pastes or augment.stain or augment.blur or augment.noise:
        image = image.astype(jnp.float32)
    cuts = moves or augment.vertical_crop < 1
    if cuts or augment.cutout:
        view = whole_view()
        if moves:
            image, boxes, view = zoom_and_shift(
                keys["move"],
                image,
                boxes,
                view,
                zoom=augment.zoom,
                translation=augment.translation,
            )
        if augment.cutout:
            probability = augment.cutout * paste_enabled
            image, view = cutout(keys["cutout"], image, view, probability=probability)
        if augment.vertical_crop < 1:
            rows = round(augment.vertical_crop * image.shape[0])
            image, boxes, view = random_strip(keys["strip"], image, boxes, view, rows=rows)
        cut, valid = cut_boxes(boxes, valid, view)
        # A hole alone leaves boxes as they are.
        boxes = cut if cuts else boxes
    if augment.stain:
        image = restain(keys["stain"], image, stain=augment.stain)
    if relights:
        image = relight(
            keys["relight"],
            image,
            brightness=augment.brightness,
            contrast=augment.contrast,
            gamma=augment.gamma,
            colour=augment.colour,
        )
    if augment.blur:
        image = blur(keys["blur"], image, sigma=augment.blur)
    if augment.noise:
        image = add_noise(keys["noise"], image, noise=augment.noise)
    return image, (boxes, class_ids, valid)


# ---- moves ----

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


# ---- light and lens ----

# Taps of the blur to each side: of what lies beyond two and a half sigmas a pixel would not tell.
_BLUR_REACH = 3


def relight(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    *,
    brightness: float,
    contrast: float,
    gamma: float,
    colour: float,
) -> Float[Array, "h w c"]:
    """The image under another light, cut to what a camera gives, 0 to 255.

    Args:
      image: pixels from 0 to 255.
      brightness: most that is added or taken away, as a share of 255.
      contrast: the distance from the mean is multiplied by between `1 / (1 + contrast)` and
        `1 + contrast`.
      gamma: the exponent lies between `1 / (1 + gamma)` and `1 + gamma`.
      colour: most that one channel is brightened or darkened on its own, as a factor.
    """
    keys = jax.random.split(key, 4)

    def factor(which: int, most: float, shape: tuple[int, ...] = ()) -> Array:
        return (1 + most) ** jax.random.uniform(keys[which], shape, minval=-1, maxval=1)

    light = image / 255
    if gamma:
        # The gradient is not asked for, so that 0 needs no care.
        light = jnp.clip(light, 0, 1) ** factor(0, gamma)
    if contrast:
        mean = light.mean()
        light = (light - mean) * factor(1, contrast) + mean
    if colour:
        light = light * factor(2, colour, (1, 1, image.shape[-1]))
    if brightness:
        light = light + brightness * jax.random.uniform(keys[3], minval=-1, maxval=1)
    return jnp.clip(light, 0, 1) * 255


def restain(
    key: Key[Array, ""], image: Float[Array, "h w c"], *, stain: float
) -> Float[Array, "h w c"]:
    """The image with another strength of its stain; its light, where nothing is, stays.

    The optical density `-log(pixel / light)` is multiplied by between `1 / (1 + stain)` and
    `1 + stain`: once for all colours, and once for each.

    References:
      Tellez et al. 2018, Whole-Slide Mitosis Detection, arXiv:1808.05896, section III-C.
    """
    draws = jax.random.uniform(key, (1 + image.shape[-1],), minval=-1, maxval=1)
    factors = (1 + stain) ** (draws[0] + draws[1:])
    light = light_of(image).reshape(1, 1, -1)
    return jnp.clip(light * (jnp.maximum(image, 0) / light) ** factors.reshape(1, 1, -1), 0, 255)


def add_noise(
    key: Key[Array, ""], image: Float[Array, "h w c"], *, noise: float
) -> Float[Array, "h w c"]:
    """The image with normal noise of a standard deviation from 0 to `noise`, a share of 255."""
    size_key, noise_key = jax.random.split(key)
    std = 255 * noise * jax.random.uniform(size_key)
    return jnp.clip(image + std * jax.random.normal(noise_key, image.shape), 0, 255)


def blur(
    key: Key[Array, ""], image: Float[Array, "h w c"], *, sigma: float
) -> Float[Array, "h w c"]:
    """The image out of focus: a Gaussian of a standard deviation from 0 to `sigma` px."""
    drawn = jnp.maximum(sigma * jax.random.uniform(key), 1e-3)
    offsets = jnp.arange(-_BLUR_REACH, _BLUR_REACH + 1)
    weights = jnp.exp(-0.5 * jnp.square(offsets / drawn))
    weights = weights / weights.sum()
    for axis in (0, 1):
        pad = [(_BLUR_REACH, _BLUR_REACH) if each == axis else (0, 0) for each in range(3)]
        wide = jnp.pad(image, pad, mode="edge")
        size = image.shape[axis]
        image = sum(
            (
                jax.lax.slice_in_dim(wide, tap, tap + size, axis=axis) * weights[tap]
                for tap in range(2 * _BLUR_REACH + 1)
            ),
            start=jnp.zeros_like(image),
        )
    return image
