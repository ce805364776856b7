import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yogo_jax.training.augment import random_flips


IMAGE = jnp.arange(4 * 6 * 1, dtype=jnp.uint8).reshape(4, 6, 1)
BOXES = jnp.asarray([(0.25, 0.125, 0.1, 0.2), (0.9, 0.7, 0.05, 0.1)])


@pytest.mark.parametrize(
    ("horizontal", "vertical", "image", "centres"),
    [
        pytest.param(0, 0, IMAGE, [(0.25, 0.125), (0.9, 0.7)], id="neither"),
        pytest.param(1, 0, IMAGE[:, ::-1], [(0.75, 0.125), (0.1, 0.7)], id="left-right"),
        pytest.param(0, 1, IMAGE[::-1], [(0.25, 0.875), (0.9, 0.3)], id="top-bottom"),
        pytest.param(1, 1, IMAGE[::-1, ::-1], [(0.75, 0.875), (0.1, 0.3)], id="both"),
    ],
)
def test_table(horizontal, vertical, image, centres):
    flipped, boxes = random_flips(
        jax.random.key(0), IMAGE, BOXES, horizontal=horizontal, vertical=vertical
    )
    np.testing.assert_array_equal(flipped, image)
    np.testing.assert_allclose(boxes[:, :2], centres, atol=1e-7)
    np.testing.assert_array_equal(boxes[:, 2:], BOXES[:, 2:])


def test_twice_is_once_nothing():
    key = jax.random.key(1)
    once = random_flips(key, IMAGE, BOXES, horizontal=0.5, vertical=0.5)
    image, boxes = random_flips(key, *once, horizontal=0.5, vertical=0.5)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_allclose(boxes, BOXES, atol=1e-7)


def test_a_marked_pixel_stays_under_its_box():
    frame = np.zeros((40, 60, 1), np.uint8)
    frame[10, 45] = 255
    box = jnp.asarray([((45 + 0.5) / 60, (10 + 0.5) / 40, 0.1, 0.1)])
    for seed in range(8):
        image, boxes = random_flips(
            jax.random.key(seed), jnp.asarray(frame), box, horizontal=0.5, vertical=0.5
        )
        row, column, _ = np.argwhere(np.asarray(image) == 255)[0]
        np.testing.assert_allclose(boxes[0, :2], ((column + 0.5) / 60, (row + 0.5) / 40), atol=1e-6)


def test_each_image_tosses_its_own_coins():
    keys = jax.random.split(jax.random.key(0), 400)
    batch = jnp.broadcast_to(BOXES, (400, 2, 4))
    images = jnp.broadcast_to(IMAGE, (400, 4, 6, 1))
    _, boxes = jax.vmap(
        lambda key, image, box: random_flips(key, image, box, horizontal=0.5, vertical=0.2)
    )(keys, images, batch)
    share = (np.asarray(boxes[:, 0, :2]) != np.asarray(BOXES[0, :2])).mean(0)
    np.testing.assert_allclose(share, (0.5, 0.2), atol=0.07)
