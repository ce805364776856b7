"""What stands first in a report: nothing found, and classes that are never found."""

import pytest

from evaluations import evaluation_of, image_result
from yogo_jax.detector.detections import Thresholds
from yogo_jax.reports.findings import advice_on_nothing_found, findings_of


NAMES = ("healthy", "ring", "wbc")
A, B = (0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.7, 0.7)
PLAIN, DECIDED = Thresholds(), Thresholds.of_classes((0.5, 0.5, 0.5))
HEALTHY, HEALTHY_ONLY = (0.9, 0.06, 0.04), (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("predictions", "objects", "advised"), [(0, 5, True), (1, 5, False), (0, 0, False)]
)
def test_an_evaluation_without_predictions_says_what_that_means(predictions, objects, advised):
    advice = advice_on_nothing_found({"predictions": predictions, "objects": objects, "images": 3})
    assert (advice is not None) == advised
    if advice is not None:
        assert "no prediction in 3 images with 5 boxes" in advice
        assert "configs/strong.py" in advice


def findings(boxes, objectness, probs, labels, label_ids, thresholds=PLAIN):
    image = image_result(boxes, objectness, probs, labels, label_ids)
    return findings_of(evaluation_of([image], NAMES).metrics, thresholds)


def test_boxes_below_the_threshold_ask_for_a_lower_one():
    (low,) = findings([A], [0.3], [HEALTHY], [A], [0])
    assert "try a lower one, --obj-thresh 0.2" in low
    assert "(mAP50 1.00)" in low
    # Thresholds of classes take no --obj-thresh.
    (decided,) = findings([A], [0.3], [HEALTHY], [A], [0], DECIDED)
    assert "--obj-thresh" not in decided
    assert "yogo-jax calibrate --decision f1" in decided
    elsewhere, lost = findings([B], [0.3], [HEALTHY], [A], [0])
    assert "nothing is found" in elsewhere
    assert "--obj-thresh" not in elsewhere
    assert "healthy (boxes: 1)" in lost


@pytest.mark.parametrize(
    ("probs", "label_ids", "named"),
    [
        pytest.param([HEALTHY, HEALTHY], [0, 0], None, id="all found"),
        pytest.param([HEALTHY, HEALTHY], [0, 1], None, id="a low score of its own"),
        pytest.param([HEALTHY_ONLY] * 2, [0, 1], "ring (boxes: 1)", id="never found"),
        pytest.param([HEALTHY_ONLY] * 2, [2, 1], "ring (boxes: 1), wbc (boxes: 1)", id="two"),
    ],
)
def test_classes_with_labels_that_are_never_found_are_named(probs, label_ids, named):
    found = findings([A, B], [0.9, 0.9], probs, [A, B], label_ids)
    if named is None:
        assert found == []
        return
    (finding,) = found
    assert f"classes that have labels: {named}. " in finding
    for advice in ("configs/strong.py", "--config.augment.rare_cells_weights", "yogo-jax inspect"):
        assert advice in finding


def test_without_labels_there_is_nothing_to_find_out():
    assert findings([A], [0.9], [HEALTHY], [], []) == []
