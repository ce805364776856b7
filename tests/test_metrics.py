"""Metrics against hand counts, a slow oracle, and the numbers recorded from the original."""

import json

import numpy as np
import pytest

import parity
from reference_nms import format_predictions
from yogo_jax.metrics.confusion import CALIBRATION_BINS, DetectionMetrics


NAMES = ("healthy", "ring", "wbc")
HEALTHY, RING, WBC = range(3)
# Places far enough apart that only boxes at the same one overlap.
PLACES = np.array([[x, 0.0, x + 0.1, 0.1] for x in (0.0, 0.2, 0.4, 0.6, 0.8)], np.float32)


def probs(*class_ids, confidence=0.8):
    rest = (1 - confidence) / (len(NAMES) - 1)
    rows = np.full((len(class_ids), len(NAMES)), rest, np.float32)
    rows[np.arange(len(class_ids)), list(class_ids)] = confidence
    return rows


def ids(*class_ids):
    return np.array(class_ids, np.int32)


def counted(*images, min_iou=0.5):
    metrics = DetectionMetrics(NAMES, min_iou=min_iou)
    for image in images:
        metrics.update(*image)
    return metrics


def two_images():
    """Right: 2 healthy, 1 ring. Wrong: a ring called healthy. Missed: 1 wbc. Extra: 1 ring."""
    first = (PLACES[:3], probs(HEALTHY, HEALTHY, RING), PLACES[:4], ids(HEALTHY, RING, RING, WBC))
    second = (PLACES[[0, 4]], probs(RING, HEALTHY), PLACES[[4]], ids(HEALTHY))
    return first, second


def test_hand_counted_images():
    found = counted(*two_images()).compute()
    assert found == {
        "confusion": {
            "class_names": ["healthy", "ring", "wbc", "background"],
            "matrix": [[2, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]],
        },
        "precision_by_class": {"healthy": 2 / 3, "ring": 1 / 2, "wbc": None},
        "recall_by_class": {"healthy": 1.0, "ring": 1 / 2, "wbc": 0.0},
        "accuracy_by_class": {"healthy": 1.0, "ring": 1 / 2, "wbc": None},
        "calibration_error": pytest.approx(0.05, abs=1e-6),  # 3 of 4 right, all at 0.8
        "missed_by_class": {"healthy": 0, "ring": 0, "wbc": 1},
        "extra_by_class": {"healthy": 0, "ring": 1, "wbc": 0},
        "images": 2,
        "objects": 5,
        "predictions": 5,
        "matched": 4,
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_background_only_matched_pairs_count():
    found = counted(*two_images()).compute(include_background=False)
    assert found["confusion"]["class_names"] == list(NAMES)
    assert found["confusion"]["matrix"] == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert found["precision_by_class"] == {"healthy": 2 / 3, "ring": 1.0, "wbc": None}
    assert found["recall_by_class"] == {"healthy": 1.0, "ring": 1 / 2, "wbc": None}
    assert found["missed_by_class"]["wbc"] == 1


def test_no_image_and_empty_images_leave_nothing_undefined():
    empty = (PLACES[:0], probs(), PLACES[:0], ids())
    for images in ((), (empty,), (empty, empty)):
        found = counted(*images).compute()
        assert found["images"] == len(images)
        assert found["objects"] == found["predictions"] == found["matched"] == 0
        assert found["calibration_error"] is None
        for key in ("precision_by_class", "recall_by_class", "accuracy_by_class"):
            assert set(found[key].values()) == {None}
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("shift", "min_iou", "matched"),
    [
        pytest.param(0.02, 0.5, 1, id="overlap-over-the-floor"),
        pytest.param(0.05, 0.5, 0, id="overlap-under-the-floor"),
        pytest.param(0.05, 0.0, 1, id="no-floor"),
    ],
)
def test_floor_of_a_pair(shift, min_iou, matched):
    predicted = PLACES[:1] + np.array([shift, 0, shift, 0], np.float32)
    image = (predicted, probs(RING), PLACES[:1], ids(RING))
    found = counted(image, min_iou=min_iou).compute()
    assert found["matched"] == matched
    assert found["missed_by_class"]["ring"] == found["extra_by_class"]["ring"] == 1 - matched


@pytest.mark.parametrize(
    ("confidences", "right", "expected"),
    [
        pytest.param([0.9], [True], 0.1, id="under-confident"),
        pytest.param([0.9], [False], 0.9, id="wrong"),
        pytest.param([1.0], [True], 0.0, id="certain-and-right"),
        # One bin: (1 + 0.97) / 2 against 1 right of 2; two would make it (1 + 0.03) / 2.
        pytest.param([1.0, 0.97], [False, True], 0.485, id="certainty-shares-the-last-bin"),
        # Two bins: errors do not cancel between them.
        pytest.param([0.99, 0.51], [False, True], (0.99 + 0.49) / 2, id="two-bins"),
        # 0.7 is an edge: it belongs to the bin above, with 0.71 and not with 0.69.
        pytest.param([0.7, 0.71], [True, False], 0.205, id="lower-edge-with-its-bin"),
        pytest.param([0.7, 0.69], [True, False], (0.3 + 0.69) / 2, id="edge-not-with-bin-below"),
    ],
)
def test_calibration_error(confidences, right, expected):
    metrics = DetectionMetrics(NAMES)
    for confidence, is_right in zip(confidences, right, strict=True):
        label = RING if is_right else WBC
        metrics.update(PLACES[:1], probs(RING, confidence=confidence), PLACES[:1], ids(label))
    assert metrics.compute()["calibration_error"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_agrees_with_a_loop_over_bins(seed):
    rng = np.random.default_rng(seed)
    metrics, rows = DetectionMetrics(NAMES), []
    for _ in range(40):
        class_probs = rng.dirichlet([0.5] * 3, len(PLACES)).astype(np.float32)
        labels = rng.integers(0, 3, len(PLACES)).astype(np.int32)
        metrics.update(PLACES, class_probs, PLACES, labels)
        rows += [
            (float(p.max()), p.argmax() == t) for p, t in zip(class_probs, labels, strict=True)
        ]
    expected = 0.0
    for low in range(CALIBRATION_BINS):
        inside = [row for row in rows if low <= row[0] * CALIBRATION_BINS < low + 1]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(confidence for confidence, _ in inside) / len(inside)
            expected += abs(accuracy - confidence) * len(inside) / len(rows)
    assert metrics.compute()["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_order_of_images_and_predictions_changes_nothing():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(6):
        corner = rng.uniform(0, 0.6, (8, 2))
        predicted = np.concatenate([corner, corner + 0.3], 1).astype(np.float32)
        labels = (predicted + rng.normal(0, 0.02, (8, 4)))[:6].astype(np.float32)
        class_probs = rng.dirichlet([1.0] * 3, 8).astype(np.float32)
        images.append((predicted, class_probs, labels, rng.integers(0, 3, 6).astype(np.int32)))
    expected = counted(*images).compute()
    shuffled = []
    for i in rng.permutation(6):
        order = rng.permutation(8)
        predicted, class_probs, labels, label_ids = images[i]
        shuffled.append((predicted[order], class_probs[order], labels, label_ids))
    found = counted(*shuffled).compute()
    assert found.pop("calibration_error") == pytest.approx(expected.pop("calibration_error"))
    assert found == expected


@pytest.mark.parametrize(
    ("class_probs", "label_ids", "message"),
    [
        pytest.param([[2.0, -1.0, 0.0]], [0], "softmax", id="logits"),
        pytest.param([[np.nan, 0.5, 0.5]], [0], "softmax", id="nan"),
        pytest.param([[0.5, 0.5]], [0], "2 columns", id="too-few-classes"),
        pytest.param([[0.5, 0.5, 0.0]], [3], "class ids", id="label-too-large"),
        pytest.param([[0.5, 0.5, 0.0]], [-1], "class ids", id="label-negative"),
    ],
)
def test_values_that_would_be_misread_are_refused(class_probs, label_ids, message):
    metrics = DetectionMetrics(NAMES)
    with pytest.raises(ValueError, match=message):
        metrics.update(PLACES[:1], np.array(class_probs, np.float32), PLACES[:1], ids(*label_ids))


def test_recorded_metrics_of_the_original():
    recorded = parity.load("metrics.npz")
    names = [f"class {i}" for i in range(7)]
    metrics = DetectionMetrics(names, min_iou=0.0)
    for raw, labels in zip(recorded["raw"], recorded["labels"], strict=True):
        boxes_xyxy, class_probs = format_predictions(raw.reshape(12, -1).T)
        rows = labels.reshape(6, -1).T
        rows = rows[rows[:, 0] > 0]
        metrics.update(boxes_xyxy, class_probs, rows[:, 1:5], rows[:, 5].astype(np.int32))
    found = metrics.compute(include_background=False)

    assert found["confusion"]["matrix"] == recorded["confusion"].tolist()
    assert list(found["missed_by_class"].values()) == recorded["missed"].tolist()
    assert list(found["extra_by_class"].values()) == recorded["extra"].tolist()
    assert found["matched"] == recorded["total"].item()
    for name in ("accuracy", "precision", "recall"):
        values = list(found[f"{name}_by_class"].values())
        np.testing.assert_allclose(values, recorded[name], atol=1e-5)
    assert found["calibration_error"] == pytest.approx(
        recorded["calibration_error"].item(), abs=1e-5
    )


def test_formatting_oracle_agrees_with_the_recorded_predictions():
    recorded = parity.load("format_preds.npz")
    for i, raw in enumerate(recorded["raw"]):
        boxes_xyxy, class_probs = format_predictions(raw.reshape(12, -1).T)
        np.testing.assert_allclose(boxes_xyxy, recorded[f"xyxy_{i}"][:, :4], atol=1e-6)
        np.testing.assert_allclose(class_probs, recorded[f"xyxy_{i}"][:, 5:], atol=1e-6)
