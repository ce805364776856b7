"""Augmentation of training images and their boxes, on the device, before each step.

`augment_image` applies all parts to one image, in their order; `augment_batch` maps it over a
batch. Parts that are off leave no trace in the step.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from yogo_jax.config.schema import AugmentConfig
from yogo_jax.training.augment.geometry import (
    cut_boxes,
    quarter_turns,
    random_flips,
    random_strip,
    whole_view,
    zoom_and_shift,
)
from yogo_jax.training.augment.pasting import DeviceThumbnails, cutout, paste
from yogo_jax.training.augment.photometry import add_noise, blur, relight


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
}


def augment_batch(
    key: jax.Array,
    images: jax.Array,
    labels: Labels,
    augment: AugmentConfig,
    *,
    paste_enabled: jax.Array | bool = True,
    thumbnails: DeviceThumbnails | None = None,
) -> tuple[jax.Array, Labels]:
    """Images and labels as the network is trained on.

    Args:
      key: of the step.
      images: uint8 pixels, [b h w c].
      labels: boxes_cxcywh [b n 4], class_ids [b n] and valid [b n].
      augment: what happens, and how much.
      paste_enabled: False in the last epochs, without holes and pasted cells.
      thumbnails: what `augment.thumbnails` pastes.

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
        augment_image, augment=augment, paste_enabled=paste_enabled, thumbnails=thumbnails
    )
    return jax.vmap(one_image)(keys, images, *labels)


def augment_image(
    keys: Mapping[str, Key[Array, ""]],
    image: Num[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    augment: AugmentConfig,
    paste_enabled: jax.Array | bool,
    thumbnails: DeviceThumbnails | None,
) -> tuple[jax.Array, Labels]:
    """One image and its labels, after all parts.

    Args:
      keys: of this image, by part.
      image: uint8 pixels.
      boxes: cxcywh, as fractions of the image.
      class_ids: of the boxes.
      valid: False on padding rows.
      augment: what happens, and how much.
      paste_enabled: False leaves out holes and pasted cells.
      thumbnails: what is pasted in, if anything is.
    """
    flips = (augment.horizontal_flip, augment.vertical_flip)
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
    if moves or relights or pastes or augment.blur or augment.noise:
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
