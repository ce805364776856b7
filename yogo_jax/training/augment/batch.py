"""What happens to a batch of training images and their boxes, on the device, before each step.

The parts are functions of one image; here they are put together. Those that are off leave no trace
in the step.
"""

import functools

import jax
import jax.numpy as jnp

from yogo_jax.config.schema import AugmentConfig
from yogo_jax.training.augment.geometry import (
    View,
    cut_boxes,
    quarter_turns,
    random_flips,
    random_strip,
    whole_view,
    zoom_and_shift,
)
from yogo_jax.training.augment.pasting import DeviceThumbnails, cutout, paste
from yogo_jax.training.augment.photometry import add_noise, blur, relight


Labels = tuple[jax.Array, jax.Array, jax.Array]


def augment_batch(
    key: jax.Array,
    images: jax.Array,
    labels: Labels,
    augment: AugmentConfig,
    *,
    composing: jax.Array | bool = True,
    thumbnails: DeviceThumbnails | None = None,
) -> tuple[jax.Array, Labels]:
    """Images and labels as the network is trained on.

    Args:
      key: of the step.
      images: uint8 pixels, [b h w c].
      labels: boxes_cxcywh [b n 4], class_ids [b n] and valid [b n].
      augment: what happens, and how much.
      composing: False in the last epochs, without holes and pasted cells
        (`augment.epochs_without_paste`).
      thumbnails: what `augment.thumbnails` pastes.

    Returns:
      Pixels from 0 to 255, uint8 where nothing but their places has changed, of fewer rows with
      `augment.vertical_crop`; and as many labels, or more where cells are pasted in.
    """
    boxes, class_ids, valid = labels
    count = images.shape[0]

    def keys_of(part: int) -> jax.Array:
        return jax.random.split(jax.random.fold_in(key, part), count)

    if thumbnails is not None:
        stick = functools.partial(
            paste,
            thumbnails=thumbnails,
            probability=augment.thumbnails * composing,
            plain=augment.thumbnails_plain,
            tries=augment.thumbnails_tried,
            flips=(augment.horizontal_flip, augment.vertical_flip),
        )
        images, boxes, class_ids, valid = jax.vmap(stick)(
            keys_of(9), images.astype(jnp.float32), boxes, class_ids, valid
        )
    flip = functools.partial(
        random_flips, horizontal=augment.horizontal_flip, vertical=augment.vertical_flip
    )
    images, boxes = jax.vmap(flip)(jax.random.split(key, count), images, boxes)
    if augment.quarter_turns:
        turn = functools.partial(quarter_turns, probability=augment.quarter_turns)
        images, boxes = jax.vmap(turn)(keys_of(1), images, boxes)
    if not augment.keeps_values:
        images = images.astype(jnp.float32)
    cuts = augment.moves or augment.vertical_crop < 1
    if cuts or augment.cutout:
        views = View(*(jnp.tile(each, (count, 1)) for each in whole_view()))
        if augment.moves:
            move = functools.partial(
                zoom_and_shift, zoom=augment.zoom, translation=augment.translation
            )
            images, boxes, views = jax.vmap(move)(keys_of(2), images, boxes, views)
        if augment.cutout:
            hide = functools.partial(cutout, probability=augment.cutout * composing)
            images, views = jax.vmap(hide)(keys_of(5), images, views)
        if augment.vertical_crop < 1:
            rows = round(augment.vertical_crop * images.shape[1])
            crop = functools.partial(random_strip, rows=rows)
            images, boxes, views = jax.vmap(crop)(keys_of(10), images, boxes, views)
        cut, valid = jax.vmap(cut_boxes)(boxes, valid, views)
        # A hole alone leaves boxes as they are.
        boxes = cut if cuts else boxes
    if augment.relights:
        light = functools.partial(
            relight,
            brightness=augment.brightness,
            contrast=augment.contrast,
            gamma=augment.gamma,
            colour=augment.colour,
        )
        images = jax.vmap(light)(keys_of(6), images)
    if augment.blur:
        images = jax.vmap(functools.partial(blur, sigma=augment.blur))(keys_of(7), images)
    if augment.noise:
        images = jax.vmap(functools.partial(add_noise, noise=augment.noise))(keys_of(8), images)
    return images, (boxes, class_ids, valid)
