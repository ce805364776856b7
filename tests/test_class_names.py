"""Classes that are called as rows and columns of ours: nothing is lost or counted twice."""

import csv
import json

import numpy as np
import pytest

from count_samples import CONFUSION, write
from evaluations import evaluation_of, random_images
from yogo_jax import counts
from yogo_jax.counting.files import read_counts
from yogo_jax.counting.matrix import read_validation
from yogo_jax.detector.detections import Detections
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.inference.journal import FrameRecord
from yogo_jax.inference.writers import Totals, counts_csv
from yogo_jax.metrics.confusion import DetectionMetrics, name_beside
from yogo_jax.reports.evaluation_figures import drawn_classes, measure_curves


NAMES = ("background", "total", "image", "image_id", "parasites", "red cells", "all classes")
PLAIN = tuple("abcdefg")


def test_names_beside():
    assert name_beside(PLAIN, "total") == "total"
    assert name_beside(NAMES, "total") == "total*"
    assert name_beside(("total*", "total"), "total") == "total**"


def test_metrics_and_the_validation_that_is_read_from_them(tmp_path):
    images = random_images(3, classes=7)
    found = {}
    for names in (NAMES, PLAIN):
        metrics = evaluation_of(images, names).metrics
        confusion = metrics["confusion"]
        assert len(set(confusion["class_names"])) == 8
        path = write(tmp_path / f"{names[0]}.json", {"confusion": confusion, "images": 12})
        found[names] = (confusion["matrix"], read_validation(path))
    assert found[NAMES][0] == found[PLAIN][0]
    (_, ours), (_, plain) = found.values()
    assert ours.class_names == NAMES
    np.testing.assert_array_equal(ours.matrix, plain.matrix)
    np.testing.assert_array_equal(ours.extra, plain.extra)
    without = DetectionMetrics(NAMES).compute(include_background=False)
    assert without["confusion"]["class_names"] == list(NAMES)


def test_curves_are_of_all_classes_and_of_one_called_so():
    images = random_images(3, classes=7)
    curves, plain = (measure_curves(images, names) for names in (NAMES, PLAIN))
    assert len(curves.by_score) == 8
    for ours, theirs in zip(curves.by_score.values(), plain.by_score.values(), strict=True):
        np.testing.assert_array_equal(ours.precision, theirs.precision)
    assert len(drawn_classes(NAMES, np.arange(7))) == 8


def record(image_id, class_ids):
    k = len(NAMES)
    probs = np.eye(k, dtype=np.float32)[class_ids].reshape(-1, k)
    n = len(class_ids)
    found = Detections(
        boxes_xyxy=np.zeros((n, 4), np.float32),
        objectness=np.ones(n, np.float32),
        class_probs=probs,
        class_names=NAMES,
        image_hw=(64, 96),
    )
    return FrameRecord(image_id, f"{image_id}.png", None, found)


def test_counts_go_through_a_table_and_json(tmp_path):
    records = [
        record(0, [0, 1, 1, 6]),
        record(1, [1, 2, 3, 4, 5]),
        FrameRecord(2, "2.png", "x", None),
    ]
    totals = Totals(NAMES)
    with counts_csv(tmp_path / "counts.csv", NAMES) as add:
        for each in records:
            add(each)
            totals.add(each)
    write(tmp_path / "counts.json", totals.to_dict())
    with open(tmp_path / "counts.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert len(set(header)) == len(header) == 10
    assert [row[-1] for row in rows] == ["4", "5", ""]
    for name in ("counts.csv", "counts.json"):
        sample = read_counts(tmp_path / name)
        assert sample.class_names == NAMES
        assert sample.counts.tolist() == [1, 3, 1, 1, 1, 1, 1]
        assert sample.frames == 2


def test_an_estimate_has_a_row_for_each_class_and_two_more(tmp_path, capsys):
    values = {}
    for names in (NAMES, PLAIN):
        folder = tmp_path / names[0]
        folder.mkdir()
        by_class = dict(zip(names, [20_000, 50, 5, 2, 1, 20, 100], strict=True))
        write(folder / "in.json", {"by_class": by_class, "frames": 400, "total": 20_178})
        confusion = {"class_names": [*names, name_beside(names, "background")]}
        write(
            folder / "metrics.json",
            {"confusion": {**confusion, "matrix": CONFUSION}, "images": 500},
        )
        arguments = ["--validation", str(folder / "metrics.json"), "--output", str(folder / "out")]
        arguments += ["--parasite-classes", *names[1:4], "--red-cell-classes", *names[:4]]
        counts.main(["estimate", str(folder / "in.json"), *arguments])
        values[names] = json.loads((folder / "out" / "counts.json").read_text())
        shown = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in shown[1:10]] == list(values[names]["raw_counts"])
    for key in ("raw_counts", "corrected_counts"):
        ours, plain = values[NAMES][key], values[PLAIN][key]
        assert list(ours) == [*NAMES, "parasites*", "red cells*"]
        assert list(plain) == [*PLAIN, "parasites", "red cells"]
        assert list(ours.values()) == list(plain.values())
    assert values[NAMES]["raw"] == values[PLAIN]["raw"]


@pytest.mark.parametrize("given", ["\xe9", "e\u0301"], ids=["nfc", "nfd"])
def test_a_network_has_its_names_in_one_unicode_form(given):
    values = ModelSpec(
        architecture="base_model",
        class_names=("ring",),
        image_hw=(64, 96),
        anchor_wh=(0.1, 0.1),
        rgb=False,
        normalize_images=False,
    ).to_dict()
    assert ModelSpec.from_dict({**values, "class_names": [given]}).class_names == ("\xe9",)


@pytest.mark.parametrize("given", ["\xe9", "e\u0301"], ids=["nfc", "nfd"])
def test_counts_of_another_unicode_form_fit(tmp_path, given):
    for name, values in (
        ("a.json", {"class_names": [given], "by_class": {given: 3}}),
        ("b.json", {"total": {given: 3}}),
        ("c.csv", f"image_id,{given}\n0,3\n"),
    ):
        assert read_counts(write(tmp_path / name, values)).class_names == ("\xe9",)
