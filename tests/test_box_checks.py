import jax.numpy as jnp
import numpy as np
import pytest

from yogo_jax.data.records import Records
from yogo_jax.detector.grid import cells_of_boxes
from yogo_jax.detector.targets import bin_targets
from yogo_jax.inspection.audit import drawn_twice, overhanging, winners_of_cells


def records_of_boxes(*images: list) -> Records:
    counts = [len(image) for image in images]
    boxes = np.concatenate([np.zeros((0, 4)), *(np.reshape(image, (-1, 4)) for image in images)])
    return Records(
        ("cell",),
        tuple(f"{i}.png" for i in range(len(images))),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes.astype(np.float32),
        np.zeros(len(boxes), np.int32),
    )


@pytest.mark.parametrize("seed", range(8), ids=str)
def test_winners_are_those_of_the_targets(seed):
    """On coarse coordinates, so that many centres lie on borders of cells and some at 1.0."""
    rng = np.random.default_rng(seed)
    n, grid_hw = 60, (7, 10)
    boxes = np.concatenate([rng.integers(0, 71, (n, 2)) / 70, rng.uniform(0.1, 0.2, (n, 2))], 1)
    boxes = boxes.astype(np.float32)
    records = records_of_boxes([], boxes, boxes[:3])
    winners = winners_of_cells(records, grid_hw)
    targets = bin_targets(jnp.asarray(boxes), jnp.arange(n), jnp.ones(n, bool), grid_hw=grid_hw)
    filled = np.asarray(targets.objectness).reshape(-1) > 0
    by_cell = np.where(filled, np.asarray(targets.class_ids).reshape(-1), -1)
    np.testing.assert_array_equal(winners[:n], by_cell[cells_of_boxes(boxes, grid_hw)])
    assert set(winners[n:]) <= {n, n + 1, n + 2}
    assert (winners != np.arange(n + 3)).sum() > 3


def iou(a, b) -> float:
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (np.prod(a[2:]) + np.prod(b[2:]) - shared)


@pytest.mark.parametrize("seed", range(4), ids=str)
def test_boxes_drawn_twice_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(5):
        boxes = rng.uniform((0, 0, 0.1, 0.1), (1, 1, 0.3, 0.3), (8, 4))
        copies = boxes[rng.integers(0, 8, 6)] + rng.normal(0, 0.003, (6, 4))
        images.append(rng.permutation(np.concatenate([boxes, copies])))
    records = records_of_boxes(*images, [], images[0][:1])
    expected = []
    for start, end in zip(records.offsets[:-1], records.offsets[1:], strict=True):
        for i in range(start, end):
            for j in range(i + 1, end):
                a, b = records.boxes_cxcywh[[i, j]].astype(np.float64)
                if iou(a, b) > 0.9:
                    expected.append((i, j))
    found = [tuple(pair) for pair in drawn_twice(records).tolist()]
    assert sorted(found) == sorted(expected)
    assert len(expected) > 5


BOXES = {
    "inside": ((0.5, 0.5, 0.2, 0.2), False),
    "fills the image": ((0.5, 0.5, 1, 1), False),
    "touches the corner": ((0.05, 0.95, 0.1, 0.1), False),
    "rounding": ((0.0498, 0.5, 0.1, 0.1), False),
    "left": ((0.04, 0.5, 0.1, 0.1), True),
    "right": ((0.96, 0.5, 0.1, 0.1), True),
    "above": ((0.5, 0.04, 0.1, 0.1), True),
    "below": ((0.5, 0.96, 0.1, 0.1), True),
}


@pytest.mark.parametrize(("box", "over"), BOXES.values(), ids=BOXES)
def test_overhanging(box, over):
    assert overhanging(np.array([box], np.float32)).tolist() == [over]


def test_no_boxes():
    records = records_of_boxes([], [])
    assert len(winners_of_cells(records, (3, 4))) == 0
    assert drawn_twice(records).shape == (0, 2)
    assert overhanging(records.boxes_cxcywh).shape == (0,)
