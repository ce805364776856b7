"""The comparison of detectors over seeds, on drawn rankings and on a tiny data set."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import yogo_jax
from benchmarks.compare import (
    SAME_FIELD,
    compare,
    format_figures,
    main,
    measure,
    ranking_of_results,
    ranking_of_run,
    read_groups,
    shared_correlation,
    usable_records,
)
from drawn_models import write_random_checkpoint
from tiny_data import write_dataset
from yogo_jax.checkpoint.store import read_metadata, rewrite_metadata
from yogo_jax.data.headers import header_hw
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.errors import UserError
from yogo_jax.metrics.mean_ap import Ranking


IMAGES, CLASSES = 12, 2


def drawn_ranking(seed, right=0.7) -> Ranking:
    """Forty candidates; each image has three objects of each class, each found once at most."""
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
    assert (figures["b"]["difference"] == 0).all()
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
    lines = format_figures(figures, ("healthy", "ring"))
    assert lines[0] == "| group | runs | mAP50 | mAP50-95 | AP50 healthy | AP50 ring |"
    assert [line.split(" |")[0] for line in lines if line.startswith("| ")] == [
        "| group", "| first", "| second", "| group", "| second",
    ]  # fmt: skip
    assert format_figures(compare({"first": first}, resamples=2), ("a", "b"))[-1].startswith(
        "| first | 1 |"
    )


@pytest.mark.parametrize("shift_yx", [(0, 0), (0, 30), (-9, 15), (22, -3)])
def test_moved_views_of_one_field_are_found(shift_yx):
    rng = np.random.default_rng(0)
    fields = 20 * rng.normal(size=(4, 100, 130))
    dy, dx = shift_yx
    first = fields[:, 26:74, 33:97]
    second = fields[:, 26 + dy : 74 + dy, 33 + dx : 97 + dx] + 4 * rng.normal(size=first.shape)
    found = shared_correlation(first, second)
    assert (np.diag(found) > 0.9).all()
    assert found[~np.eye(4, dtype=bool)].max() < 0.5
    assert shared_correlation(first, np.full_like(second, 3.0)).max() == 0  # shows nothing


def test_frames_with_few_bright_cells_on_empty_ground_are_not_the_same():
    rng = np.random.default_rng(1)
    y, x = np.indices((60, 80))

    def frame():
        cells = rng.uniform((5, 5), (55, 75), (8, 2))
        return sum(100.0 * (np.hypot(y - cy, x - cx) < 5) for cy, cx in cells)

    frames = np.stack([frame() for _ in range(20)])
    assert shared_correlation(frames[:10], frames[10:]).max() < SAME_FIELD


def add_texture(folder) -> None:
    """Makes the images of a tiny data set different fields, without the cells in their places."""
    rng = np.random.default_rng(0)
    for image in sorted(folder.glob("images/*/*.png")):
        blocks = rng.integers(-120, 120, (16, 24))
        pixels = 128 + blocks.repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image)


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    """Splits of a published data set; of two test images the fields are training images, too.

    One is brighter there, and moved by 24 px.
    """
    path = write_dataset(tmp_path_factory.mktemp("data"), images=96, published=True)
    folder = path.parent
    add_texture(folder)
    train = sorted((folder / "images" / "train").iterdir())[:2]
    for number, image in enumerate(train):
        copy = folder / "images" / "test" / f"copy_{number}.png"
        pixels = np.roll(np.asarray(Image.open(image)).astype(int) + 3 * number, 24 * number, 1)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(copy)
        shutil.copy(
            folder / "labels" / "train" / f"{image.stem}.txt",
            folder / "labels" / "test" / f"copy_{number}.txt",
        )
    return path


@pytest.fixture(scope="module")
def records(definition):
    kept, lines = usable_records(str(definition), workers=1)
    assert lines[-1] == "24 test images; 2 more show fields of another split"
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


def row(**changes) -> str:
    values = {"image_id": "a.png", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1}
    return json.dumps([values | changes])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected a JSON list"),
        ('[{"image_id": "a.png"}]', "expected a JSON list"),
        (row(category_id=9), "row 0 .* category_id from 0 to 1"),
        (row(category_id=0.5), "category_id from 0 to 1"),
        (row(category_id=float("inf")), "category_id from 0 to 1"),
        (row(bbox=[0, 0, 1]), "expected a JSON list"),
        (row(bbox=[0, 0, 0, 1]), "width and height above 0"),
        (row(bbox=[float("nan"), 0, 1, 1]), "width and height above 0"),
        (row(score=float("nan")), "score from 0 to 1"),
        (row(score=7), "score from 0 to 1"),
        (row(), "names none of the test images"),
    ],
)
def test_results_that_cannot_be_used(records, tmp_path, text, said):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        ranking_of_results(file, records)


@pytest.mark.parametrize("given", ["a", "=a", "a=", "a=b,,c"])
def test_groups_that_cannot_be_read(given):
    with pytest.raises(UserError, match=r"expected NAME=RUN,RUN,…"):
        read_groups([given])
    with pytest.raises(UserError, match="a group 'a' already"):
        read_groups(["a=b", "a=c"])


def test_a_run_is_ranked_as_its_evaluation_has_it(tmp_path, capsys):
    """The labels are boxes of the network itself, every second one, so that it finds some."""
    names, size = ("healthy", "ring"), (64, 96)
    folder = write_random_checkpoint(tmp_path / "checkpoint", class_names=names, image_hw=size)
    own = write_dataset(tmp_path / "data", images=16, published=True)
    add_texture(own.parent)
    model = yogo_jax.load(folder)
    for path in (own.parent / "images" / "test").iterdir():
        found = model.predict(path, objectness=0.0)[::2]
        boxes = found.boxes_xyxy.clip(0, 1)
        rows = [
            f"{k} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}\n"
            for k, (x1, y1, x2, y2) in zip(found.class_ids, boxes, strict=True)
            if min(x2 - x1, y2 - y1) > 0.05
        ]
        (own.parent / "labels" / "test" / f"{path.stem}.txt").write_text("".join(rows))
    main([f"a={folder}", f"b={folder},{folder}", "--definition", str(own)])
    kept, lines = usable_records(str(own), workers=1)
    assert lines[-1] == "4 test images; 0 more show fields of another split"
    found = measure(ranking_of_run(folder, kept), np.ones((1, len(kept)), np.int64))[0]
    metrics = yogo_jax.evaluate(folder, own)
    expected = [metrics["mAP50"], metrics["mAP50_95"], *metrics["AP50_by_class"].values()]
    assert 0.05 < expected[0] < 0.95
    np.testing.assert_allclose(found, np.asarray(expected, float), atol=1e-6)
    printed = capsys.readouterr().out
    assert f"| b | 2 | {expected[0]:.3f} ± 0.000 |" in printed
    assert "| b | 2 | +0.000 (+0.000 to +0.000) |" in printed


def test_runs_that_cannot_be_compared(records, tmp_path):
    other = write_random_checkpoint(tmp_path / "other", image_hw=(64, 96))
    with pytest.raises(UserError, match="they must be the same"):
        ranking_of_run(other, records)
    folder = write_random_checkpoint(tmp_path / "checkpoint", class_names=("healthy", "ring"))
    split = {"data": {"split_override": [0.5, 0.25, 0.25]}}
    rewrite_metadata(folder, dataclasses.replace(read_metadata(folder), config=split))
    with pytest.raises(UserError, match=r"data.split_override=\(0.5, 0.25, 0.25\)"):
        ranking_of_run(folder, records)
