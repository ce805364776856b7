import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from parity import load
from yogo_jax.detector.boxes import xyxy_to_cxcywh
from yogo_jax.detector.targets import bin_targets


MAX_BOXES = 64


def padded(boxes_cxcywh, class_ids):
    count = len(class_ids)
    boxes = np.zeros((MAX_BOXES, 4), np.float32)
    ids = np.zeros(MAX_BOXES, np.int32)
    boxes[:count], ids[:count] = np.reshape(boxes_cxcywh, (-1, 4)), class_ids
    return jnp.asarray(boxes), jnp.asarray(ids), jnp.arange(MAX_BOXES) < count


@functools.partial(jax.jit, static_argnames="grid_hw")
def bin_jitted(boxes, ids, valid, grid_hw=(12, 16)):
    return bin_targets(boxes, ids, valid, grid_hw=grid_hw)


@pytest.mark.optimized
@pytest.mark.parametrize("image", range(4))
def test_recorded_label_grids(image):
    recorded = load("loss.npz")
    rows = recorded[f"boxes_{image}"]
    boxes_cxcywh = np.asarray(xyxy_to_cxcywh(jnp.asarray(rows[:, 1:])))
    targets = bin_jitted(*padded(boxes_cxcywh, rows[:, 0].astype(np.int32)))
    objectness, corners, class_ids = np.split(recorded["labels"][image], [1, 5])
    np.testing.assert_array_equal(targets.objectness, objectness[0])
    np.testing.assert_array_equal(targets.class_ids * targets.objectness, class_ids[0])
    # Corners went through centre and size and back, which costs a rounding.
    np.testing.assert_allclose(
        np.asarray(targets.boxes_xyxy).transpose(2, 0, 1), corners, atol=2e-7
    )


@pytest.mark.parametrize(
    ("boxes", "cell", "winner"),
    [
        pytest.param([(0.0, 0.0, 0.1, 0.1)], (0, 0), 0, id="top left corner"),
        pytest.param([(1.0, 1.0, 0.1, 0.1)], (11, 15), 0, id="centre at exactly 1"),
        pytest.param([(0.5, 0.5, 0.1, 0.1)], (6, 8), 0, id="on the border of cells"),
        pytest.param([(0.51, 0.51, 0.1, 0.1), (0.52, 0.52, 0.2, 0.2)], (6, 8), 1, id="later wins"),
        pytest.param(
            [(0.52, 0.52, 0.2, 0.2), (0.51, 0.51, 0.1, 0.1)], (6, 8), 1, id="whatever it is"
        ),
    ],
)
def test_cells_table(boxes, cell, winner):
    targets = bin_jitted(*padded(boxes, np.arange(len(boxes)) + 3))
    assert float(targets.objectness.sum()) == 1
    assert float(targets.objectness[cell]) == 1
    assert int(targets.class_ids[cell]) == 3 + winner
    xc, yc, w, h = boxes[winner]
    expected = (xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2)
    np.testing.assert_allclose(targets.boxes_xyxy[cell], expected, atol=1e-6)


def test_an_empty_image_has_empty_targets():
    targets = bin_jitted(*padded([], []))
    assert all(not leaf.any() for leaf in targets)


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_the_loop(seed):
    rng = np.random.default_rng(seed)
    count = rng.integers(0, MAX_BOXES + 1)
    boxes = np.concatenate([rng.uniform(0, 1, (count, 2)), rng.uniform(0.01, 0.2, (count, 2))], 1)
    boxes[: count // 4, :2] = boxes[count // 4 : 2 * (count // 4), :2]
    inputs = padded(boxes.astype(np.float32), rng.integers(0, 7, count))
    targets = bin_jitted(*inputs)
    expected = reference.bin_targets(*(np.asarray(each) for each in inputs), (12, 16))
    for found, each in zip(targets, expected, strict=True):
        np.testing.assert_allclose(found, each, atol=1e-7)


def test_padding_rows_change_nothing():
    boxes, ids, valid = padded([(0.3, 0.3, 0.1, 0.1)], [2])
    noisy = boxes.at[1:].set(0.3), ids.at[1:].set(5), valid
    for a, b in zip(bin_jitted(boxes, ids, valid), bin_jitted(*noisy), strict=True):
        np.testing.assert_array_equal(a, b)
