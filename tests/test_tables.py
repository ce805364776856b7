import json

import numpy as np
import pytest

from yogo_jax.metrics.confusion import DetectionMetrics
from yogo_jax.metrics.mean_ap import MeanAveragePrecision
from yogo_jax.reports.tables import advice_on_nothing_found, format_metrics


NAMES = ["healthy", "ring", "wbc"]


def measured(class_names):
    """Metrics of one image, as evaluation writes them: the last class has no true box."""
    classes = len(class_names)
    x = np.arange(classes, dtype=np.float32) / classes
    boxes_xyxy = np.stack([x, x * 0, x + 0.5 / classes, x * 0 + 0.5], axis=1)
    class_ids = np.arange(classes, dtype=np.int32)
    class_probs = np.eye(classes, dtype=np.float32)
    detection = DetectionMetrics(class_names)
    detection.update(boxes_xyxy, class_probs, boxes_xyxy[:-1], class_ids[:-1])
    mean_ap = MeanAveragePrecision(class_names)
    mean_ap.update(boxes_xyxy, x + 0.5, class_ids, boxes_xyxy[:-1], class_ids[:-1])
    metrics = detection.compute() | mean_ap.compute() | {"test_loss": 1.25}
    return json.loads(json.dumps(metrics))


def test_every_number_is_in_its_place():
    assert format_metrics(measured(NAMES)).splitlines() == [
        "class      AP50  AP50-95  precision  recall  accuracy  missed  extra  objects",
        "healthy  1.0000   1.0000     1.0000  1.0000    1.0000       0      0        1",
        "ring     1.0000   1.0000     1.0000  1.0000    1.0000       0      0        1",
        "wbc           -        -     0.0000       -         -       0      1        0",
        "",
        "total",
        "mAP50              1.0000",
        "mAP50-95           1.0000",
        "calibration error  0.0000",
        "test loss          1.2500",
        "images                  1",
        "true boxes              2",
        "predictions             3",
        "matched                 2",
        "missed                  0",
        "extra                   1",
        "",
        "confusion (row: true class, column: predicted class)",
        "            healthy  ring  wbc  background",
        "healthy           1     0    0           0",
        "ring              0     1    0           0",
        "wbc               0     0    0           0",
        "background        0     0    1           0",
    ]


@pytest.mark.parametrize("include_background", [True, False], ids=["background", "matched-only"])
def test_objects_of_a_class_include_the_missed_ones(include_background):
    metrics = DetectionMetrics(NAMES)
    nothing = np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32)
    metrics.update(*nothing, np.array([[0, 0, 1, 1]] * 7, np.float32), np.full(7, 1, np.int32))
    text = format_metrics(metrics.compute(include_background=include_background))
    ring = next(line for line in text.splitlines() if line.startswith("ring"))
    assert ring.split()[-1] == "7"


@pytest.mark.parametrize("classes", [2, 9, 40])
@pytest.mark.parametrize(
    "name", ["c{}", "erythrocyte of a patient number {}"], ids=["short", "long"]
)
def test_lines_stay_within_a_log_file(classes, name):
    class_names = [name.format(i) for i in range(classes)]
    metrics = measured(class_names)
    metrics["confusion"]["matrix"] = [[1234567] * (classes + 1)] * (classes + 1)
    lines = format_metrics(metrics).splitlines()
    assert max(map(len, lines)) <= 100
    # No column of the matrix is lost where it is cut into blocks.
    confusion = lines[lines.index("confusion (row: true class, column: predicted class)") :]
    assert sum(line.count("1234567") for line in confusion) == (classes + 1) ** 2


def test_detections_that_did_not_count_are_mentioned():
    metrics = measured(NAMES)
    assert "more predictions" not in format_metrics(metrics)
    assert "12 image(s) had more" in format_metrics(metrics | {"images_over_max_detections": 12})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(["mAP50"], ["total", "mAP50  1.0000"], id="one-total"),
        pytest.param(["AP50_by_class"], ["class      AP50"], id="one-column"),
    ],
)
def test_missing_keys_leave_their_place_out(keys, expected):
    metrics = measured(NAMES)
    text = format_metrics({key: metrics[key] for key in keys})
    assert text.splitlines()[: len(expected)] == expected
    assert bool(text) == bool(keys)


@pytest.mark.parametrize(
    ("predictions", "objects", "advised"), [(0, 5, True), (1, 5, False), (0, 0, False)]
)
def test_a_test_without_predictions_says_what_that_means(predictions, objects, advised):
    advice = advice_on_nothing_found({"predictions": predictions, "objects": objects, "images": 3})
    assert (advice is not None) == advised
    if advice is not None:
        assert "no prediction in 3 images with 5 boxes" in advice
        assert "configs/strong.py" in advice
