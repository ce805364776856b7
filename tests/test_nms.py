import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from yogo_jax.detector.nms import nms


@functools.partial(jax.jit, static_argnames=("iou_threshold", "max_detections"))
def run(boxes, scores, valid, iou_threshold=0.5, max_detections=16):
    return nms(boxes, scores, valid, iou_threshold=iou_threshold, max_detections=max_detections)


def survivors(boxes, scores, *, valid=None, **settings):
    boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, 4)
    valid = jnp.ones(len(boxes), bool) if valid is None else jnp.asarray(valid)
    rows, kept = run(boxes, jnp.asarray(scores, jnp.float32), valid, **settings)
    return [int(row) for row, is_kept in zip(rows, kept, strict=True) if is_kept]


def shifted(x: float) -> tuple[float, float, float, float]:
    return (x, 0.0, x + 1.0, 1.0)


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        pytest.param([shifted(0), shifted(0.1)], [0.9, 0.8], [0], id="overlapping"),
        pytest.param([shifted(0), shifted(0.1)], [0.8, 0.9], [1], id="the better one stays"),
        pytest.param([shifted(0), shifted(2)], [0.8, 0.9], [1, 0], id="apart, best first"),
        pytest.param([shifted(0), shifted(0.1)], [0.5, 0.5], [0], id="tie, the first row leads"),
        # IoU of neighbours is 0.6, of ends 1/3: the middle falls, so the last stands.
        pytest.param(
            [shifted(0), shifted(0.25), shifted(0.5)], [0.9, 0.8, 0.7], [0, 2], id="chain"
        ),
        pytest.param([(0, 0, 1, 2), (0, 0, 1, 1)], [0.9, 0.8], [0, 1], id="exactly the threshold"),
        pytest.param([shifted(0), (0.5, 0.5, 0.5, 0.5)], [0.9, 0.8], [0, 1], id="box of no size"),
    ],
)
def test_table(boxes, scores, expected):
    assert survivors(boxes, scores) == expected


def test_no_candidate_gives_no_detection():
    assert survivors([shifted(0), shifted(3)], [0.9, 0.8], valid=[False, False]) == []


def test_rows_that_are_not_valid_suppress_nothing():
    assert survivors([shifted(0), shifted(0.1)], [0.9, 0.8], valid=[False, True]) == [1]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_no_number_takes_nothing_with_it(place):
    boxes = [shifted(0.0), shifted(3.0), shifted(3.1)]
    scores = [0.9, 0.8, 0.7]
    expected = {0: [1], 1: [0, 2], 2: [0, 1]}[place]
    scores[place] = np.nan
    assert survivors(boxes, scores) == expected


def test_the_best_are_kept_when_room_is_short():
    boxes = [shifted(2.0 * index) for index in range(6)]
    scores = [0.1, 0.6, 0.3, 0.9, 0.2, 0.5]
    assert survivors(boxes, scores, max_detections=3) == [3, 1, 5]


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5])
def test_agrees_with_the_loop(iou_threshold):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        low = rng.uniform(0, 0.7, (60, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (60, 2))], 1).astype(np.float32)
        scores = rng.integers(1, 40, 60) / np.float32(40)
        expected = reference.greedy_nms(boxes, scores, iou_threshold)
        found = survivors(boxes, scores, iou_threshold=iou_threshold, max_detections=64)
        assert found == expected


def test_batched_is_a_loop():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.7, (4, 30, 2))
    boxes = np.concatenate([low, low + 0.3], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (4, 30)).astype(np.float32)
    valid = rng.uniform(0, 1, (4, 30)) < 0.7
    rows, kept = jax.vmap(functools.partial(run, max_detections=8))(boxes, scores, valid)
    for image in range(4):
        alone_rows, alone_kept = run(
            *(jnp.asarray(each[image]) for each in (boxes, scores, valid)), max_detections=8
        )
        np.testing.assert_array_equal(rows[image], alone_rows)
        np.testing.assert_array_equal(kept[image], alone_kept)


def test_sorting_by_how_healthy_a_box_looks_loses_parasites():
    # 20 rings, 4 of them with a second, less sure box that is called healthy. The instrument sorts
    # by the probability of healthy, as far as we can see: docs/counts.md, "The instrument".
    boxes, healthy, ring = [], [], []
    for cell in range(20):
        boxes.append(shifted(3.0 * cell))
        healthy.append(0.05)
        ring.append(0.95)
        if cell < 4:
            boxes.append(shifted(3.0 * cell + 0.1))
            healthy.append(0.6)
            ring.append(0.4)
    surest = np.maximum(healthy, ring)
    counts = {}
    for order, scores in (("surest class", surest), ("healthy", healthy)):
        kept = survivors(boxes, scores, max_detections=24)
        counts[order] = sum(ring[row] > healthy[row] for row in kept)
    assert counts == {"surest class": 20, "healthy": 16}
