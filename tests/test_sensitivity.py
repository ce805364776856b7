"""Sensitivity at few false positives against counting anew at every threshold."""

import numpy as np
import pytest

from evaluations import image_result, random_images
from reference_curves import by_class, objects_of, true_and_false
from yogo_jax.metrics.curves import rank
from yogo_jax.metrics.sensitivity import sensitivity_at_false_positives


NAMES = ("healthy", "ring", "wbc")
RATES = ("1", "10", "100", "1000")
PLACES = [(x / 10, 0.0, x / 10 + 0.08, 0.3) for x in range(10)]


def measured(images, names=NAMES):
    return sensitivity_at_false_positives(rank(images, len(names), ious=(0.5,)), names)


def by_loops(images, class_id, allowed):
    """The best share of true boxes over all thresholds that allow so many false alarms."""
    scores = {score for image in images for _, _, score in by_class(image)[0]}
    counts = [
        true_and_false(images, lambda score, t=t: score >= t, by_class, class_id=class_id)
        for t in scores
    ]
    found = [true for true, false in counts if false <= allowed]
    return max(found, default=0) / objects_of(images, class_id)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [1, 7], ids=["equal scores", "all different"])
def test_agrees_with_loops(seed, decimals, monkeypatch):
    # So few cells allow some false positives at a far smaller base.
    monkeypatch.setattr("yogo_jax.metrics.sensitivity.CELLS_OF_RATES", 5000)
    images = random_images(seed, count=6, classes=3, false_alarms=8, decimals=decimals)
    found = measured(images)
    counts = [objects_of(images, class_id) for class_id in range(3)]
    red = int(np.argmax(counts))
    assert found["red_cell_class"] == NAMES[red]
    assert found["red_cells"] == max(counts)
    allowed = {rate: int(rate) * max(counts) // 5000 for rate in RATES}
    assert found["allowed_false_positives"] == allowed
    assert allowed["10"] == 0 < allowed["1000"]
    others = [class_id for class_id in range(3) if class_id != red]
    assert list(found["by_class"]) == [NAMES[class_id] for class_id in others]
    for class_id in others:
        expected = {rate: by_loops(images, class_id, most) for rate, most in allowed.items()}
        assert found["by_class"][NAMES[class_id]] == pytest.approx(expected)
        assert expected["1"] < expected["1000"]


def planted(ring_scores, *, cells):
    """Rings at the first places, of which each is found with such a score, and false ones after.

    A negative score is that of a false alarm.
    """
    healthy = image_result([], [], np.zeros((0, 3)), PLACES, [0] * 10)
    true = [score for score in ring_scores if score > 0]
    labels = PLACES[: len(true)]
    alarms = iter(PLACES[len(true) :])
    sure = iter(labels)
    boxes = [next(sure) if score > 0 else next(alarms) for score in ring_scores]
    scores = np.abs(ring_scores)
    rings = image_result(boxes, scores, [(0, 1, 0)] * len(boxes), labels, [1] * len(labels))
    return [*[healthy] * (cells // 10), rings]


def test_allowed_false_positives_are_rounded_down_and_counted():
    # 19,990 cells allow 0, 0, 1 and 19.
    found = measured(planted([0.9, -0.8, 0.7, -0.6, 0.5], cells=19_990))
    assert found["allowed_false_positives"] == {"1": 0, "10": 0, "100": 1, "1000": 19}
    third = pytest.approx(1 / 3)
    assert found["by_class"]["ring"] == {
        "1": third,
        "10": third,
        "100": 2 * third.expected,
        "1000": 1,
    }
    assert found["by_class"]["wbc"] is None


def test_equal_scores_are_taken_together_or_not_at_all():
    for scores in ([0.9, -0.9, 0.5], [-0.9, 0.9, 0.5]):
        ring = measured(planted(scores, cells=10_000))["by_class"]["ring"]
        assert ring == {"1": 0, "10": 0, "100": 1, "1000": 1}


@pytest.mark.parametrize(
    ("image", "names", "expected"),
    [
        pytest.param(
            image_result([PLACES[0]], [0.9], [(1, 0, 0)], [], []), NAMES, None, id="no label"
        ),
        pytest.param(
            image_result([], [], np.zeros((0, 3)), PLACES[:3], [1, 0, 0]),
            NAMES,
            {"ring": dict.fromkeys(RATES, 0.0), "wbc": None},
            id="no detection",
        ),
        pytest.param(
            image_result([PLACES[0]], [0.9], [(1,)], PLACES[:1], [0]), ("cell",), {}, id="one class"
        ),
        pytest.param(
            image_result([], [], np.zeros((0, 3)), PLACES[:2], [1, 2]),
            NAMES,
            {"healthy": None, "wbc": dict.fromkeys(RATES, 0.0)},
            id="equally frequent: the first",
        ),
    ],
)
def test_of_next_to_nothing(image, names, expected):
    found = measured([image], names)
    assert found == expected if expected is None else found["by_class"] == expected
