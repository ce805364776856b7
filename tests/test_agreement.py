"""Agreement of counts and calibration, against plain loops and scikit-learn."""

import math
import statistics

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from evaluations import image_result, random_images
from reference_curves import matched_pairs
from yogo_jax.metrics.confusion import CALIBRATION_BINS, DetectionMetrics
from yogo_jax.metrics.intervals import agreement, counts_by_image
from yogo_jax.reports.evaluation_figures import calibration_of


def test_counts_are_of_found_boxes_and_of_all_labels():
    images = random_images(0, classes=3)
    predicted, true = counts_by_image(images, 3)
    for row, image in enumerate(images):
        named = [int(np.argmax(probs)) for probs in image.found.class_probs]
        assert predicted[row].tolist() == [named.count(index) for index in range(3)]
        labels = image.label_class_ids.tolist()
        assert true[row].tolist() == [labels.count(index) for index in range(3)]


def test_limits_of_agreement():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 40, 30), rng.integers(0, 40, 30)
    differences = [int(p) - int(t) for p, t in zip(predicted, true, strict=True)]
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    found = agreement(predicted, true)
    assert found.bias == pytest.approx(mean)
    assert found.lower == pytest.approx(mean - 1.96 * spread, abs=1e-3)
    assert found.upper == pytest.approx(mean + 1.96 * spread, abs=1e-3)


def test_one_frame_has_a_bias_and_no_limits():
    assert agreement(np.array([3]), np.array([5])) == (-2.0, None, None)


def test_calibration_is_that_of_scikit_learn():
    images = random_images(1, classes=3, count=40)
    pairs = matched_pairs(images)
    confidence = np.array([probs.max() for probs, _ in pairs])
    right = np.array([probs.argmax() == true for probs, true in pairs])
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    found = calibration_of(images)
    filled = found.pairs > 0
    np.testing.assert_allclose(found.correct[filled] / found.pairs[filled], accuracy)
    np.testing.assert_allclose(
        found.confidence[filled] / found.pairs[filled], mean_confidence, rtol=1e-6
    )
    metrics = DetectionMetrics(("a", "b", "c"))
    for image in images:
        labels = image.label_boxes_xyxy, image.label_class_ids
        metrics.update(image.found.boxes_xyxy, image.found.class_probs, *labels)
    gaps = np.abs(accuracy - mean_confidence) * found.pairs[filled]
    assert found.compute() == metrics.compute()["calibration_error"]
    assert found.compute() == pytest.approx(math.fsum(gaps) / len(pairs), rel=1e-6)


def test_no_pair_no_calibration():
    nothing = image_result([], [], np.zeros((0, 3)), [(0, 0, 0.5, 0.5)], [0])
    assert calibration_of([nothing]).compute() is None
