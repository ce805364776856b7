from itertools import permutations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import iou as plain_iou
from yogo_jax.metrics import confusion
from yogo_jax.metrics.confusion import match_boxes


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def square(x, y=0.0, size=0.2):
    return [x, y, x + size, y + size]


UNIT = [0.0, 0.0, 0.4, 0.4]
HALF = [0.0, 0.0, 0.4, 0.2]  # IoU with UNIT is exactly one half
DOT = [0.1, 0.1, 0.1, 0.1]
FAR = [0.8, 0.8, 0.9, 0.9]


@pytest.mark.parametrize(
    ("predictions", "labels", "min_iou", "pairs", "missed", "extra"),
    [
        pytest.param([], [], 0.5, [], [], [], id="nothing"),
        pytest.param([], [UNIT, FAR], 0.5, [], [0, 1], [], id="no-predictions"),
        pytest.param([UNIT, FAR], [], 0.5, [], [], [0, 1], id="no-labels"),
        pytest.param([UNIT, FAR], [FAR, UNIT], 0.5, [(0, 1), (1, 0)], [], [], id="crossed"),
        pytest.param([UNIT, UNIT], [UNIT], 0.5, [(0, 0)], [], [1], id="duplicate-is-extra"),
        pytest.param([UNIT], [HALF], 0.5, [(0, 0)], [], [], id="floor-exactly-met"),
        pytest.param([UNIT], [HALF], 0.51, [], [0], [0], id="just-under-the-floor"),
        pytest.param([UNIT], [FAR], 0.5, [], [0], [0], id="apart"),
        pytest.param([UNIT], [FAR], 0.0, [(0, 0)], [], [], id="apart-without-a-floor"),
        pytest.param([DOT], [DOT], 0.5, [], [0], [0], id="no-area"),
        pytest.param([DOT], [UNIT], 0.0, [(0, 0)], [], [], id="no-area-without-a-floor"),
        pytest.param(
            # The best single pair, of prediction 1 and label 0, would leave the other two alone.
            [square(0.0, size=0.4), square(0.17, size=0.4)],
            [square(0.1, size=0.4), square(0.27, size=0.4)],
            0.5,
            [(0, 0), (1, 1)],
            [],
            [],
            id="best-sum-not-best-pair",
        ),
    ],
)
def test_match_boxes_table(predictions, labels, min_iou, pairs, missed, extra):
    matches = match_boxes(boxes(*predictions), boxes(*labels), min_iou=min_iou)
    found = list(zip(matches.prediction_index, matches.label_index, strict=True))
    assert found == pairs
    assert matches.missed.tolist() == missed
    assert matches.extra.tolist() == extra


def test_useless_overlaps_do_not_take_a_box_from_a_good_pair():
    # Along a line: label 1, prediction 0, label 0, prediction 1. Prediction 0 and label 0 are the
    # one pair over the floor, but the two outer pairs have the larger sum of IoU.
    predictions = boxes([0.18, 0, 0.58, 1], [0.48, 0, 0.88, 1])
    labels = boxes([0.30, 0, 0.70, 1], [0.0, 0, 0.40, 1])
    iou = [[plain_iou(prediction, label) for label in labels] for prediction in predictions]
    assert iou[0][0] > 0.5 > max(iou[0][1], iou[1][0])
    assert iou[0][1] + iou[1][0] > iou[0][0] + iou[1][1]
    matches = match_boxes(predictions, labels)
    assert matches.prediction_index.tolist() == [0]
    assert matches.label_index.tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_matching_is_the_best_of_all_pairings(seed):
    rng = np.random.default_rng(seed)
    predictions, labels = random_boxes(rng, 4), random_boxes(rng, 5)
    min_iou = 0.3
    best = 0.0
    for chosen in permutations(range(5), 4):
        overlaps = [plain_iou(predictions[i], labels[j]) for i, j in enumerate(chosen)]
        best = max(best, sum(iou for iou in overlaps if iou >= min_iou))
    matches = match_boxes(predictions, labels, min_iou=min_iou)
    overlaps = [
        plain_iou(predictions[i], labels[j])
        for i, j in zip(matches.prediction_index, matches.label_index, strict=True)
    ]
    assert all(iou >= min_iou for iou in overlaps)
    assert sum(overlaps) == pytest.approx(best, abs=1e-6)


def random_boxes(rng, n):
    corner = rng.uniform(0.0, 0.3, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (n, 2))], 1).astype(np.float32)


coordinates = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(
    predictions=hnp.arrays(
        np.float32, st.tuples(st.integers(0, 6), st.just(4)), elements=coordinates
    ),
    labels=hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(4)), elements=coordinates),
    min_iou=st.sampled_from([0.0, 0.3, 0.5]),
)
def test_every_box_is_accounted_for_once(predictions, labels, min_iou):
    matches = match_boxes(predictions, labels, min_iou=min_iou)
    accounted = np.concatenate([matches.prediction_index, matches.extra])
    assert sorted(accounted) == list(range(len(predictions)))
    accounted = np.concatenate([matches.label_index, matches.missed])
    assert sorted(accounted) == list(range(len(labels)))
    if min_iou == 0:
        assert len(matches.label_index) == min(len(predictions), len(labels))


@pytest.mark.parametrize("min_iou", [1e-9, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(10))
def test_neighbours_alone_give_the_pairing_of_all(seed, min_iou, monkeypatch):
    rng = np.random.default_rng(seed)
    # Crowds of boxes on a few places, so that groups hold many; some boxes have no area.
    places = rng.uniform(0, 1, (12, 2))
    corners = [places[rng.integers(0, 12, n)] + rng.normal(0, 0.03, (n, 2)) for n in (90, 70)]
    predictions, labels = (
        np.concatenate([each, each + rng.uniform(-0.01, 0.2, each.shape)], 1) for each in corners
    )
    expected = match_boxes(predictions, labels, min_iou=min_iou)
    monkeypatch.setattr(confusion, "_MOST_PAIRS_AT_ONCE", 0)
    found = match_boxes(predictions, labels, min_iou=min_iou)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("labels", [[FAR], [DOT], [FAR, UNIT, HALF]])
def test_neighbours_of_few_boxes(labels, monkeypatch):
    predictions, labels = boxes(UNIT, HALF, DOT), boxes(*labels)
    expected = match_boxes(predictions, labels)
    monkeypatch.setattr(confusion, "_MOST_PAIRS_AT_ONCE", 0)
    for ours, theirs in zip(match_boxes(predictions, labels), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
