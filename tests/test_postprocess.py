"""Detections on the host are those of the device, and of the loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from yogo_jax.detector import postprocess
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.detections import NotNumbersError, Thresholds
from yogo_jax.detector.nms import select
from yogo_jax.detector.postprocess import detections_of, nms, select_cells


NAMES = ("healthy", "ring", "misc")


@functools.partial(jax.jit, static_argnums=1)
def _on_device(cells, thresholds):
    return select(
        cxcywh_to_xyxy(cells[:, :4]),
        cells[:, 4],
        cells[:, 5:],
        thresholds,
        max_detections=len(cells),
    )


def on_device(outputs, thresholds):
    """Boxes, objectness, class probabilities and the number of unusable cells."""
    cells = outputs.reshape(len(outputs), -1).T
    found = _on_device(jnp.asarray(cells), thresholds)
    valid = np.asarray(found.valid)
    return *(np.asarray(array)[valid] for array in found[:3]), int(found.unusable)


def assert_as_on_device(outputs, thresholds) -> int:
    ours, theirs = select_cells(outputs, thresholds), on_device(outputs, thresholds)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    return len(ours.objectness)


def random_outputs(seed, grid_hw=(24, 32), *, size=0.08, steps=None) -> np.ndarray:
    """Boxes near their cells; with `steps`, objectness and probabilities of few values: ties."""
    rng = np.random.default_rng(seed)
    rows, columns = grid_hw
    outputs = np.empty((5 + len(NAMES), rows, columns), np.float32)
    outputs[0] = (np.arange(columns) + rng.random(grid_hw)) / columns
    outputs[1] = (np.arange(rows)[:, None] + rng.random(grid_hw)) / rows
    outputs[2:4] = size * np.exp(rng.normal(0, 0.3, (2, *grid_hw)))
    outputs[4] = rng.random(grid_hw)
    outputs[5:] = rng.dirichlet(np.ones(len(NAMES)), grid_hw).transpose(2, 0, 1)
    if steps:
        outputs[4:] = np.rint(outputs[4:] * steps) / steps
    return outputs


SETTINGS = {
    "usual": Thresholds(),
    "all cells": Thresholds(objectness=0.0),
    "any overlap": Thresholds(objectness=0.3, iou=0.0),
    "no suppression": Thresholds(objectness=0.3, iou=1.0),
    "sure classes": Thresholds(min_class_confidence=0.6),
    "scores": Thresholds(objectness=0.3, min_scores=(0.3, 0.0, 0.5)),
}


@pytest.mark.optimized
@pytest.mark.parametrize("thresholds", SETTINGS.values(), ids=SETTINGS)
def test_as_on_the_device(thresholds):
    found = 0
    for seed in range(12):
        found += assert_as_on_device(random_outputs(seed), thresholds)
        assert_as_on_device(random_outputs(seed, steps=8), thresholds)
    assert found > 100


@pytest.mark.optimized
def test_with_boxes_of_all_sizes():
    """One box as large as the image, and others without area or turned inside out."""
    for seed in range(12):
        outputs = random_outputs(seed)
        outputs[2:4, 3, 5] = 2.0
        outputs[2, 7] = 0.0
        outputs[2, 9] *= -1
        outputs[2:4, 11] *= -1
        outputs[2:4, 13, 1] = 3e38
        assert_as_on_device(outputs, Thresholds(objectness=0.2))
    outputs[2:4] = 0.0
    assert assert_as_on_device(outputs, Thresholds(objectness=0.2)) > 400


@pytest.mark.optimized
def test_cells_that_are_no_numbers_are_left_out_and_counted():
    for seed in range(12):
        outputs = random_outputs(seed)
        rng = np.random.default_rng(seed)
        for value in (np.nan, np.inf, -np.inf):
            channel, row, column = (rng.integers(0, side, 6) for side in outputs.shape)
            outputs[channel, row, column] = value
        thresholds = Thresholds(objectness=0.2)
        assert_as_on_device(outputs, thresholds)
        assert select_cells(outputs, thresholds).unusable > 0
        with pytest.raises(NotNumbersError, match=r"f\.png: .* cells, expected numbers"):
            detections_of(outputs, thresholds, class_names=NAMES, image_hw=(9, 9), name="f.png")


@pytest.mark.parametrize("objectness", [0.0, 0.5])
def test_no_candidate(objectness):
    outputs = random_outputs(0)
    outputs[4] = objectness
    assert assert_as_on_device(outputs, Thresholds(objectness=objectness)) == 0
    found = detections_of(outputs, Thresholds(), class_names=NAMES, image_hw=(9, 9))
    assert found.class_probs.shape == (0, 3)


@pytest.mark.optimized
@pytest.mark.parametrize("most_pairs", [1 << 21, 100_000, 1])
@pytest.mark.parametrize("size", [0.05, 0.5])
def test_thousands_of_candidates(size, most_pairs, monkeypatch):
    """All at once, in blocks, and one box after the other."""
    monkeypatch.setattr(postprocess, "_MOST_PAIRS", most_pairs)
    outputs = random_outputs(0, (48, 64), size=size)
    assert assert_as_on_device(outputs, Thresholds(objectness=0.05)) > 10


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5])
def test_agrees_with_the_loop(iou_threshold):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        low = rng.uniform(0, 0.7, (60, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (60, 2))], 1).astype(np.float32)
        scores = (rng.integers(1, 40, 60) / 40).astype(np.float32)
        expected = reference.greedy_nms(boxes, scores, iou_threshold)
        assert nms(boxes, scores, iou_threshold=iou_threshold).tolist() == expected


def shifted(x: float) -> tuple[float, float, float, float]:
    return (x, 0.0, x + 1.0, 1.0)


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        pytest.param([shifted(0), shifted(0.1)], [0.5, 0.5], [0], id="tie, the first row leads"),
        pytest.param(
            [shifted(0), shifted(0.25), shifted(0.5)], [0.9, 0.8, 0.7], [0, 2], id="chain"
        ),
        pytest.param([(0, 0, 1, 2), (0, 0, 1, 1)], [0.9, 0.8], [0, 1], id="exactly the threshold"),
        pytest.param([shifted(0), (0.5, 0.5, 0.5, 0.5)], [0.9, 0.8], [0, 1], id="box of no size"),
        pytest.param([shifted(0), shifted(3), shifted(3.1)], [np.nan, 0.8, 0.7], [1], id="NaN"),
        pytest.param([shifted(0), shifted(3)], [-np.inf, 0.8], [1], id="minus infinity"),
        pytest.param([], [], [], id="nothing"),
    ],
)
def test_table(boxes, scores, expected):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    kept = nms(boxes, np.asarray(scores, np.float32), iou_threshold=0.5)
    assert kept.tolist() == expected
