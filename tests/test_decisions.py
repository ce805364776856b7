"""Thresholds of classes against brute force, on few boxes; what is taken for a find."""

import itertools

import numpy as np
import pytest

from evaluations import image_result, random_images
from reference import decided_class
from yogo_jax.metrics.decisions import (
    Candidates,
    Goal,
    Tally,
    by_class,
    candidates_of,
    caveats,
    choose_thresholds,
    tally,
)


# Evaluations know no box of less objectness, so no lower score for sure.
LEAST = 0.01
GOALS = {
    "count": Goal("count"),
    "f1": Goal("f1"),
    # One of some ten red cells.
    "screening": Goal("screening", false_positives=1.5e5),
    "precision": Goal("precision", precision=0.7),
}


def drawn(seed: int, boxes: int = 14, classes: int = 2, decimals: int = 7) -> Candidates:
    """Boxes of which some are background, true boxes of which some are not found."""
    rng = np.random.default_rng(seed)
    objectness = rng.uniform(0.06, 1, boxes).round(decimals).astype(np.float32)
    true_ids = rng.integers(-1, classes, boxes)
    logits = rng.normal(0, 1, (boxes, classes))
    logits[np.flatnonzero(true_ids >= 0), true_ids[true_ids >= 0]] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = np.bincount(true_ids[true_ids >= 0], minlength=classes)
    objects = found + rng.integers(0, 3, classes)
    return Candidates(objectness, probs.round(decimals).astype(np.float32), true_ids, objects)


def counted(candidates: Candidates, thresholds) -> Tally:
    """`tally`, box by box."""
    predicted, right = np.zeros((2, len(candidates.objects)), int)
    rows = zip(*candidates[:3], strict=True)
    for objectness, probs, true_id in rows:
        if (class_id := decided_class(objectness, probs, thresholds)) is not None:
            predicted[class_id] += 1
            right[class_id] += class_id == true_id
    return Tally(predicted, right)


def between(scores: np.ndarray) -> np.ndarray:
    """All thresholds that cut these scores differently."""
    edges = np.unique([LEAST, 1.01, *scores[scores > LEAST]])
    return (edges[1:] + edges[:-1]) / 2


def every_choice(candidates: Candidates):
    """Thresholds of two classes: all of the first, and with each all that the second can have."""
    first, second = (candidates.objectness[:, None].astype(float) * candidates.class_probs).T
    for threshold in between(first):
        equal_ratios = second * threshold / first
        for other in between(np.concatenate([second, equal_ratios])):
            yield threshold, other


def worth(goal: Goal, candidates: Candidates, at: Tally) -> float:
    """What the goal asks for of classes with true boxes, the larger the better."""
    objects, (predicted, right) = candidates.objects, at
    present = objects > 0
    if goal.name == "count":
        return -np.abs(predicted - objects)[present].sum()
    if goal.name == "f1":
        return (2 * right / np.maximum(predicted + objects, 1))[present].sum()
    if goal.name == "precision":
        return ((predicted > 0) & (right >= goal.precision * predicted))[present].sum()
    others = present & (np.arange(len(objects)) != objects.argmax())
    allowed = int(goal.false_positives * objects.max() // 1e6)
    return (predicted - right <= allowed)[others].sum()


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_the_tally_is_that_of_the_rule(classes):
    for seed in range(10):
        candidates = drawn(seed, classes=classes, decimals=2)
        thresholds = np.random.default_rng(seed).uniform(0.06, 0.7, classes).tolist()
        for ours, theirs in zip(
            tally(candidates, thresholds), counted(candidates, thresholds), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("decimals", [7, 1])
@pytest.mark.parametrize("name", ["count", "f1", "precision"])
def test_one_class_has_the_best_threshold(name, decimals):
    goal = GOALS[name]
    for seed in range(20):
        candidates = drawn(seed, classes=1, decimals=decimals)
        (chosen,) = choose_thresholds(candidates, goal)
        options = {t: counted(candidates, [t]) for t in between(candidates.objectness)}
        best = max(worth(goal, candidates, each) for each in options.values())
        assert worth(goal, candidates, counted(candidates, [chosen])) == best
        # Of equally good ones the highest, but for a precision the lowest.
        good = [t for t, each in options.items() if worth(goal, candidates, each) == best]
        if name != "precision" or best == 1:
            assert chosen == pytest.approx(min(good) if name == "precision" else max(good))


# By how much turns of the classes may fall short of the best of all choices, and in how many of 20
# cases they must not.
SHORT = {"count": 0, "f1": 0.2, "screening": 0, "precision": 0}
AS_GOOD = {"count": 16, "f1": 12, "screening": 16, "precision": 16}


@pytest.mark.parametrize("name", GOALS)
def test_two_classes_are_nearly_as_good_as_every_choice(name):
    goal, as_good = GOALS[name], 0
    for seed in range(20):
        candidates = drawn(seed)
        found = worth(goal, candidates, tally(candidates, choose_thresholds(candidates, goal)))
        best = max(
            worth(goal, candidates, tally(candidates, each)) for each in every_choice(candidates)
        )
        assert found >= best - SHORT[name]
        as_good += found >= best
    assert as_good >= AS_GOOD[name]


@pytest.mark.parametrize("classes", [2, 3])
def test_screening_allows_no_more_false_positives(classes):
    goal = GOALS["screening"]
    for seed in range(20):
        candidates = drawn(seed, boxes=40, classes=classes)
        at = tally(candidates, choose_thresholds(candidates, goal))
        others = np.arange(classes) != candidates.objects.argmax()
        allowed = goal.allowed_false_positives(candidates.red_cells)
        assert (at.predicted - at.right)[others].max() <= allowed


def test_screening_has_the_least_threshold_that_keeps_to_it():
    goal, lowered = GOALS["screening"], 0
    for seed in range(20):
        candidates = drawn(seed, boxes=40)
        thresholds = choose_thresholds(candidates, goal)
        allowed = goal.allowed_false_positives(candidates.red_cells)
        before, class_id = tally(candidates, thresholds), int(candidates.objects.argmin())
        for threshold in np.arange(thresholds[class_id], LEAST, -1e-4).tolist():
            lower = [*thresholds]
            lower[class_id] = threshold
            after = tally(candidates, lower)
            if after.predicted[class_id] > before.predicted[class_id]:
                assert after.predicted[class_id] - after.right[class_id] > allowed
                lowered += 1
                break
    assert lowered > 10


def test_counts_are_without_bias_where_there_are_boxes_enough():
    """Of many boxes each class has as many as there are true ones, but for the last few."""
    for seed in range(3):
        candidates = drawn(seed, boxes=3000, classes=4)
        candidates = candidates._replace(objects=np.asarray([900, 300, 40, 5]))
        predicted = tally(candidates, choose_thresholds(candidates, GOALS["count"])).predicted
        assert np.abs(predicted - candidates.objects).max() <= 2


@pytest.mark.parametrize("name", GOALS)
def test_thresholds_are_halfway_between_scores(name):
    """A little rounding of all values changes nothing that counts, and a choice is repeated."""
    for seed in range(5):
        candidates = drawn(seed, boxes=30, classes=3)
        thresholds = choose_thresholds(candidates, GOALS[name])
        assert choose_thresholds(candidates, GOALS[name]) == thresholds
        rounding = 1 + np.random.default_rng(seed).uniform(-1e-6, 1e-6, 30).astype(np.float32)
        moved = candidates._replace(objectness=candidates.objectness * rounding)
        for a, b in itertools.pairwise((tally(candidates, thresholds), tally(moved, thresholds))):
            np.testing.assert_array_equal(a.predicted, b.predicted)


@pytest.mark.parametrize("name", GOALS)
def test_a_class_without_a_true_box_has_the_threshold_of_the_most_frequent(name):
    candidates = drawn(3, boxes=60, classes=3)
    candidates = candidates._replace(objects=np.asarray([9, 30, 0]))
    thresholds = choose_thresholds(candidates, GOALS[name])
    assert thresholds[2] == thresholds[1]
    said = caveats(candidates, thresholds, ("a", "b", "c"), GOALS[name])
    assert "no true box of c: the threshold is that of b" in said
    assert by_class(candidates, thresholds, ("a", "b", "c"))["c"]["recall"] is None


def test_nothing_to_choose_by():
    candidates = drawn(0)._replace(objects=np.zeros(2, int))
    with pytest.raises(ValueError, match="take a true box"):
        choose_thresholds(candidates, Goal("count"))
    # True boxes without any prediction: as low as scores are known, or as high as none is.
    nothing = candidates_of([image_result([], [], np.zeros((0, 2)), [(0, 0, 1, 1)], [1])], 2)
    for name, goal in GOALS.items():
        thresholds = choose_thresholds(nothing, goal)
        assert thresholds == pytest.approx(((LEAST + 1.01) / 2,) * 2), name
        assert by_class(nothing, thresholds, ("a", "b"))["b"] == {
            "score": thresholds[1], "precision": None, "recall": 0.0, "predicted": 0, "true": 1
        }  # fmt: skip


def test_what_could_not_be_told():
    surely_wrong = Candidates(
        np.asarray((1.0, 0.8), np.float32),
        np.asarray(((0.0, 1.0), (1.0, 0.0)), np.float32),
        np.asarray((-1, 0)),
        np.asarray((5, 1)),
    )
    goal = Goal("screening")
    thresholds = choose_thresholds(surely_wrong, goal)
    assert thresholds[1] > 1  # of the class that is never right, though it is sure
    assert caveats(surely_wrong, thresholds, ("a", "b"), goal) == [
        "5 red cells are too few for 1000 false positives per 1,000,000: none is allowed (1000 "
        "cells would allow one)"
    ]
    enough = surely_wrong._replace(objects=np.asarray((1000, 1)))
    assert choose_thresholds(enough, goal)[1] < 1
    assert caveats(enough, thresholds, ("a", "b"), goal) == []
    precise = Goal("precision", precision=0.9)
    thresholds = choose_thresholds(surely_wrong, precise)
    assert caveats(surely_wrong, thresholds, ("a", "b"), precise) == [
        "no threshold of b gives precision 0.9: it is that of the best F1"
    ]


A, B, FAR = (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.8, 0.8), (0.4, 0.0, 0.5, 0.1)
# Beside A, with an IoU above and below 0.5.
NEAR, OFF = (0.1, 0.1, 0.3, 0.25), (0.2, 0.1, 0.4, 0.3)


def test_what_finds_a_true_box():
    """The surest box has the first choice, whatever its class; each true box is found once."""
    image = image_result(
        [A, NEAR, OFF, B, FAR],
        [0.3, 0.9, 0.9, 0.2, 0.9],
        [(0.5, 0.5), (0.9, 0.1), (0.9, 0.1), (0.2, 0.8), (0.1, 0.9)],
        [A, B],
        [1, 0],
    )
    candidates = candidates_of([image, image], 2)
    assert candidates.true_ids.tolist() == [-1, 1, -1, 0, -1] * 2
    assert candidates.objects.tolist() == [2, 2]
    np.testing.assert_array_equal(candidates.class_probs[:5], image.ranked.class_probs)
    cooler = candidates_of([image], 2, temperature=0.5).class_probs
    squares = image.ranked.class_probs**2
    np.testing.assert_allclose(cooler, squares / squares.sum(1, keepdims=True), rtol=1e-6)
    assert cooler.dtype == np.float32


def test_of_images_as_evaluations_give_them():
    images = random_images(0, classes=3, labels=20)
    candidates = candidates_of(images, 3)
    assert len(candidates.objectness) == sum(len(image.ranked) for image in images)
    found = [
        (candidates.true_ids == class_id).sum() <= count
        for class_id, count in enumerate(candidates.objects)
    ]
    assert all(found)
    predicted, right = tally(candidates, choose_thresholds(candidates, Goal("f1")))
    plain = tally(candidates, (0.3, 0.3, 0.3))
    f1, plain_f1 = (
        (2 * each.right / (each.predicted + candidates.objects)).sum()
        for each in (Tally(predicted, right), plain)
    )
    assert f1 > plain_f1
