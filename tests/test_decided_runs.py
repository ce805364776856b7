"""A decision from the end of a training to counts: chosen, stored, exported, drawn, counted."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import yogo_jax
from inferences import export_unverified, refused_infer, run_infer
from runs import tiny_config
from tiny_data import write_dataset
from yogo_jax.checkpoint.metadata import Decision
from yogo_jax.checkpoint.run_data import evaluation_records
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, rewrite_metadata
from yogo_jax.counting.files import count_run, read_run_array
from yogo_jax.detector.detections import Thresholds
from yogo_jax.errors import UserError
from yogo_jax.inference.exported import _thresholds
from yogo_jax.reports import evaluation_page
from yogo_jax.training import trainer
from yogo_jax.training.trainer import train_and_evaluate


def config_of(definition, **fields):
    return tiny_config(
        definition,
        **{
            "train__epochs": 15,
            "train__eval_every_epochs": 15,
            "train__decision": "count",
            "optim__learning_rate": 5e-3,
            "loss__objectness": "cross_entropy",
            "model__objectness_prior": 0.1,
            "model__kernel_init": "fan_in",
            **fields,
        },
    )


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), images=20)


@pytest.fixture(scope="module")
def run(definition, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    return workdir, train_and_evaluate(config_of(definition), workdir)


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Its figures take seconds; `run`, of wider scope, has drawn them once."""
    monkeypatch.setattr(evaluation_page, "evaluation_page", lambda *_: "")


def paths_of(workdir: Path, split: str):
    metadata = read_metadata(find_checkpoint(workdir))
    return evaluation_records(metadata, None, split, metadata.model, print)


def test_a_run_ends_with_its_decision_and_is_tested_by_it(run):
    workdir, metrics = run
    metadata = read_metadata(find_checkpoint(workdir))
    assert metadata.decision.goal == "count"
    thresholds = metadata.decision.class_thresholds
    assert metadata.thresholds == Thresholds.of_classes(thresholds)
    assert metrics["thresholds"]["class_thresholds"] == [*thresholds]
    said = (workdir / "train.log").read_text()
    assert "classes are decided for count, by the thresholds healthy 0." in said
    # On the frames that they were chosen on, each class counts as often as it is there.
    records = paths_of(workdir, "val")
    found = yogo_jax.load(workdir).predict([*records.image_paths])
    counts = np.sum([[*each.counts().values()] for each in found], axis=0)
    true = np.bincount(records.class_ids, minlength=2)
    assert np.abs(counts - true).max() <= 1
    # The confusion of the test is that of boxes predicted one by one.
    records = paths_of(workdir, "test")
    found = yogo_jax.load(workdir).predict([*records.image_paths])
    predicted = np.asarray(metrics["confusion"]["matrix"])[:, :2].sum(0)
    assert np.sum([[*each.counts().values()] for each in found], axis=0).tolist() == [*predicted]


@pytest.mark.parametrize(
    ("asked", "does"),
    [
        ("count", None),
        ("f1", "--decision f1 does"),
        ("most_probable", "--decision most_probable of evaluate and infer does"),
    ],
)
def test_a_finished_run_says_that_its_decision_stays(run, definition, capsys, asked, does):
    workdir, _ = run
    train_and_evaluate(config_of(definition, train__decision=asked), workdir)
    said = capsys.readouterr().out
    assert "is complete" in said
    assert (f"not by train.decision={asked}" in said) == (does is not None)
    assert does is None or does in said
    assert read_metadata(find_checkpoint(workdir)).decision.goal == "count"


@pytest.mark.acceptance
def test_a_run_that_was_killed_before_its_decision_makes_it(run, definition, tmp_path, monkeypatch):
    workdir, metrics = shutil.copytree(run[0], tmp_path / "run"), run[1]
    folder = find_checkpoint(workdir)
    metadata = read_metadata(folder)
    rewrite_metadata(folder, dataclasses.replace(metadata, decision=None))
    shutil.rmtree(workdir / "test")
    monkeypatch.setattr(trainer, "make_train_step", None)
    again = train_and_evaluate(config_of(definition), workdir)
    assert read_metadata(folder) == metadata
    assert again["confusion"] == metrics["confusion"]
    # Killed after it, the test alone is made; another goal asked for comes too late.
    shutil.rmtree(workdir / "test")
    monkeypatch.setattr(trainer, "decide_best", None)
    again = train_and_evaluate(config_of(definition, train__decision="f1"), workdir)
    assert read_metadata(folder) == metadata
    assert again["thresholds"] == metrics["thresholds"]
    # A calibration that chose others since has the test made again.
    other = dataclasses.replace(metadata.decision, class_thresholds=(0.9, 0.9))
    rewrite_metadata(folder, dataclasses.replace(metadata, decision=other))
    again = train_and_evaluate(config_of(definition), workdir)
    assert again["thresholds"]["class_thresholds"] == [0.9, 0.9]
    assert again["predictions"] < metrics["predictions"]


def with_splits(definition: Path, name: str, **fractions: float) -> Path:
    values = yaml.safe_load(definition.read_text())
    values["dataset_split_fractions"] = fractions
    path = definition.with_name(name)
    path.write_text(yaml.safe_dump(values))
    return path


SHORT = {"train__epochs": 1, "train__eval_every_epochs": 1}


def test_without_a_validation_split_the_most_probable_class_stays(definition, tmp_path, capsys):
    without = with_splits(definition, "no_val.yml", train=0.75, test=0.25)
    config = config_of(without, **SHORT)
    metrics = train_and_evaluate(config, tmp_path)
    assert "each box stays with its most probable class (train.decision)" in capsys.readouterr().out
    assert read_metadata(find_checkpoint(tmp_path)).decision is None
    assert metrics["thresholds"]["class_thresholds"] == []


@pytest.mark.acceptance
def test_without_true_boxes_the_most_probable_class_stays(tmp_path, capsys):
    definition = write_dataset(tmp_path / "data", published=True)
    for path in (tmp_path / "data" / "labels" / "val").iterdir():
        path.write_text("")
    train_and_evaluate(config_of(definition, **SHORT), tmp_path / "run")
    said = capsys.readouterr().out
    assert "no true box in the validation split: each box stays with its most" in said
    assert read_metadata(find_checkpoint(tmp_path / "run")).decision is None


@pytest.mark.acceptance
def test_a_run_without_a_test_split_is_complete_with_its_decision(definition, tmp_path, capsys):
    without = with_splits(definition, "no_test.yml", train=0.75, val=0.25)
    config = config_of(without, **SHORT)
    train_and_evaluate(config, tmp_path)
    folder = find_checkpoint(tmp_path)
    metadata = read_metadata(folder)
    rewrite_metadata(folder, dataclasses.replace(metadata, decision=None))
    train_and_evaluate(config, tmp_path)
    assert read_metadata(folder) == metadata
    capsys.readouterr()
    train_and_evaluate(config, tmp_path)
    assert "is complete" in capsys.readouterr().out


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    """The checkpoint, decided so that many boxes have another class than their most probable."""
    folder = shutil.copytree(find_checkpoint(run[0]), tmp_path_factory.mktemp("models") / "decided")
    metadata = read_metadata(folder)
    decision = Decision(goal="screening", class_thresholds=(0.9, 0.02), false_positives=1000.0)
    rewrite_metadata(folder, dataclasses.replace(metadata, decision=decision))
    exported = folder.with_name("exported")
    export_unverified(folder, exported)
    return {
        "checkpoint": folder,
        "ir": exported / "model.xml",
        "onnx": exported / "model.onnx",
    }


@pytest.fixture(scope="module")
def frames(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for path in paths_of(run[0], "val").image_paths:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("kind", ["checkpoint", "ir", "onnx"])
def test_every_form_of_a_model_decides(models, frames, kind):
    model = yogo_jax.load(models[kind])
    expected = Thresholds.of_classes((0.9, 0.02))
    assert model.thresholds == expected
    paths = sorted(frames.iterdir())
    found, plain = model.predict(paths), model.predict(paths, class_thresholds=())
    ours = yogo_jax.load(models["checkpoint"]).predict(paths)
    for each, one in zip(found, ours, strict=True):
        assert each.class_thresholds == expected.class_thresholds
        assert each.class_ids.tolist() == one.class_ids.tolist()
        np.testing.assert_allclose(each.scores, one.scores, atol=1e-4)
    assert sum(each.counts()["ring"] for each in found) > sum(
        each.counts()["ring"] for each in plain
    )
    assert all((each.objectness > 0.5).all() and not each.class_thresholds for each in plain)
    with pytest.raises(UserError, match=r"objectness 0.7: .* \(healthy 0.9, ring 0.02\)"):
        model.predict(paths, objectness=0.7)


@pytest.mark.parametrize("kind", ["checkpoint", "ir"])
def test_all_files_of_an_inference_follow_the_decision(models, frames, tmp_path, kind):
    flags = ("--csv", "--coco", "--save-npy", "--save-preds", "--draw-boxes", "--count")
    run_infer(models[kind], "--images", frames, "--output", tmp_path / "out", *flags)
    out = tmp_path / "out"
    model = yogo_jax.load(models[kind])
    paths = sorted(frames.iterdir())
    found = model.predict(paths)
    ids = [i for each in found for i in each.class_ids.tolist()]
    assert 1 in ids
    with (out / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class_id"]) for row in rows] == ids
    scores = np.concatenate([each.scores for each in found])
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], scores, rtol=1e-5)
    coco = json.loads((out / "coco.json").read_text())
    assert [each["category_id"] for each in coco["annotations"]] == ids
    labels = [(out / "labels" / f"{path.stem}.txt").read_text().split("\n") for path in paths]
    assert [int(line.split()[0]) for lines in labels for line in lines if line] == ids
    counts = json.loads((out / "counts.json").read_text())["by_class"]
    assert [*counts.values()] == np.bincount(ids, minlength=2).tolist()
    picture = np.asarray(Image.open(out / "pictures" / f"{paths[0].stem}.png"))
    np.testing.assert_array_equal(picture, found[0].draw())
    # The instrument's array has the same rows as ever, and is counted by the thresholds beside it.
    array = read_run_array(next(out.glob("*.npy")), None)
    assert array.class_thresholds == (0.9, 0.02)
    assert array.array.shape == (10, len(ids))
    assert array.array[6].tolist() == ids == array.class_ids.tolist()
    np.testing.assert_array_equal(array.array[7], array.class_probs[ids, np.arange(len(ids))])
    counted = count_run(array, objectness_threshold=0.0, min_class_confidence=0.0)
    assert counted.counts.tolist() == [*counts.values()]
    # The original's rule leaves no trace of it.
    run_infer(
        models[kind], "--images", frames, "--output", tmp_path / "plain", "--save-npy",
        "--decision", "most_probable", "--obj-thresh", 0.6,
    )  # fmt: skip
    array = read_run_array(next((tmp_path / "plain").glob("*.npy")), None)
    assert array.class_thresholds == ()
    assert array.array[6].tolist() == array.class_probs.argmax(0).tolist()


def test_what_an_export_says_of_its_decision(models):
    model = yogo_jax.load(models["ir"])
    said = model._model.interface.description
    assert json.loads(said["decision"]) == {
        "goal": "screening",
        "class_thresholds": [0.9, 0.02],
        "false_positives": 1000.0,
    }
    with pytest.raises(UserError, match=r"has 1 class thresholds, but 2 classes: export it again"):
        _thresholds(Path("a.xml"), {"thresholds": '{"class_thresholds": [0.5]}'}, 2)
    earlier = {"thresholds": '{"objectness": 0.4, "iou": 0.5, "min_class_confidence": 0.0}'}
    assert _thresholds(Path("a.xml"), earlier, 2) == Thresholds(0.4)


def test_an_objectness_does_not_go_with_a_stored_decision(models, frames, tmp_path, capsys):
    flags = ("--images", frames, "--output", tmp_path / "out", "--obj-thresh", 0.7)
    assert "add --decision most_probable" in refused_infer(capsys, models["ir"], *flags)
    file = tmp_path / "file.json"
    flags = (*flags, "--decision", "most_probable", "--score-thresholds", file)
    assert "leave out --score-thresholds" in refused_infer(capsys, models["ir"], *flags)
