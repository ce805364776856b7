"""Intervals: weights of one are the plain metrics, whole weights are copies, and coverage."""

import numpy as np
import pytest

from evaluations import evaluation_of, image_result, random_images
from reference_curves import by_class, true_and_false
from yogo_jax.metrics.curves import rank
from yogo_jax.metrics.intervals import (
    bootstrap_intervals,
    image_confusions,
    interval,
    weighted_metrics,
)
from yogo_jax.metrics.mean_ap import COCO_IOUS


NAMES = ("healthy", "ring", "wbc")
A, B = (0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.7, 0.7)
SURE = (0.9, 0.05, 0.05)


def weighted(images, weights, *, names=NAMES):
    ranking = rank(images, len(names))
    confusions = image_confusions(images, len(names))
    found = weighted_metrics(ranking, confusions, np.atleast_2d(weights))
    return {name: values[0] for name, values in found.items()}


def assert_same(found, metrics, names=NAMES):
    for key in ("mAP50", "mAP50_95"):
        assert found[key] == pytest.approx(metrics[key], abs=1e-9)
    for key in ("AP50_by_class", "precision_by_class", "recall_by_class"):
        for name, value in zip(names, found[key], strict=True):
            expected = metrics[key][name]
            assert np.isnan(value) if expected is None else value == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [1, 7], ids=["equal scores", "all different"])
def test_weights_of_one_are_the_plain_metrics(seed, decimals):
    images = random_images(seed, classes=3, labels=30, false_alarms=20, decimals=decimals)
    assert_same(weighted(images, np.ones(len(images), int)), evaluation_of(images, NAMES).metrics)


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_of_exactly_a_threshold_fall_on_the_same_side_as_cocos(seed):
    # Sixty-fourths are exact in float32, so that overlaps of 0.5 and 0.75 are, too.
    rng = np.random.default_rng(seed)
    places = [(x, y) for x in range(0, 64, 8) for y in range(0, 64, 8)]
    labels = np.array([(x, y, x + 8, y + 8) for x, y in places]) / 64
    heights = rng.integers(4, 9, len(places))
    boxes = np.array([(x, y, x + 8, y + h) for (x, y), h in zip(places, heights, strict=True)])
    boxes = boxes / 64
    scores = rng.uniform(0.1, 1, len(places))
    image = image_result(boxes, scores, [SURE] * len(places), labels, [0] * len(places))
    assert_same(weighted([image], [1]), evaluation_of([image], NAMES).metrics)
    assert rank([image], 3).is_true.sum(0).tolist() == [
        int((heights / 8 >= iou - 1e-9).sum()) for iou in COCO_IOUS
    ]


@pytest.mark.parametrize("seed", range(4))
def test_whole_weights_are_copies_of_images(seed):
    images = random_images(seed, classes=3, count=8)
    weights = np.random.default_rng(seed).multinomial(8, np.full(8, 1 / 8))
    assert 0 in weights
    assert weights.max() > 1
    copies = [
        image for image, times in zip(images, weights, strict=True) for _ in range(int(times))
    ]
    found = weighted(images, weights)
    assert_same(found, evaluation_of(copies, NAMES).metrics)
    bias = np.mean(
        [
            np.bincount(copy.found.class_ids, minlength=3)
            - np.bincount(copy.label_class_ids, minlength=3)
            for copy in copies
        ],
        axis=0,
    )
    assert found["count_bias_by_class"] == pytest.approx(bias)


def test_the_ranking_finds_what_loops_find():
    images = random_images(5, classes=3)
    ranking = rank(images, 3)
    scores = ranking.scores
    for threshold in scores[:: len(scores) // 8]:
        true, false = true_and_false(images, lambda score, t=threshold: score >= t, by_class)
        kept = ranking.is_true[scores >= threshold, 0]
        assert (kept.sum(), (~kept).sum()) == (true, false)


def test_what_is_ranked():
    images = [image_result([A, B], [0.6, 0.9], [SURE, SURE], [A], [0])]
    ranking = rank(images, 3)
    assert ranking.of_class(0).scores == pytest.approx([0.81, 0.54])
    for unlikely in (1, 2):
        assert ranking.of_class(unlikely).scores == pytest.approx([0.045, 0.03])
    by_objectness = rank(images, 3, by_objectness=True)
    assert by_objectness.scores == pytest.approx([0.9, 0.6])
    assert by_objectness.class_ids.tolist() == [0, 0]


def test_chunks_and_seeds(monkeypatch):
    images = random_images(1, classes=3)
    first = bootstrap_intervals(images, NAMES, resamples=50)
    assert first == bootstrap_intervals(images, NAMES, resamples=50)
    assert first != bootstrap_intervals(images, NAMES, resamples=50, seed=1)
    monkeypatch.setattr("yogo_jax.metrics.intervals.CHUNK", 500)
    chunked = bootstrap_intervals(images, NAMES, resamples=50)
    assert chunked["mAP50"] == pytest.approx(first["mAP50"], abs=1e-12)
    assert chunked["resamples"] == 50


def test_very_many_detections_take_fewer_resamples(monkeypatch):
    images = random_images(1, classes=3)
    monkeypatch.setattr("yogo_jax.metrics.intervals.MAX_WORK", 0)
    monkeypatch.setattr("yogo_jax.metrics.intervals.MIN_RESAMPLES", 20)
    assert bootstrap_intervals(images, NAMES)["resamples"] == 20


def test_an_interval_holds_the_metric_and_is_percentiles():
    images = random_images(2, classes=3, count=30)
    metrics = evaluation_of(images, NAMES).metrics
    intervals = bootstrap_intervals(images, NAMES, resamples=400)
    for key in ("mAP50", "mAP50_95"):
        low, high = intervals[key]
        assert low < metrics[key] < high
    assert interval(np.arange(101.0)) == pytest.approx([2.5, 97.5])
    assert interval(np.array([np.nan, 3.0, 3.0])) == [3, 3]


NOTHING = image_result([], [], np.zeros((0, 3)), [], [])


@pytest.mark.parametrize(
    ("images", "mean", "healthy", "bias"),
    [
        pytest.param([image_result([A], [0.9], [SURE], [A], [0])], None, None, None, id="one"),
        pytest.param([NOTHING, NOTHING], None, None, [0, 0], id="nothing there"),
        pytest.param(
            [image_result([], [], np.zeros((0, 3)), [A], [0])] * 2,
            [0, 0],
            [0, 0],
            [-1, -1],
            id="nothing found",
        ),
        pytest.param(
            [image_result([A], [0.9], [SURE], [], [])] * 2, None, None, [1, 1], id="false alarms"
        ),
        pytest.param(
            [image_result([A], [0.9], [SURE], [A], [0])] * 2, [1, 1], [1, 1], [0, 0], id="perfect"
        ),
    ],
)
def test_of_next_to_nothing(images, mean, healthy, bias):
    intervals = bootstrap_intervals(images, NAMES, resamples=20)
    assert intervals["mAP50"] == (mean if mean is None else pytest.approx(mean))
    assert intervals["AP50_by_class"]["healthy"] == (
        healthy if healthy is None else pytest.approx(healthy)
    )
    assert intervals["AP50_by_class"]["ring"] is None
    assert intervals["count_bias_by_class"]["healthy"] == bias


def test_one_class():
    images = random_images(3, classes=1)
    assert_same(
        weighted(images, np.ones(len(images), int), names=("cell",)),
        evaluation_of(images, ("cell",)).metrics,
        ("cell",),
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # Frames share their focus: in half of them 9 of 10 boxes are found, in the others 5 of 10.
    places = np.array([(x, 0.0, x + 0.08, 0.5) for x in np.linspace(0, 0.9, 10)])
    rng = np.random.default_rng(0)
    covered = 0
    for index in range(40):
        images = []
        for _ in range(20):
            found = places[rng.uniform(size=10) < rng.choice([0.5, 0.9])]
            sure = np.ones((len(found), 1))
            images.append(image_result(found, [0.9] * len(found), sure, places, [0] * 10))
        found = bootstrap_intervals(images, ("cell",), resamples=200, seed=index)
        low, high = found["recall_by_class"]["cell"]
        covered += low <= 0.7 <= high
    # Of a binomial of 40 times 0.95, 98.6 % lie in here.
    assert 35 <= covered <= 40
