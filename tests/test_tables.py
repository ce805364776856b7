import json

import numpy as np
import pytest

from yogo_jax.metrics.confusion import DetectionMetrics
from yogo_jax.metrics.mean_ap import MeanAveragePrecision, OriginalMeanAveragePrecision
from yogo_jax.reports.tables import format_metrics, note_on_earlier_versions


NAMES = ["healthy", "ring", "wbc"]
RATES = ("1", "10", "100", "1000")


def measured(class_names):
    """Metrics of one image, as evaluation writes them: the last class has no true box."""
    classes = len(class_names)
    x = np.arange(classes, dtype=np.float32) / classes
    boxes_xyxy = np.stack([x, x * 0, x + 0.5 / classes, x * 0 + 0.5], axis=1)
    class_ids = np.arange(classes, dtype=np.int32)
    class_probs = np.eye(classes, dtype=np.float32)
    detection = DetectionMetrics(class_names)
    detection.update(boxes_xyxy, class_probs, boxes_xyxy[:-1], class_ids[:-1])
    metrics = detection.compute() | {"test_loss": 1.25}
    for mean_ap in (MeanAveragePrecision(class_names), OriginalMeanAveragePrecision(class_names)):
        mean_ap.update(boxes_xyxy, (x + 1) / 2, class_probs, boxes_xyxy[:-1], class_ids[:-1])
        metrics |= mean_ap.compute()
    metrics["sensitivity_at_false_positives"] = {
        "red_cell_class": class_names[0],
        "red_cells": 12345,
        "allowed_false_positives": {"1": 0, "10": 0, "100": 1, "1000": 12},
        "by_class": {name: dict.fromkeys(RATES, 0.125) for name in class_names[1:-1]}
        | {class_names[-1]: None},
    }
    return json.loads(json.dumps(metrics))


def test_every_number_is_in_its_place():
    lines = format_metrics(measured(NAMES)).splitlines()
    sentences = [line for line in lines if len(line) > 90 or line.endswith(".")]
    assert " ".join(sentences) == (
        "By the original's protocol mAP50 is 1.0000 and mAP50-95 1.0000: each box has its most "
        "probable class alone, its objectness is above 0.05, it is not cut at the frame, and at "
        "most 2,000 of a frame count. "
        "Sensitivity if at most this number of false positives is allowed per 10^6 boxes of "
        "healthy. The set has 12,345 of these boxes. "
        "* The set is too small for this number: the value is the sensitivity without any false "
        "positive. Boxes of healthy that are needed: 1,000,000 for 1, 100,000 for 10."
    )
    assert [line for line in lines if line not in sentences] == [
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
        "class      1*     10*     100    1000",
        "ring   0.1250  0.1250  0.1250  0.1250",
        "wbc         -       -       -       -",
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
    assert "had more" not in format_metrics(metrics)
    text = format_metrics(metrics | {"images_over_max_detections": 12})
    assert "12 image(s) had more; the best were used." in text


def test_a_set_that_is_large_enough_has_no_star():
    metrics = measured(NAMES)
    values = metrics["sensitivity_at_false_positives"]
    values["allowed_false_positives"] = dict.fromkeys(RATES, 3)
    text = format_metrics(metrics)
    assert "class       1      10     100    1000" in text
    assert "*" not in text


@pytest.mark.parametrize("change", [None, {}], ids=["no true box", "one class"])
def test_no_sensitivity_without_rare_classes(change):
    metrics = measured(NAMES)
    values = metrics["sensitivity_at_false_positives"]
    metrics["sensitivity_at_false_positives"] = (
        change if change is None else values | {"by_class": change}
    )
    assert "Sensitivity" not in format_metrics(metrics)


def test_which_tests_are_of_an_earlier_version():
    new = {"mAP50": 0.5, "mAP50_original": None}
    assert note_on_earlier_versions({"a": new}) == ""
    note = note_on_earlier_versions({"a": {"mAP50": 0.5}, "b": new, "c": {"mAP50": None}})
    assert note.endswith("by the original's protocol: a, c.")


def test_metrics_of_an_earlier_version():
    metrics = measured(NAMES)
    kept = {key: value for key, value in metrics.items() if "original" not in key}
    del kept["sensitivity_at_false_positives"]
    text = format_metrics(kept)
    assert "mAP50              1.0000" in text
    assert "original" not in text
    assert "Sensitivity" not in text


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
