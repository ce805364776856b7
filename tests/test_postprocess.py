"""Detections on the host are those of the device, and of the loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from yogo_jax.detector import postprocess
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.detections import NotNumbersError, Thresholds, decide
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
    if thresholds.class_thresholds:
        assert_as_the_loop(outputs, thresholds, ours)
    return len(ours.objectness)


def assert_as_the_loop(outputs, thresholds, found) -> None:
    """The boxes that are left without classes, decided one by one, are those found."""
    candidates = select_cells(
        outputs, thresholds._replace(min_class_confidence=0, class_thresholds=())
    )
    expected = []
    for row in range(len(candidates.objectness)):
        class_id = reference.decided_class(
            candidates.objectness[row], candidates.class_probs[row], thresholds.class_thresholds
        )
        if class_id is None:
            continue
        if not candidates.class_probs[row, class_id] > np.float32(thresholds.min_class_confidence):
            continue
        expected.append((row, class_id))
    rows = [row for row, _ in expected]
    np.testing.assert_array_equal(found.boxes_xyxy, candidates.boxes_xyxy[rows])
    ids = decide(found.objectness, found.class_probs, thresholds.class_thresholds)
    assert ids.tolist() == [class_id for _, class_id in expected]


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
    "classes": Thresholds.of_classes((0.3, 0.2, 0.5)),
    "equal classes": Thresholds.of_classes((0.25, 0.25, 0.25)),
    "a class that never counts": Thresholds.of_classes((0.3, 1.01, 0.5)),
    "sure and decided": Thresholds(0.4, 0.3, 0.5, (0.3, 0.1, 0.5)),
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


# Objectness and probabilities of one box, class thresholds, and the class by which it counts.
F = np.float32
DECIDED = {
    "the most probable": (0.9, (0.6, 0.3, 0.1), (0.5, 0.5, 0.5), 0),
    "rare class, low threshold": (0.9, (0.6, 0.3, 0.1), (0.5, 0.1, 0.5), 1),
    "below all": (0.5, (0.6, 0.3, 0.1), (0.31, 0.31, 0.31), None),
    "at its threshold": (1.0, (0.25, 0.75, 0.0), (0.5, 0.75, 0.5), 1),
    "just below it": (1.0, (0.25, 0.75, 0.0), (0.5, float(np.nextafter(F(0.75), F(1))), 0.5), None),
    "equal ratios, the first": (1.0, (0.25, 0.5, 0.25), (0.25, 0.5, 0.25), 0),
    "equal ratios, the others lead": (1.0, (0.125, 0.5, 0.25), (0.25, 0.5, 0.25), 1),
    "threshold that no score reaches": (1.0, (1.0, 0.0, 0.0), (1.01, 0.1, 0.1), None),
    "the larger ratio alone counts": (0.8, (0.5, 0.25, 0.25), (0.41, 0.21, 0.205), None),
    "no objectness": (0.0, (0.6, 0.3, 0.1), (0.1, 0.1, 0.1), None),
    "objectness at the least threshold": (0.5, (1.0, 0.0, 0.0), (0.5, 0.6, 0.6), 0),
}


@pytest.mark.parametrize("case", DECIDED)
def test_the_class_that_is_decided(case):
    objectness, probs, class_thresholds, expected = DECIDED[case]
    outputs = np.asarray((0.5, 0.5, 0.2, 0.2, objectness, *probs), np.float32).reshape(8, 1, 1)
    at = Thresholds.of_classes(class_thresholds)
    assert reference.decided_class(F(objectness), F(probs), class_thresholds) == expected
    assert assert_as_on_device(outputs, at) == (expected is not None)
    found = detections_of(outputs, at, class_names=NAMES, image_hw=(9, 9))
    assert found.class_ids.tolist() == ([] if expected is None else [expected])
    if expected is not None:
        np.testing.assert_array_equal(found.scores, F(objectness) * F(probs)[[expected]])
        np.testing.assert_array_equal(found.class_scores, F(objectness) * F([probs]))
        assert found.counts() == {name: int(i == expected) for i, name in enumerate(NAMES)}


def test_what_does_not_count_by_its_class_still_suppresses():
    """Of two boxes on each other the surer leads the NMS, and is then below its threshold."""
    sure, unsure = (
        (0.5, 0.5, 0.2, 0.2, 0.9, 0.9, 0.1, 0.0),
        (0.5, 0.5, 0.2, 0.2, 0.8, 0.1, 0.9, 0.0),
    )
    outputs = np.asarray((sure, unsure), np.float32).T.reshape(8, 1, 2)
    assert assert_as_on_device(outputs, Thresholds.of_classes((0.95, 0.2, 0.2))) == 0
    assert assert_as_on_device(outputs, Thresholds.of_classes((0.5, 0.2, 0.2))) == 1
