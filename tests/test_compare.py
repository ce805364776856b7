"""The comparison of detectors over seeds, on drawn rankings and on a tiny data set."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import yogo_jax
from benchmarks.compare import (
    compare,
    lines_of,
    measure,
    ranking_of_results,
    ranking_of_run,
    test_images,
)
from drawn_models import write_random_checkpoint
from tiny_data import write_dataset
from yogo_jax.data.headers import header_hw
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.errors import UserError
from yogo_jax.metrics.mean_ap import Ranking


test_images.__test__ = False  # its name means images of a test
IMAGES, CLASSES = 12, 2


def drawn_ranking(seed, right=0.7) -> Ranking:
    """Forty candidates of images with three objects of each class; of an object one at most."""
    rng = np.random.default_rng(seed)
    image_index, class_ids = rng.integers(IMAGES, size=40), rng.integers(CLASSES, size=40)
    is_true = np.repeat(rng.random((40, 1)) < right, 10, axis=1)
    for image in range(IMAGES):
        for k in range(CLASSES):
            rows = np.flatnonzero((image_index == image) & (class_ids == k))
            is_true[rows[3:]] = False
    scores = np.sort(rng.random(40))[::-1]
    objects = np.full((IMAGES, CLASSES), 3)
    return Ranking(image_index, class_ids, scores, is_true, objects)


def test_a_group_does_not_differ_from_itself():
    same = [drawn_ranking(0), drawn_ranking(1)]
    figures = compare({"a": same, "b": same}, resamples=50)
    assert (figures["b"]["less_first"] == 0).all()
    assert figures["b"]["intervals"] == [[0, 0]] * (2 + CLASSES)
    expected = [measure(each, np.ones((1, IMAGES), np.int64))[0] for each in same]
    np.testing.assert_allclose(figures["a"]["mean"], np.mean(expected, 0))
    np.testing.assert_allclose(figures["a"]["sd"], np.std(expected, 0, ddof=1))


def test_the_interval_is_that_of_images_drawn_for_both():
    first, second = [drawn_ranking(0, 0.5)], [drawn_ranking(1), drawn_ranking(2)]
    figures = compare({"first": first, "second": second}, resamples=200, seed=3)
    weights = np.random.default_rng(3).multinomial(IMAGES, [1 / IMAGES] * IMAGES, size=200)
    differences = [
        np.mean([measure(each, row[None])[0] for each in second], 0)
        - measure(first[0], row[None])[0]
        for row in weights
    ]
    expected = np.percentile(differences, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(figures["second"]["intervals"], expected)
    assert np.isnan(figures["first"]["sd"]).all()
    lines = lines_of(figures, ("healthy", "ring"))
    assert lines[0] == "| group | runs | mAP50 | mAP50-95 | AP50 healthy | AP50 ring |"
    assert [line.split(" |")[0] for line in lines if line.startswith("| ")] == [
        "| group", "| first", "| second", "| group", "| second",
    ]  # fmt: skip
    assert lines_of(compare({"first": first}, resamples=2), ("a", "b"))[-1].startswith(
        "| first | 1 |"
    )


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    """Splits of a published data set; two test images are training images, one of them brighter."""
    path = write_dataset(tmp_path_factory.mktemp("data"), images=24, published=True)
    folder = path.parent
    train = sorted((folder / "images" / "train").iterdir())[:2]
    for number, image in enumerate(train):
        copy = folder / "images" / "test" / f"copy_{number}.png"
        pixels = np.asarray(Image.open(image)).astype(int) + 3 * number
        if number == 0:
            shutil.copy(image, copy)
        else:
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(copy)
        shutil.copy(
            folder / "labels" / "train" / f"{image.stem}.txt",
            folder / "labels" / "test" / f"copy_{number}.txt",
        )
    return path


@pytest.fixture(scope="module")
def records(definition):
    kept, left_out = test_images(str(definition), workers=1)
    assert left_out == 2
    assert not any("copy" in each for each in kept.image_paths)
    assert len(kept) > 1
    return kept


def results_of(records, shift_px=0.0):
    """The labels as another program would find them, moved to the right."""
    rows = []
    for index, path in enumerate(records.image_paths):
        height, width = header_hw(path)
        boxes, class_ids = records.labels_of(index)
        for (x1, y1, x2, y2), k in zip(cxcywh_to_xyxy(boxes), class_ids, strict=True):
            bbox = [x1 * width + shift_px, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
            row = {"image_id": path, "category_id": int(k), "bbox": [*map(float, bbox)], "score": 1}
            rows.append(row)
    return rows


def test_results_of_another_program(records, tmp_path):
    weights = np.ones((1, len(records)), np.int64)

    def measured(rows):
        file = tmp_path / "results.json"
        file.write_text(json.dumps(rows))
        return measure(ranking_of_results(file, records), weights)[0]

    np.testing.assert_allclose(measured(results_of(records))[:2], 1)
    moved = measured(results_of(records, shift_px=3))
    assert moved[0] > 0.9
    assert 0.1 < moved[1] < 0.9
    half = measured(results_of(records)[::2])
    assert 0.2 < half[0] < 0.8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected a JSON list"),
        ('[{"image_id": "a.png"}]', "expected a JSON list"),
        (
            '[{"image_id": "a.png", "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1}]',
            "from 0 to",
        ),
        (
            '[{"image_id": "a.png", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1}]',
            "names none",
        ),
        (
            '[{"image_id": "a.png", "category_id": 0, "bbox": [0, 0, 1], "score": 1}]',
            "expected a JSON",
        ),
    ],
)
def test_results_that_cannot_be_used(records, tmp_path, text, said):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        ranking_of_results(file, records)


def test_a_run_is_ranked_as_its_evaluation_has_it(records, tmp_path):
    names, size = ("healthy", "ring"), (64, 96)
    folder = write_random_checkpoint(tmp_path / "checkpoint", class_names=names, image_hw=size)
    own = write_dataset(tmp_path / "data", images=24, published=True, seed=1)
    kept, left_out = test_images(str(own), workers=1)
    assert left_out == 0
    found = measure(ranking_of_run(folder, kept), np.ones((1, len(kept)), np.int64))[0]
    metrics = yogo_jax.evaluate(folder, own)
    expected = [metrics["mAP50"], metrics["mAP50_95"], *metrics["AP50_by_class"].values()]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    other = write_random_checkpoint(tmp_path / "other", image_hw=size)
    with pytest.raises(UserError, match="they must be the same"):
        ranking_of_run(other, records)
