"""Inspection of a data set with planted mistakes: each is found, and nothing else."""

import csv
import dataclasses
import json
import os
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from browser import assert_figures_can_be_read, assert_fits_the_width, open_page
from drawn_models import write_random_checkpoint
from planted import plant
from runs import run_command
from tiny_data import write_dataset
from yogo_jax.checkpoint.store import read_metadata, restore_variables, write_weights
from yogo_jax.data.definition import load_definition
from yogo_jax.data.images import decode_file
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.loss_weights import ORIGINAL_WEIGHTS
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.inspect_data import main
from yogo_jax.inspection import findings
from yogo_jax.inspection.audit import inspect_data
from yogo_jax.inspection.findings import Listing
from yogo_jax.inspection.page import render_inspection
from yogo_jax.inspection.suspects import SUSPECT_KINDS, Suspects, find_suspects


IMAGE_HW, GRID_HW = (64, 96), (8, 12)
COMMAND = [sys.executable, "-m", "yogo_jax.inspect_data"]


def look(definition, min_box_area=1e-4):
    return inspect_data(
        load_definition(definition),
        min_box_area=min_box_area,
        workers=2,
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    definition, places = plant(tmp_path_factory.mktemp("planted"))
    return definition, places


@pytest.fixture(scope="module")
def printed(planted, tmp_path_factory):
    """The command on the planted data: its output and the folder it wrote."""
    output = tmp_path_factory.mktemp("inspection")
    done = run_command([*COMMAND, str(planted[0]), "--output", str(output)])
    assert done.returncode == 0, done.stderr
    return done, output


def test_each_planted_mistake_is_found_and_nothing_else(printed, planted):
    _, output = printed
    found = json.loads((output / "inspection.json").read_text())["findings"]
    places = {
        kind: sorted(item["place"] for item in entry["listed"]) for kind, entry in found.items()
    }
    assert places == {kind: sorted(expected) for kind, expected in planted[1].items()}
    assert all(entry["count"] == len(entry["listed"]) for entry in found.values())
    (copies,) = found["identical_across_splits"]["listed"]
    assert copies["splits"] == ["train", "test"]
    assert [os.path.basename(path) for path in copies["images"]] == [
        "train_0001.png",
        "test_0009.png",
    ]


def test_the_command_prints_what_it_wrote(printed, planted):
    done, output = printed
    values = json.loads((output / "inspection.json").read_text())
    count = sum(entry["count"] for entry in values["findings"].values())
    assert f"findings: {count}" in done.stdout
    assert count == sum(map(len, planted[1].values()))
    for places in planted[1].values():
        assert f"- {places[0]}: " in done.stdout
    assert "--config.model.anchor=" in done.stdout
    # Of 25 one is gone, one has no labels, and of two it is not clear what they are.
    assert values["images"] == {
        "labelled": 21,
        "unlabelled": 1,
        "unreadable": 1,
        "by_size": {"64x96": 21},
        "by_format": {"PNG L": 21},
    }
    assert values["grid"] == {
        "grid_hw": list(GRID_HW),
        "image_hw": list(IMAGE_HW),
        "architecture": "base_model",
        "receptive_field": 59,
    }


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_in_a_browser(printed, planted, width):
    _, output = printed
    with open_page(output / "inspection.html", width=width) as page:
        assert_fits_the_width(page)
        assert_figures_can_be_read(page)
        assert page.locator("svg").count() == 5
        pictures = page.locator("img")
        # One of each place that can be shown, and three samples of each split.
        assert pictures.count() >= 9 + 7
        assert pictures.evaluate_all("all => all.every(each => each.naturalWidth > 30)")
        for kind, places in planted[1].items():
            section = page.locator(f"#{kind.replace('_', '-')}")
            for place in places:
                name = os.path.basename(place)
                assert name in section.inner_text()
        first = page.locator("nav a").nth(2)
        first.click()
        assert page.url.endswith("#bad-label")


def test_clean_data_has_no_findings(tmp_path):
    definition = write_dataset(tmp_path, images=12)
    found = look(definition)
    assert found.findings == {}
    assert found.count == 0
    assert "Nothing wrong was found." in render_inspection(found, top=5)
    assert {name: len(images) for name, images in found.splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }


def test_data_of_which_nothing_can_be_read_is_looked_at_all_the_same(tmp_path):
    definition = write_dataset(tmp_path, images=4)
    for image in (tmp_path / "images" / "all").iterdir():
        image.write_bytes(b"")
    for label in (tmp_path / "labels" / "all").iterdir():
        label.write_text("")
    found = look(definition)
    counts = {kind: each.count for kind, each in found.findings.items()}
    assert counts == {"unreadable_image": 4, "class_without_box": 2}
    assert found.scanned.usual_hw is None
    page = render_inspection(found, top=5)
    assert "<svg" not in page


def test_a_set_without_labels_is_a_finding(tmp_path):
    definition = write_dataset(tmp_path, images=8, published=True)
    for label in (tmp_path / "labels" / "train").iterdir():
        label.unlink()
    found = {kind: each.count for kind, each in look(definition).findings.items()}
    assert found == {"set_without_labels": 1, "empty_training_split": 1, "unlabelled_image": 4}


def test_findings_on_classes_and_linked_files(tmp_path):
    definition = write_dataset(
        tmp_path, images=8, class_names=("healthy", "ring", "misc"), published=True
    )
    for label in (tmp_path / "labels").rglob("*.txt"):
        rows = [row for row in label.read_text().splitlines() if row[0] != "2"]
        if label.parent.name == "val":
            rows = [row for row in rows if row[0] != "1"]
        label.write_text("\n".join(rows))
    (tmp_path / "images" / "test" / "link.png").symlink_to(
        tmp_path / "images" / "train" / "train_0000.png"
    )
    shutil.copy(
        tmp_path / "labels" / "train" / "train_0000.txt", tmp_path / "labels" / "test" / "link.txt"
    )
    found = look(definition).findings
    assert {kind: [each.place for each in one.listed] for kind, one in found.items()} == {
        "image_in_two_splits": [str(tmp_path / "images" / "train" / "train_0000.png")],
        "class_missing_from_split": ["val/ring"],
        "class_without_box": ["misc"],
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllKnowing(ModelSpec):
    """A detector that knows what is on the frames that it was given as its weights."""

    def predict(self, variables, images) -> Predictions:
        distance = jnp.abs(
            images[:, None].astype(jnp.float32) - variables["images"][None].astype(jnp.float32)
        )
        known = distance.mean((2, 3, 4)).argmin(1)
        return Predictions(*(variables[name][known] for name in Predictions._fields))


def all_knowing(definition):
    """The detector, with what the labels of a data set say as its weights."""
    splits = look(definition).splits.values()
    spec = AllKnowing(
        architecture="base_model",
        class_names=("healthy", "ring"),
        image_hw=IMAGE_HW,
        anchor_wh=(0.1, 0.1),
        rgb=False,
        normalize_images=False,
    )
    assert spec.grid_hw == GRID_HW
    images, grids = [], []
    for split in splits:
        for i, path in enumerate(split.records.image_paths):
            images.append(np.asarray(decode_file(path, rgb=False).pixels)[..., None])
            grid = (np.full((*GRID_HW, 4), 0.1), np.full(GRID_HW, 0.01), np.zeros((*GRID_HW, 2)))
            for box, class_id in zip(*split.records.labels_of(i), strict=True):
                cell = (int(box[1] * GRID_HW[0]), int(box[0] * GRID_HW[1]))
                grid[0][cell], grid[1][cell] = box, 0.95
                grid[2][(*cell, class_id)] = 4.0
            grids.append(grid)
    boxes, objectness, logits = (
        np.stack(arrays).astype(np.float32) for arrays in zip(*grids, strict=True)
    )
    return spec, {
        "images": np.stack(images),
        "boxes_cxcywh": boxes,
        "objectness": objectness,
        "class_logits": logits,
    }


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    """Suspects of a data set with a wrong class, a forgotten box and one in the void."""
    folder = tmp_path_factory.mktemp("mislabelled")
    definition = write_dataset(folder, images=12, published=True)
    spec, variables = all_knowing(definition)
    labels = folder / "labels"
    rows = (labels / "val" / "val_0001.txt").read_text().splitlines()
    rows[2] = f"{1 - int(rows[2][0])}{rows[2][1:]}"
    # A blank line and a bad row before it: the line counts, not the number of the box.
    rows[:0] = ["", "0 0.5 0.5 2 2", "1 0.02 0.02 0.001 0.001"]
    (labels / "val" / "val_0001.txt").write_text("\n".join(rows))
    rows = (labels / "train" / "train_0002.txt").read_text().splitlines()
    forgotten = rows.pop(4)
    (labels / "train" / "train_0002.txt").write_text("\n".join(rows))
    with open(labels / "test" / "test_0000.txt", "a") as file:
        file.write("0 0.5 0.04 0.05 0.06\n")
    broken = folder / "images" / "train" / "train_0000.png"
    broken.write_bytes(b"")
    looked_at = look(definition)
    suspects = find_suspects(
        looked_at,
        spec,
        variables,
        weights=ORIGINAL_WEIGHTS,
        batch_size=5,
        min_confidence=0.8,
        top=4,
    )
    return looked_at, suspects, forgotten


def test_planted_wrong_labels_come_first(mislabelled):
    _, suspects, forgotten = mislabelled
    # 11 of the 12 images can be read, with 6 cells each; one is forgotten, one is too many.
    counts = {kind: found.count for kind, found in suspects.found.items()}
    assert counts == {"other_class": 1, "no_label": 1, "not_found": 1, "high_loss": 66}
    (wrong,) = suspects.found["other_class"].listed
    assert wrong.place.endswith(f"labels{os.sep}val{os.sep}val_0001.txt:6")
    assert {wrong.given, wrong.predicted} == {"healthy", "ring"}
    assert wrong.probability == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)
    assert wrong.objectness == pytest.approx(0.95)

    (extra,) = suspects.found["no_label"].listed
    assert extra.place.endswith("train_0002.txt")
    assert extra.line is extra.given is extra.loss is None
    expected = [float(value) for value in forgotten.split()]
    assert ("healthy", "ring").index(extra.predicted) == expected[0]
    found = [extra.x_center, extra.y_center, extra.width, extra.height]
    np.testing.assert_allclose(found, expected[1:], atol=1e-5)

    (void,) = suspects.found["not_found"].listed
    assert void.place.endswith("test_0000.txt:7")
    assert void.objectness == pytest.approx(0.01)

    ranked = suspects.found["high_loss"].listed
    assert [suspect.rank for suspect in ranked] == [1, 2, 3, 4]
    assert {suspect.place for suspect in ranked[:2]} == {wrong.place, void.place}
    losses = [suspect.loss for suspect in ranked]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_suspects_as_a_table_and_on_a_page(mislabelled, tmp_path):
    looked_at, suspects, _ = mislabelled
    rows = [*csv.DictReader(suspects.to_csv().splitlines())]
    assert [row["kind"] for row in rows] == [
        "other_class",
        "no_label",
        "not_found",
        *["high_loss"] * 4,
    ]
    assert rows[0]["line"] == "6"
    assert rows[1]["line"] == rows[1]["given"] == ""
    assert json.loads(json.dumps(suspects.to_dict()))["high_loss"]["count"] == 66

    path = tmp_path / "page.html"
    path.write_text(render_inspection(looked_at, suspects, top=3, detector="runs/first"))
    with open_page(path, width=360, dark=True) as page:
        assert_fits_the_width(page)
        assert "detections without a label\t1\t" in page.locator("#summary").inner_text()
        section = page.locator("#suspects-other-class")
        assert "val_0001.txt:6" in section.inner_text()
        assert section.locator("img").count() == 1
        assert page.locator("#suspects-high-loss img").count() == 3
        assert "The first 3 of 66" in page.locator("#suspects-high-loss").inner_text()


def test_a_checkpoint_by_the_command(tmp_path, capsys):
    definition = write_dataset(tmp_path / "data", images=5)
    checkpoint = write_random_checkpoint(
        tmp_path / "checkpoint", class_names=("healthy", "ring"), image_hw=IMAGE_HW
    )
    flags = ["--checkpoint", str(checkpoint), "--batch-size", "4", "--top", "7"]
    main([str(definition), "--output", str(tmp_path / "out"), *flags])
    printed = capsys.readouterr().out
    assert "(quarter_filters at 64x96 px)" in printed
    assert "labels ranked by their loss: 30" in printed
    assert "findings: 0, contradictions of the detector: " in printed
    rows = [*csv.DictReader((tmp_path / "out" / "suspects.csv").read_text().splitlines())]
    ranked = [row for row in rows if row["kind"] == "high_loss"]
    assert len(ranked) == 7
    # The rows carry their label: the place in the file is that of the box.
    for row in ranked:
        with open(row["label_file"]) as file:
            fields = file.read().splitlines()[int(row["line"]) - 1].split()
        assert row["given"] == ("healthy", "ring")[int(fields[0])]
        assert float(row["x_center"]) == pytest.approx(float(fields[1]), abs=1e-6)
    values = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert values["suspects"]["high_loss"]["count"] == 30


LOSSES = {
    "of another maker": ({}, 1.0),
    "squared": ({"objectness": "squared"}, 1.0),
    "cross entropy": ({"objectness": "cross_entropy"}, 1.0),
    "weights of classes": ({"class_weights": [1.0, 5.0]}, 5.0),
    "by frequency": ({"class_weight_power": 1.0}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LOSSES)
def test_labels_are_ranked_by_the_loss_of_the_run(case, tmp_path):
    """One label: what it costs for objectness and for its class follows from the config."""
    loss, class_weight = LOSSES[case]
    definition = write_dataset(tmp_path / "data", images=5, published=True)
    names = ("healthy", "ring")
    for path in (tmp_path / "data" / "labels" / "train").iterdir():
        rows = path.read_text().splitlines()
        path.write_text("\n".join([*(row for row in rows if row[0] == "0" or row == rows[1])]))
    drawn = write_random_checkpoint(tmp_path / "drawn", class_names=names, image_hw=IMAGE_HW)
    metadata = read_metadata(drawn)
    variables = restore_variables(drawn, metadata.model)
    # No box and no smoothing: what is left is objectness and the class.
    plain = {"no_object_weight": 0.5, "iou_weight": 0.0, "classify_weight": 1.0}
    config = {"loss": {**plain, "label_smoothing": 0.0, **loss}} if loss else {}
    checkpoint = tmp_path / "checkpoint"
    write_weights(checkpoint, variables, dataclasses.replace(metadata, config=config))
    flags = ["--checkpoint", str(checkpoint), "--top", "1000"]
    main([str(definition), "--output", str(tmp_path / "out"), *flags])
    rows = [*csv.DictReader((tmp_path / "out" / "suspects.csv").read_text().splitlines())]
    rows = [row for row in rows if row["kind"] == "high_loss"]
    assert len(rows) > 10
    losses = np.asarray([float(row["loss"]) for row in rows])
    assert (np.diff(losses) <= 0).all()
    if not loss:
        return
    objectness = np.asarray([float(row["objectness"]) for row in rows])
    expected = (1 - objectness) ** 2
    if loss.get("objectness") == "cross_entropy":
        expected = -np.log(objectness)
    probability = np.asarray([float(row["probability"]) for row in rows])
    same = np.asarray([row["given"] == row["predicted"] for row in rows])
    cross_entropy = -np.log(np.where(same, probability, 1 - probability))
    given = np.asarray([names.index(row["given"]) for row in rows])
    class_weights = np.asarray([1.0, class_weight or 1.0])
    if class_weight is None:
        train = np.bincount([names.index(row["given"]) for row in rows if row["split"] == "train"])
        class_weights = train.sum() / (2 * train)
    np.testing.assert_allclose(losses, expected + class_weights[given] * cross_entropy, atol=2e-3)


REFUSALS = {
    "no file": (["nowhere.yml"], "nowhere.yml"),
    "area": (["a.yml", "--min-box-area", "1"], "--min-box-area must be in [0, 1), got 1.0"),
    "confidence": (["a.yml", "--min-confidence", "2"], "--min-confidence must be in [0, 1]"),
    "top": (["a.yml", "--top", "0"], "--top must be 1 or more, got 0"),
    "workers": (["a.yml", "--workers", "-1"], "--workers must be 0 or more, got -1"),
    "size": (["a.yml", "--image-hw", "0", "9"], "--image-hw must be two sizes of 1 or more"),
    "two grids": (
        ["a.yml", "--grid-hw", "9", "9", "--architecture", "base_model"],
        "--architecture and --grid-hw are two ways to choose the grid",
    ),
    "grid and checkpoint": (
        ["a.yml", "--checkpoint", "runs/a", "--grid-hw", "9", "9"],
        "--checkpoint brings a grid of its own: leave out --grid-hw",
    ),
    "no checkpoint": (["a.yml", "--checkpoint", "nowhere"], "expected a run's workdir"),
}


@pytest.mark.parametrize(("flags", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(flags)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--architecture", "bas_model"], "base_model", id="architecture"),
        pytest.param(["--checkpoint", "CHECKPOINT"], "they must be the same", id="classes"),
    ],
)
def test_refusals_with_data(tmp_path, flags, message, capsys):
    definition = write_dataset(tmp_path / "data", images=4)
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", class_names=("a", "b"))
    flags = [str(checkpoint) if flag == "CHECKPOINT" else flag for flag in flags]
    with pytest.raises(SystemExit):
        main([str(definition), *flags])
    assert message in capsys.readouterr().err


def test_of_many_findings_some_are_listed_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "MOST_LISTED", 4)
    definition = load_definition(write_dataset(tmp_path, images=4))
    found = inspect_data(definition, min_box_area=0, grid_hw=(1, 1), workers=1)
    listing = found.findings["shared_cell"]
    assert (listing.count, len(listing.listed)) == (20, 4)
    assert found.count == 20
    text = found.to_text()
    assert "boxes that lose their cell of the grid: 20" in text
    assert text.endswith("  - and 17 more")
    assert "The first 2 of 20" in render_inspection(found, top=2)


def test_classes_that_outgrow_the_receptive_field(tmp_path, capsys):
    # Boxes of a class are about 0.2 of an image's sides.
    definition = write_dataset(tmp_path, images=4)
    main([str(definition), "--image-hw", "400", "600"])
    output = capsys.readouterr().out
    assert "classes larger than what a cell of the network sees: 2" in output
    size = output.split("--config.data.image_hw=")[1].split()[0]
    rows, columns = map(int, size.split(","))
    assert rows % 8 == columns % 8 == 0
    assert (rows, columns) < (400, 600)
    # At the size that is named, nothing is too large; with one more step it is.
    main([str(definition), "--image-hw", str(rows), str(columns)])
    assert "larger than what a cell" not in capsys.readouterr().out
    main([str(definition), "--image-hw", str(rows * 11 // 10), str(columns * 11 // 10)])
    assert "larger than what a cell" in capsys.readouterr().out
    main([str(definition), "--image-hw", "400", "600", "--architecture", "convnext_small"])
    assert "larger than what a cell" not in capsys.readouterr().out


def test_quiet_prints_the_result_alone(planted, capsys, monkeypatch):
    monkeypatch.setattr("yogo_jax.progress.SECONDS_BETWEEN_LINES", -1.0)
    main([str(planted[0])])
    told = capsys.readouterr()
    main([str(planted[0]), "-q"])
    assert "images/s" in told.err
    assert capsys.readouterr() == (told.out, "")


def test_the_grid_by_flags(tmp_path, capsys):
    definition = write_dataset(tmp_path, images=4)
    main([str(definition), "--grid-hw", "1", "1"])
    # One cell an image: of 6 boxes one is left.
    assert "grid: 1x1 cells; boxes that lose their cell to another: 20" in capsys.readouterr().out
    main([str(definition), "--image-hw", "128", "192", "--architecture", "half_filters"])
    assert "grid: 16x24 cells (half_filters at 128x192 px); boxes" in capsys.readouterr().out


@pytest.mark.parametrize(("not_found", "warns"), [(0, False), (5, False), (6, True), (10, True)])
def test_a_detector_that_finds_few_labels_is_not_to_be_believed(not_found, warns):
    counts = {**dict.fromkeys(SUSPECT_KINDS, 0), "not_found": not_found, "high_loss": 10}
    found = Suspects({kind: Listing(count) for kind, count in counts.items()})
    assert (f"only {10 - not_found} of 10 labels" in found.warning) == warns
    assert bool(found.warning) == warns
