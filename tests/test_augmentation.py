"""Augmentations move boxes with their pixels: a frame of marked squares, and NumPy oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from yogo_jax.config.schema import AugmentConfig
from yogo_jax.data.thumbnails import Thumbnails
from yogo_jax.training.augment import (
    MIN_VISIBLE,
    add_noise,
    augment_batch,
    blur,
    cut_boxes,
    cutout,
    quarter_turns,
    random_strip,
    relight,
    whole_view,
    zoom_and_shift,
)
from yogo_jax.training.pasting import DeviceThumbnails, on_device


HEIGHT, WIDTH = 60, 80
# Corners in px of bright squares on a dark frame, far enough from each other and from the edges.
SQUARES_PX = np.asarray([(20, 15, 32, 27), (50, 30, 66, 46)])


def frame_of(squares_px, height=HEIGHT, width=WIDTH) -> np.ndarray:
    image = np.full((height, width, 1), 20, np.float32)
    for x1, y1, x2, y2 in squares_px:
        image[y1:y2, x1:x2] = 220
    return image


def boxes_of(squares_px, height=HEIGHT, width=WIDTH) -> np.ndarray:
    corners = np.asarray(squares_px, np.float32) / (width, height, width, height)
    return np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
    )


def corners_px(boxes_cxcywh, height=HEIGHT, width=WIDTH) -> np.ndarray:
    boxes = np.asarray(boxes_cxcywh)
    corners = np.concatenate(
        [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1
    )
    return corners * (width, height, width, height)


def brightness_centre(image, corners) -> np.ndarray:
    """Centre of the light within some px around a box, (x, y) in px."""
    x1, y1, x2, y2 = np.add(np.round(corners).astype(int), (-4, -4, 4, 4))
    x1, y1 = max(x1, 0), max(y1, 0)
    part = np.asarray(image)[y1:y2, x1:x2, 0] - 20
    rows, columns = np.indices(part.shape)
    return np.asarray(
        [
            (part * (columns + 0.5)).sum() / part.sum() + x1,
            (part * (rows + 0.5)).sum() / part.sum() + y1,
        ]
    )


@pytest.mark.parametrize("seed", range(12))
def test_zoom_and_shift_move_boxes_with_their_pixels(seed):
    image, boxes, view = zoom_and_shift(
        jax.random.key(seed),
        jnp.asarray(frame_of(SQUARES_PX)),
        jnp.asarray(boxes_of(SQUARES_PX)),
        whole_view(),
        zoom=(0.7, 1.3),
        translation=0.1,
    )
    boxes, valid = cut_boxes(boxes, jnp.ones(2, bool), view)
    corners = corners_px(boxes)
    whole = (corners > 1).all(1) & (corners < (WIDTH - 1, HEIGHT - 1) * 2).all(1)
    assert whole.any()
    assert valid[whole].all()
    for each in corners[whole]:
        centre = (each[:2] + each[2:]) / 2
        np.testing.assert_allclose(brightness_centre(image, each), centre, atol=0.5)
        # As much light as the box has area.
        x1, y1, x2, y2 = np.add(np.round(each).astype(int), (-4, -4, 4, 4))
        light = (np.asarray(image)[max(y1, 0) : y2, max(x1, 0) : x2, 0] - 20).sum() / 200
        assert light == pytest.approx(np.prod(each[2:] - each[:2]), rel=0.12)


def test_a_scale_of_one_changes_nothing():
    image, boxes = jnp.asarray(frame_of(SQUARES_PX)), jnp.asarray(boxes_of(SQUARES_PX))
    moved = zoom_and_shift(
        jax.random.key(0), image, boxes, whole_view(), zoom=(1.0, 1.0), translation=0.0
    )
    np.testing.assert_allclose(moved[0], image, atol=1e-3)
    np.testing.assert_allclose(moved[1], boxes, atol=1e-6)
    np.testing.assert_array_equal(moved[2].frame_xyxy, (0, 0, 1, 1))


def test_what_comes_in_from_outside_has_the_mean_colour():
    image = jnp.asarray(frame_of(SQUARES_PX))
    moved, *_ = zoom_and_shift(
        jax.random.key(0),
        image,
        jnp.zeros((1, 4)),
        whole_view(),
        zoom=(0.5, 0.5),
        translation=0.0,
    )
    np.testing.assert_allclose(moved[0], image.mean(), rtol=1e-4)


def test_quarter_turns_turn():
    image = jnp.arange(4 * 4, dtype=jnp.uint8).reshape(4, 4, 1)
    boxes = jnp.asarray([(0.1, 0.7, 0.2, 0.4)])
    turned, moved = quarter_turns(jax.random.key(0), image, boxes, probability=1.0)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(image[..., 0]))
    np.testing.assert_allclose(moved, [(0.7, 0.9, 0.4, 0.2)])
    same, unmoved = quarter_turns(jax.random.key(0), image, boxes, probability=0.0)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(unmoved, boxes)


CUTS = {
    "inside": ((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), True),
    "three quarters seen": ((0.05, 0.5, 0.2, 0.2), (0.075, 0.5, 0.15, 0.2), True),
    "exactly enough": ((-0.05, 0.5, 0.2, 0.2), (0.025, 0.5, 0.05, 0.2), True),
    "a corner of it": ((0.0, 0.0, 0.1875, 0.1875), (0.046875, 0.046875, 0.09375, 0.09375), True),
    "too little": ((-0.06, 0.5, 0.2, 0.2), None, False),
    "outside": ((-0.5, 0.5, 0.2, 0.2), None, False),
    "without area": ((0.5, 0.5, 0.0, 0.0), None, False),
}


@pytest.mark.parametrize("case", CUTS)
def test_cut_boxes(case):
    box, expected, seen = CUTS[case]
    # A hair more than its limit, so that rounding does not decide the case that lies on it.
    box = np.add(np.asarray([box], np.float32), (1e-6, 0, 0, 0))
    cut, valid = cut_boxes(jnp.asarray(box, jnp.float32), jnp.ones(1, bool), whole_view())
    assert bool(valid[0]) == seen
    if seen:
        np.testing.assert_allclose(cut[0], expected, atol=2e-6)
    padding = cut_boxes(jnp.asarray(box, jnp.float32), jnp.zeros(1, bool), whole_view())
    assert not padding[1].any()


def test_a_strip_shows_its_rows_and_what_lies_in_them():
    frame = frame_of(SQUARES_PX)
    tops = set()
    for seed in range(60):
        strip, boxes, view = random_strip(
            jax.random.key(seed),
            jnp.asarray(frame),
            jnp.asarray(boxes_of(SQUARES_PX)),
            whole_view(),
            rows=24,
        )
        boxes, valid = cut_boxes(boxes, jnp.ones(2, bool), view)
        assert strip.shape == (24, WIDTH, 1)
        (top,) = [y for y in range(HEIGHT - 23) if np.array_equal(frame[y : y + 24], strip)][:1]
        tops.add(top)
        for (x1, y1, x2, y2), box, is_valid in zip(
            SQUARES_PX, corners_px(boxes, height=24), valid, strict=True
        ):
            low, high = np.clip([y1 - top, y2 - top], 0, 24)
            share = (high - low) / (y2 - y1)
            # Several tops show an empty strip, or the same part of one square.
            if share != pytest.approx(MIN_VISIBLE) and len(np.unique(strip)) == 2:
                assert is_valid == (share > MIN_VISIBLE)
            if is_valid:
                rows = np.flatnonzero(np.asarray(strip)[:, (x1 + x2) // 2, 0] > 100)
                np.testing.assert_allclose(box, (x1, rows[0], x2, rows[-1] + 1), atol=1e-3)
    assert len(tops) > 15


def test_a_hole_hides_what_it_covers():
    image = jnp.asarray(frame_of(SQUARES_PX))
    grid = np.asarray([(x, y, x + 4, y + 4) for x in range(0, 80, 4) for y in range(0, 60, 4)])
    boxes = jnp.asarray(boxes_of(grid))
    hidden = 0
    for seed in range(6):
        holed, view = cutout(jax.random.key(seed), image + 5, whole_view(), probability=1.0)
        _, valid = cut_boxes(boxes, jnp.ones(len(grid), bool), view)
        hole = np.isclose(np.asarray(holed)[..., 0], float((image + 5).mean()), atol=1e-3)
        for (x1, y1, x2, y2), ok in zip(grid, np.asarray(valid), strict=True):
            covered = hole[y1:y2, x1:x2].mean()
            if abs(covered - (1 - MIN_VISIBLE)) > 0.3:
                assert ok == (covered < 1 - MIN_VISIBLE)
            hidden += not ok
    assert hidden
    untouched, view = cutout(jax.random.key(0), image, whole_view(), probability=0.0)
    _, valid = cut_boxes(boxes, jnp.ones(len(grid), bool), view)
    np.testing.assert_array_equal(untouched, image)
    assert valid.all()


RAMP = jnp.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3)
NO_LIGHT = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "colour": 0.0}


@pytest.mark.parametrize("field", NO_LIGHT)
def test_light_changes_within_what_a_camera_gives(field):
    strong = {**NO_LIGHT, field: 0.5}
    means = []
    for seed in range(20):
        image = relight(jax.random.key(seed), RAMP, **strong)
        assert float(image.min()) >= 0
        assert float(image.max()) <= 255
        assert not np.allclose(image, RAMP, atol=0.5) or seed
        means.append(float(image.mean()))
        if field != "colour":
            # Brighter stays brighter.
            assert (np.diff(np.asarray(image).reshape(-1)) >= -1e-3).all()
    assert min(means) < max(means)
    np.testing.assert_allclose(relight(jax.random.key(0), RAMP, **NO_LIGHT), RAMP, atol=1e-3)


def test_gamma_against_numpy():
    image = relight(jax.random.key(3), RAMP, **{**NO_LIGHT, "gamma": 0.5})
    middle = np.asarray(image).reshape(-1)[50:150] / 255
    given = np.asarray(RAMP).reshape(-1)[50:150] / 255
    exponents = np.log(middle) / np.log(given)
    np.testing.assert_allclose(exponents, exponents[0], rtol=1e-3)
    assert 1 / 1.5 <= exponents[0] <= 1.5


def test_blur_keeps_the_light_and_noise_its_size():
    dot = jnp.zeros((15, 15, 1)).at[7, 7].set(100.0)
    for seed in range(5):
        soft = blur(jax.random.key(seed), dot, sigma=1.5)
        assert float(soft.sum()) == pytest.approx(100, rel=1e-4)
        assert float(soft.max()) <= 100
    flat = jnp.full((64, 64, 1), 128.0)
    stds = [float(add_noise(jax.random.key(seed), flat, noise=0.1).std()) for seed in range(20)]
    assert min(stds) > 0
    assert 15 < max(stds) <= 25.5 * 1.05


ALL = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "zoom": (0.8, 1.2),
    "translation": 0.1,
    "vertical_crop": 0.5,
    "thumbnails": 1.0,
    "thumbnails_tried": 2,
    "cutout": 1.0,
    "brightness": 0.1,
    "blur": 0.5,
    "noise": 0.05,
}


def batch():
    frames = np.stack([frame_of(SQUARES_PX)] * 3).astype(np.uint8)
    boxes = np.stack([boxes_of(SQUARES_PX)] * 3)
    return jnp.asarray(frames), (
        jnp.asarray(boxes),
        jnp.asarray([(0, 1), (2, 3), (4, 5)]),
        jnp.ones((3, 2), bool),
    )


def thumbnails() -> DeviceThumbnails:
    """One, white on gray, of class 7."""
    cell = np.full((1, 8, 8, 1), 100, np.uint8)
    cell[0, 2:6, 2:6] = 255
    sizes = np.asarray([(8, 8)], np.int32)
    return on_device(Thumbnails(cell, sizes, np.asarray([7], np.int32), 0))


def test_all_together_keep_shapes_and_labels_together():
    images, labels = batch()
    augment = jax.jit(functools.partial(augment_batch, augment=AugmentConfig(**ALL)))
    found, (boxes, class_ids, valid) = augment(
        jax.random.key(0), images, labels, thumbnails=thumbnails()
    )
    assert found.shape == (3, HEIGHT // 2, WIDTH, 1)
    assert found.dtype == jnp.float32
    assert boxes.shape == (3, 4, 4)
    assert class_ids.shape == valid.shape == (3, 4)
    for own, all_ids in zip(labels[1], class_ids, strict=True):
        np.testing.assert_array_equal(all_ids[:2], own)
    assert set(np.asarray(class_ids)[:, 2:].ravel()) <= {0, 7}


def test_last_epochs_see_whole_images():
    images, labels = batch()
    fields = {
        "horizontal_flip": 0.0,
        "vertical_flip": 0.0,
        "thumbnails": 1.0,
        "cutout": 1.0,
    }
    found, (boxes, _, valid) = augment_batch(
        jax.random.key(0),
        images,
        labels,
        AugmentConfig(**fields),
        paste_enabled=jnp.asarray(False),
        thumbnails=thumbnails(),
    )
    np.testing.assert_array_equal(found, images)
    assert valid.sum() == 6
    np.testing.assert_allclose(boxes[valid], labels[0].reshape(-1, 4), atol=1e-6)


def test_off_is_the_recipe_of_base():
    augment = base.get_config().augment.to_dict()
    off = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5)
    assert AugmentConfig(**augment) == off
    images, labels = batch()
    found, moved = augment_batch(jax.random.key(0), images, labels, off)
    assert found.dtype == jnp.uint8
    assert moved[1] is labels[1]
    assert moved[2] is labels[2]


def shares_seen(image, boxes_cxcywh, image_hw) -> np.ndarray:
    """The share of each box of which there are pixels, counted in an image of coordinates.

    Each pixel of the frame held its own (x, y) in px, so that it tells where it comes from. Where
    neighbours do not differ as they do elsewhere, something else is shown.
    """
    image = np.asarray(image, np.float64)
    steps_x = np.abs(np.diff(image[..., 0], axis=1))
    steps_y = np.abs(np.diff(image[..., 1], axis=0))
    step = np.median(steps_x[steps_x > 1e-3])
    # A frame that is reduced is a little uneven.
    fits_x, fits_y = (np.abs(steps - step) < 0.4 * step for steps in (steps_x, steps_y))
    shown = np.pad(fits_x, ((0, 0), (1, 0))) | np.pad(fits_x, ((0, 0), (0, 1)))
    shown &= np.pad(fits_y, ((1, 0), (0, 0))) | np.pad(fits_y, ((0, 1), (0, 0)))
    x, y = image[shown].T
    shares = []
    for x1, y1, x2, y2 in corners_px(boxes_cxcywh, *image_hw):
        inside = (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)
        shares.append(inside.sum() * step**2 / ((x2 - x1) * (y2 - y1)))
    return np.asarray(shares)


CHAINS = {
    "zoom and shift": {"zoom": (0.6, 1.6), "translation": 0.3},
    "hole": {"cutout": 1.0},
    "strip": {"vertical_crop": 0.4},
    "shift and strip": {"translation": 0.3, "vertical_crop": 0.4},
    "hole and strip": {"cutout": 1.0, "vertical_crop": 0.4},
    "all": {"zoom": (0.6, 1.6), "translation": 0.3, "cutout": 1.0, "vertical_crop": 0.4},
}


@pytest.mark.parametrize("chain", CHAINS)
def test_labels_stay_while_a_quarter_of_the_whole_box_is_seen(chain):
    height, width, frames, count = 240, 320, 24, 40
    rng = np.random.default_rng(0)
    y, x = np.indices((height, width)) + 0.5
    images = jnp.asarray(np.stack([np.stack([x, y], -1)] * frames), jnp.float32)
    # Many of them reach over the edge of the frame, as people draw them.
    boxes = rng.uniform((0, 0, 0.08, 0.1), (1, 1, 0.3, 0.3), (frames, count, 4))
    boxes = boxes.astype(np.float32)
    labels = jnp.asarray(boxes), jnp.zeros((frames, count), jnp.int32)
    augment = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, **CHAINS[chain])
    found, (moved, _, valid) = jax.jit(functools.partial(augment_batch, augment=augment))(
        jax.random.key(1), images, (*labels, jnp.ones((frames, count), bool))
    )
    shares = np.stack(
        [shares_seen(image, own, (height, width)) for image, own in zip(found, boxes, strict=True)]
    )
    clear = np.abs(shares - MIN_VISIBLE) > 0.03
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(np.asarray(valid)[clear], shares[clear] > MIN_VISIBLE)
    assert 0 < valid.mean() < 1 or chain == "hole"
    if chain != "hole":
        corners = corners_px(np.asarray(moved)[np.asarray(valid)], 1, 1)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
