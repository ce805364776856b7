"""Curves against counting anew at every threshold, and what they are of next to nothing."""

import numpy as np
import pytest

from evaluations import image_result, random_images
from reference_curves import (
    area_by_pairs,
    by_class,
    by_objectness,
    matched_pairs,
    objects_of,
    true_and_false,
)
from yogo_jax.metrics.curves import Roc, free_response, precision_recall, rank, roc


CLASSES = 3
A, B = (0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.7, 0.7)
SURE = (0.9, 0.05, 0.05)


@pytest.fixture(scope="module")
def images():
    # Two decimals: many equal objectnesses, which pass a threshold together.
    return random_images(0, classes=CLASSES, decimals=2)


@pytest.mark.parametrize("class_id", [0, 1, 2, None])
@pytest.mark.parametrize("candidates_of", [by_class, by_objectness])
def test_precision_recall_and_f1(images, class_id, candidates_of):
    ranking = rank(images, CLASSES, ious=(0.5,), by_objectness=candidates_of is by_objectness)
    curve = precision_recall(ranking.of_class(class_id))
    assert len(curve.thresholds) > 10
    assert (np.diff(curve.thresholds) < 0).all()
    objects = objects_of(images, class_id)
    for threshold, precision, recall, f1 in zip(
        curve.thresholds, curve.precision, curve.recall, curve.f1, strict=True
    ):
        true, false = true_and_false(
            images, lambda score, t=threshold: score >= t, candidates_of, class_id=class_id
        )
        assert precision == pytest.approx(true / (true + false))
        assert recall == pytest.approx(true / objects)
        assert f1 == pytest.approx(2 * true / (true + false + objects))
    assert curve.f1[curve.best] == curve.f1.max()


@pytest.mark.parametrize("class_id", [0, None])
def test_free_response(images, class_id):
    ranking = rank(images, CLASSES, ious=(0.5,)).of_class(class_id)
    curve = free_response(ranking)
    thresholds = np.unique(ranking.scores)[::-1]
    assert len(curve.sensitivity) == len(thresholds)
    for threshold, false_per_frame, sensitivity in zip(
        thresholds, curve.false_per_frame, curve.sensitivity, strict=True
    ):
        true, false = true_and_false(
            images, lambda score, t=threshold: score >= t, by_class, class_id=class_id
        )
        assert false_per_frame == pytest.approx(false / len(images))
        assert sensitivity == pytest.approx(true / objects_of(images, class_id))


@pytest.mark.parametrize("class_id", [0, 1, 2])
def test_roc(images, class_id):
    curve = roc(images, class_id)
    pairs = matched_pairs(images)
    positive = [probs[class_id] for probs, true in pairs if true == class_id]
    negative = [probs[class_id] for probs, true in pairs if true != class_id]
    assert min(len(positive), len(negative)) > 5
    assert curve.area == pytest.approx(area_by_pairs(positive, negative))
    points = set(zip(curve.false_positive_rate, curve.true_positive_rate, strict=True))
    possible = {
        (np.mean(np.array(negative) >= t), np.mean(np.array(positive) >= t))
        for t in [*positive, *negative, 2.0]
    }
    assert points <= possible
    named = [probs.argmax() == class_id for probs, true in pairs if true == class_id]
    wrongly = [probs.argmax() == class_id for probs, true in pairs if true != class_id]
    assert curve.chosen == (pytest.approx(np.mean(wrongly)), pytest.approx(np.mean(named)))


def test_a_class_without_a_true_box_has_no_curve():
    alarm = image_result([A], [0.9], [SURE], [B], [1])
    ranking = rank([alarm], CLASSES)
    assert precision_recall(ranking.of_class(0)) is None
    assert free_response(ranking.of_class(0)) is None
    assert roc([alarm], 0) is None
    # All together do have a true box.
    assert precision_recall(ranking.of_class(None)).recall.tolist() == [0, 0]


def test_nothing_detected_is_a_curve_without_points():
    ranking = rank([image_result([], [], np.zeros((0, 3)), [A], [0])], CLASSES)
    curve = precision_recall(ranking.of_class(0))
    assert len(curve.thresholds) == len(curve.precision) == len(curve.recall) == 0
    assert curve.best is None
    assert len(free_response(ranking.of_class(0)).sensitivity) == 0


def test_everything_found_without_an_alarm():
    ranking = rank([image_result([A, B], [0.9, 0.6], [SURE, SURE], [A, B], [0, 0])], CLASSES)
    curve = precision_recall(ranking.of_class(0))
    assert curve.precision.tolist() == [1, 1]
    assert curve.recall.tolist() == [0.5, 1]
    assert curve.best == 1
    assert free_response(ranking.of_class(0)).false_per_frame.tolist() == [0, 0]


def test_of_equal_f1_the_higher_threshold_is_best():
    # 1 of 2 found: F1 2/3; then a false alarm and the other one: 2/2 recall, 2/4 precision: 2/3.
    boxes = [A, (0.8, 0, 0.9, 0.1), (0.0, 0.8, 0.1, 0.9), B]
    image = image_result(boxes, [0.9, 0.8, 0.7, 0.6], [SURE] * 4, [A, B], [0, 0])
    curve = precision_recall(rank([image], CLASSES).of_class(0))
    assert curve.f1[[0, 3]] == pytest.approx(2 / 3)
    assert curve.best == 0


@pytest.mark.parametrize("ids", [(0, 0), (1, 1)], ids=["only of the class", "none of the class"])
def test_no_roc_of_pairs_of_one_kind(ids):
    image = image_result([A, B], [0.9, 0.9], [SURE, SURE], [A, B], ids)
    assert roc([image], 0) is None
    assert roc([], 0) is None


@pytest.mark.parametrize("most", [2, 7, 50])
def test_a_thinned_roc_follows_the_whole_one(most):
    rates = np.sort(np.random.default_rng(3).uniform(size=(2, 1000)), axis=1)
    rates[0, :400], rates[0, 400:] = 0, np.linspace(0, 1, 600)  # straight up first
    rates[:, 0], rates[:, -1] = 0, 1
    curve = Roc(*rates, area=0.5, chosen=(0.0, 0.0))
    points = np.transpose(curve.thinned(most))
    assert len(points) == most
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    whole = np.transpose(rates)
    assert (np.abs(points[:, None] - whole).sum(-1).min(1) == 0).all()
    # Even along the curve, whose length is 2 in the metric of its two axes.
    assert np.abs(np.diff(points, axis=0)).sum(1).max() <= 2 * np.sqrt(2) / (most - 1) + 0.02
    assert np.transpose(curve.thinned(1000)).tolist() == whole.tolist()
