"""Whole runs on tiny data: files of a workdir, and a run that was cut equals one that was not."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from kills import state_of
from runs import tiny_config
from tiny_data import add_thumbnails, write_dataset
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.store import (
    committed_checkpoints,
    find_checkpoint,
    read_metadata,
    restore_variables,
    rewrite_metadata,
)
from yogo_jax.errors import UserError
from yogo_jax.reports import evaluation_page as results
from yogo_jax.training import feed as packing
from yogo_jax.training import trainer
from yogo_jax.training.start import why_length_counts
from yogo_jax.training.step import make_train_step
from yogo_jax.training.trainer import train_and_evaluate


EPOCHS = 3


class Cut(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    # Ten training images in batches of four: the last one of an epoch is padded.
    return write_dataset(tmp_path_factory.mktemp("data"), images=20)


def config_of(definition, **overrides):
    return tiny_config(definition, **{"train__epochs": EPOCHS, **overrides})


def train_records(workdir) -> list[dict]:
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "train"]
    clock = ("images_per_second", "seconds")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]


def final_state(workdir):
    return state_of(committed_checkpoints(workdir / "checkpoints")[-1])


def assert_equal_trees(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole_run(definition, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    metrics = train_and_evaluate(config_of(definition), workdir)
    return workdir, metrics


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Its figures take seconds; `whole_run`, of wider scope, has drawn them once."""
    monkeypatch.setattr(results, "evaluation_page", lambda *_: "")


@pytest.mark.smoke
def test_a_workdir_holds_what_it_promises(whole_run, definition):
    workdir, metrics = whole_run
    assert json.loads((workdir / "config.json").read_text()) == config_of(definition).to_dict()
    on_disk = json.loads((workdir / "test" / "metrics.json").read_text())
    assert on_disk == metrics
    for key in (
        "mAP50",
        "mAP50_95",
        "AP50_by_class",
        "precision_by_class",
        "recall_by_class",
        "confusion",
        "calibration_error",
        "missed_by_class",
        "extra_by_class",
        "images",
        "objects",
        "test_loss",
    ):
        assert key in on_disk
    assert on_disk["images"] == 5
    assert on_disk["objects"] == 30
    assert len(list((workdir / "test" / "pictures").glob("*.png"))) == 5
    assert "Frames of the largest loss" in (workdir / "test" / "report.html").read_text()
    records = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 10))
    assert [r["step"] for r in records if r["kind"] == "validation"] == [3, 6, 9]
    assert "epoch 3/3" in (workdir / "train.log").read_text()


def test_the_last_checkpoint_describes_itself(whole_run, definition):
    workdir, _ = whole_run
    metadata = read_metadata(committed_checkpoints(workdir / "checkpoints")[-1])
    assert metadata.step == 9
    assert metadata.epoch == 3
    assert metadata.position == 30
    assert metadata.model.class_names == ("healthy", "ring")
    assert metadata.config == config_of(definition).to_dict()
    assert metadata.validation["loss"] > 0


def train_until_cut(config, workdir: Path, *, steps: int) -> None:
    """A run that ends, as if killed, where it has made so many steps."""
    calls = 0
    real_add = trainer.Meter.add

    def counting(*args):
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Cut
        return real_add(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Meter, "add", counting)
        with pytest.raises(Cut):
            train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_a_run_that_was_cut_again_and_again_ends_bit_for_bit_as_one_that_was_not(
    whole_run, definition, tmp_path
):
    workdir, metrics = whole_run
    config = config_of(definition, train__checkpoint_every_minutes=1e-9)
    done = 0
    # Within an epoch, between two, and before the last step.
    for step in (1, 3, 8):
        train_until_cut(config, tmp_path, steps=step - done)
        done = int(committed_checkpoints(tmp_path / "checkpoints")[-1].name)
        assert done == step

    # Other workers, another cadence and images from files may take over; the numbers stay.
    continued = config_of(definition, data__workers=1, data__cache="none")
    metrics_after = train_and_evaluate(continued, tmp_path)
    assert train_records(tmp_path) == train_records(workdir)
    assert {k: v for k, v in metrics_after.items() if k != "checkpoint"} == {
        k: v for k, v in metrics.items() if k != "checkpoint"
    }
    assert_equal_trees(final_state(tmp_path), final_state(workdir))


STRONG = {
    "optim__name": "muon",
    "optim__ema_decay": 0.9,
    "optim__warmup_epochs": 1.0,
    "optim__clip_norm": 5.0,
    "train__keep_best": "mAP50",
    "model__objectness_prior": 0.05,
    "model__kernel_init": "fan_in",
    "loss__objectness": "cross_entropy",
    "loss__class_weight_power": 0.5,
    "augment__cutout": 0.5,
    "augment__zoom": (0.8, 1.2),
    "augment__brightness": 0.1,
    "augment__epochs_without_paste": 1,
    "augment__thumbnails": 0.7,
    "augment__vertical_crop": 0.5,
    "augment__thumbnails_tried": 3,
}


@pytest.mark.acceptance
def test_a_strong_run_that_was_cut_goes_on_bit_for_bit(tmp_path):
    definition = write_dataset(tmp_path / "data")
    add_thumbnails(definition)
    config = config_of(definition, **STRONG)
    metrics = train_and_evaluate(config, tmp_path / "whole")

    def cut(epoch, _):
        if epoch == 1:
            raise Cut

    with pytest.raises(Cut):
        train_and_evaluate(config, tmp_path / "cut", on_validation=cut)
    lost = next((tmp_path / "data" / "thumbnails" / "ring").iterdir())
    kept = lost.rename(tmp_path / lost.name)
    with pytest.raises(UserError, match="trained on other data"):
        train_and_evaluate(config, tmp_path / "cut")
    kept.rename(lost)
    again = train_and_evaluate(config, tmp_path / "cut")
    assert train_records(tmp_path / "cut") == train_records(tmp_path / "whole")
    assert {**again, "checkpoint": None} == {**metrics, "checkpoint": None}
    states = [final_state(tmp_path / name) for name in ("whole", "cut")]
    assert_equal_trees(*states)
    # What is evaluated is the average and not the latest.
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(
            jax.tree.leaves(states[0].variables), jax.tree.leaves(states[0].trained), strict=True
        )
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss__class_weights": (1.0, 2.0, 3.0)}, "loss.class_weights must be empty or of 2"),
        (
            {"train__teacher": "nowhere", "loss__imitation": 0.5},
            "nowhere: expected a run's workdir",
        ),
    ],
    ids=["class weights", "teacher"],
)
def test_a_mistake_leaves_the_workdir_free(definition, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config_of(definition, **fields), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_a_student_goes_on_with_the_same_teacher_and_what_is_frozen_stays(
    whole_run, definition, tmp_path
):
    teacher = tmp_path / "teacher"
    shutil.copytree(whole_run[0] / "checkpoints" / "9", teacher)
    config = config_of(
        definition,
        train__epochs=2,
        train__teacher=str(teacher),
        train__from_pretrained=str(whole_run[0]),
        loss__imitation=0.5,
        optim__name="muon",
        optim__freeze=("block_0", "block_*/norm"),
        train__checkpoint_every_minutes=1e-9,
    )
    train_and_evaluate(config, tmp_path / "whole")
    train_until_cut(config, tmp_path / "cut", steps=2)
    # A calibration changes what the teacher says.
    metadata = read_metadata(teacher)
    hotter = dataclasses.replace(metadata.model, class_temperature=2.0)
    rewrite_metadata(teacher, dataclasses.replace(metadata, model=hotter))
    with pytest.raises(UserError, match=r"trained on other data: .* or train\.teacher"):
        train_and_evaluate(config, tmp_path / "cut")
    rewrite_metadata(teacher, metadata)
    train_and_evaluate(config, tmp_path / "cut")
    assert train_records(tmp_path / "cut") == train_records(tmp_path / "whole")
    before = restore_variables(find_checkpoint(whole_run[0]), metadata.model)["params"]
    after = final_state(tmp_path / "cut").params
    assert_equal_trees(before["block_0"], after["block_0"])
    assert not np.array_equal(before["head"]["kernel"], after["head"]["kernel"])


@pytest.mark.slow
def test_a_run_that_gets_no_better_stops_early_also_when_it_was_cut(
    definition, tmp_path, monkeypatch, capsys
):
    fields = {"train__epochs": 9, "train__eval_every_epochs": 2}
    config = config_of(
        definition, train__patience=3, train__checkpoint_every_minutes=1e-9, **fields
    )
    real = trainer.validate

    def worse_and_worse(*args, step, **others):
        return {**real(*args, step=step, **others), "loss": 1.0 + step}

    monkeypatch.setattr(trainer, "validate", worse_and_worse)
    said = "stopped early, after epoch 6: no better loss since epoch 2"
    # Cut between two validations, as long after the best as the patience reaches: one that was not
    # cut is not asked there.
    train_until_cut(config, tmp_path, steps=15)
    assert [int(each.name) for each in committed_checkpoints(tmp_path / "checkpoints")] == [6, 15]
    assert said not in capsys.readouterr().out
    metrics = train_and_evaluate(config, tmp_path)
    assert said in capsys.readouterr().out
    assert [int(each.name) for each in committed_checkpoints(tmp_path / "checkpoints")] == [6, 18]
    # The best is tested.
    assert metrics["step"] == 6
    assert train_and_evaluate(config, tmp_path) == metrics
    output = capsys.readouterr().out
    assert f"{tmp_path} is complete: stopped early after 6 epochs of 9, tested" in output
    assert "; or a --config.train.patience above 3 continues this one" in output
    # With more patience it goes on, and stops where that ends.
    train_and_evaluate(config_of(definition, train__patience=5, **fields), tmp_path)
    assert "stopped early, after epoch 8" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cache", "room", "said", "packs"),
    [
        ("auto", 10**9, None, 2),
        ("auto", 10**4, "images of train are decoded each time: packed they take", 0),
        ("disk", 10**4, None, 2),
        ("none", 10**9, None, 0),
    ],
)
def test_images_are_packed_if_asked_or_if_there_is_room(
    whole_run, definition, tmp_path, monkeypatch, capsys, cache, room, said, packs
):
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "room_for_packs", lambda: room)
    train_and_evaluate(config_of(definition, data__cache=cache, train__epochs=1), tmp_path / "run")
    # A shorter run's learning rate falls faster: only its first step is that of the whole run.
    assert train_records(tmp_path / "run")[0] == train_records(whole_run[0])[0]
    assert len(list(tmp_path.glob("cache/packs/*/images.npy"))) == packs
    output = capsys.readouterr().out
    assert said is None or said in output
    assert ("decoded each time" in output) == (said is not None)


def test_images_on_the_device_train_the_same(whole_run, definition, tmp_path, monkeypatch):
    config = config_of(definition, data__cache="device")
    train_and_evaluate(config, tmp_path / "run")
    ours, theirs = train_records(tmp_path / "run"), train_records(whole_run[0])
    assert [each["step"] for each in ours] == [each["step"] for each in theirs]
    # Another program, which rounds otherwise.
    for name in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_allclose(
            [each[name] for each in ours], [each[name] for each in theirs], rtol=1e-3
        )
    # Cut after a call that takes a whole epoch, it goes on bit for bit.
    real_save, saved = trainer.CheckpointStore.save, []

    def save_and_cut(store, *args):
        real_save(store, *args)
        store.wait()
        saved.append(args)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(trainer.CheckpointStore, "save", save_and_cut)
        with pytest.raises(Cut):
            train_and_evaluate(config, tmp_path / "cut")
    assert len(saved) == 1
    train_and_evaluate(config, tmp_path / "cut")
    assert train_records(tmp_path / "cut") == ours
    assert_equal_trees(final_state(tmp_path / "cut"), final_state(tmp_path / "run"))


def test_a_pack_that_is_there_needs_no_room(whole_run, definition, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "room_for_packs", lambda: 0)
    train_and_evaluate(config_of(definition, train__epochs=1), tmp_path)
    assert "decoded each time" not in capsys.readouterr().out


def test_a_cache_that_cannot_be_written(definition, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path / "file" / "cache"))
    train_and_evaluate(config_of(definition, train__epochs=1), tmp_path / "auto")
    assert "images of val are decoded each time: images cannot" in capsys.readouterr().out
    with pytest.raises(UserError, match="Not a directory; set YOGO_JAX_CACHE"):
        train_and_evaluate(config_of(definition, data__cache="disk"), tmp_path / "disk")


def without(file):
    def change(workdir):
        (workdir / file).unlink()

    return change


def cut_short(workdir):
    (workdir / "test" / "metrics.json").write_text('{"mAP50": 0.')


def untold(workdir):
    """As after a kill while the test was written."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(each for each in lines if '"test"' not in each))


def of_another_step(workdir):
    path = workdir / "test" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 1}))


def calibrated(workdir):
    folder = find_checkpoint(workdir)
    metadata = read_metadata(folder)
    hotter = dataclasses.replace(metadata.model, class_temperature=2.0)
    rewrite_metadata(folder, dataclasses.replace(metadata, model=hotter))


@pytest.mark.parametrize(
    "change",
    [
        without("test/metrics.json"),
        without("test/report.html"),
        without("metrics.jsonl"),
        cut_short,
        untold,
        of_another_step,
        calibrated,
    ],
)
def test_a_finished_run_that_lacks_its_test_is_only_tested_again(
    whole_run, definition, tmp_path, monkeypatch, capsys, change
):
    metrics = whole_run[1]
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    change(workdir)
    monkeypatch.setattr(trainer, "make_train_step", None)
    again = train_and_evaluate(config_of(definition), workdir)
    assert "is complete" not in capsys.readouterr().out
    assert again == json.loads((workdir / "test" / "metrics.json").read_text())
    if change is calibrated:
        assert again["class_temperature"] == 2
        assert again["test_loss"] != metrics["test_loss"]
    else:
        assert {**again, "checkpoint": metrics["checkpoint"]} == metrics
    # And then it is complete.
    assert train_and_evaluate(config_of(definition), workdir) == again
    assert "is complete" in capsys.readouterr().out


def files_of(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_complete_run_says_so_and_is_left_as_it_is(whole_run, definition, monkeypatch, capsys):
    workdir, metrics = whole_run
    before = files_of(workdir)
    monkeypatch.setattr(trainer, "evaluate_best", None)
    # What may change when a run goes on may change here.
    config = config_of(definition, train__max_hours=1.0)
    assert train_and_evaluate(config, workdir) == metrics
    assert capsys.readouterr().out.splitlines() == [
        f"{workdir} is complete: 3 epochs, tested; report: {workdir}/test/report.html",
        "To train further from its weights, start another run: "
        f"--config.train.from_pretrained={workdir} --workdir NEW",
    ]
    assert files_of(workdir) == before


CONSTANT = {"optim__lr_decay_factor": 1.0, "optim__warmup_epochs": 1.5, "optim__ema_decay": 0.9}


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(False, id="complete", marks=pytest.mark.acceptance),
        pytest.param(True, id="cut"),
    ],
)
def test_a_run_of_one_learning_rate_can_be_lengthened_and_ends_as_a_long_one(
    definition, tmp_path, capsys, cut
):
    # Holes and pasted cells would differ in the last epochs; without them this says nothing.
    fields = {**CONSTANT, "augment__epochs_without_paste": 2, "train__eval_every_epochs": 2}
    short = config_of(definition, **fields, train__epochs=4)
    long = config_of(definition, **fields, train__epochs=7)
    metrics = train_and_evaluate(long, tmp_path / "long")
    if cut:
        train_until_cut(short, tmp_path / "run", steps=8)
    else:
        train_and_evaluate(short, tmp_path / "run")
        train_and_evaluate(short, tmp_path / "run")
        said = f"--config.train.from_pretrained={tmp_path / 'run'} --workdir NEW; or a "
        assert f"{said}--config.train.epochs above 4 continues this one" in capsys.readouterr().out
    again = train_and_evaluate(long, tmp_path / "run")
    assert train_records(tmp_path / "run") == train_records(tmp_path / "long")
    validations = [
        [r for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "validation"]
        for name in ("run", "long")
    ]
    assert validations[0] == validations[1]
    assert {**again, "checkpoint": None} == {**metrics, "checkpoint": None}
    assert_equal_trees(final_state(tmp_path / "run"), final_state(tmp_path / "long"))
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["train"]["epochs"] == 7
    with pytest.raises(UserError, match=r"go on with 4: a run can become longer, and no shorter"):
        train_and_evaluate(short, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({}, []),
        ({"optim__lr_decay_factor": 10.0}, [r"optim\.lr_decay_factor is 10, not 1"]),
        ({"optim__warmup_epochs": 2.0}, []),
        ({"optim__warmup_epochs": 2.5}, [r"the warm-up takes 2\.5 epochs"]),
        ({"augment__epochs_without_paste": 1}, []),
        (
            {"augment__epochs_without_paste": 1, "augment__cutout": 0.5},
            [r"the last 1 epochs have other images \(augment\.epochs_without_paste\)"],
        ),
        ({"augment__epochs_without_paste": 1, "augment__thumbnails": 0.5}, ["other images"]),
        ({"augment__epochs_without_paste": 1, "augment__rare_cells": 0.2}, ["other images"]),
    ],
)
def test_why_a_run_cannot_be_lengthened(definition, fields, reasons):
    config = config_of(definition, **{"optim__lr_decay_factor": 1.0, **fields})
    found = why_length_counts(config, EPOCHS)
    assert len(found) == len(reasons)
    for reason, pattern in zip(found, reasons, strict=True):
        assert re.search(pattern, reason)


def test_a_run_that_cannot_be_lengthened_says_why_and_what_to_do(whole_run, definition):
    workdir, _ = whole_run
    with pytest.raises(UserError) as refused:
        train_and_evaluate(config_of(definition, train__epochs=6), workdir)
    assert str(refused.value) == (
        f"{workdir}/checkpoints/9 is of a run with train.epochs=3 and does not go on with 6: the "
        "learning rate falls along a cosine over all epochs (optim.lr_decay_factor is 10, not 1). "
        "Give --config.train.epochs=3 to continue it. To train further from its weights, start "
        f"another run: --config.train.from_pretrained={workdir} --workdir NEW. For one run with "
        "train.epochs=6 choose another --workdir"
    )
    # Where more differs, all of it is named.
    with pytest.raises(UserError, match=r"config\.optim\.weight_decay: .*config\.train\.epochs: 3"):
        train_and_evaluate(config_of(definition, train__epochs=6, optim__weight_decay=0.1), workdir)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param({"train__resume": "never"}, "holds a run already", id="never"),
        pytest.param(
            {"optim__learning_rate": 1.0}, "config.optim.learning_rate: 0.0003 != 1.0", id="config"
        ),
        pytest.param(
            {"model__dtype": "bfloat16"}, "config.model.dtype: 'float32' != 'bf", id="precision"
        ),
        pytest.param(
            {"train__resume": "elsewhere"}, "holds checkpoints of its own", id="elsewhere"
        ),
    ],
)
def test_another_run_in_the_workdir_is_refused(whole_run, definition, overrides, message):
    workdir, _ = whole_run
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config_of(definition, **overrides), workdir)


def test_a_run_from_before_a_field_existed_goes_on(whole_run, definition, tmp_path):
    workdir, metrics = whole_run
    shutil.copytree(workdir, tmp_path / "old")
    for file in (tmp_path / "old" / "checkpoints").glob("*/metadata/metadata"):
        values = json.loads(file.read_text())
        del values["config"]["model"]["dtype"], values["config"]["data"]["cache"]
        del values["config"]["augment"]["zoom"], values["config"]["optim"]["ema_decay"]
        del values["config"]["optim"]["freeze"], values["config"]["loss"]["objectness"]
        file.write_text(json.dumps(values))
    again = train_and_evaluate(config_of(definition), tmp_path / "old")
    assert {**again, "checkpoint": None} == {**metrics, "checkpoint": None}
    with pytest.raises(UserError, match=r"config\.model\.dtype"):
        train_and_evaluate(config_of(definition, model__dtype="bfloat16"), tmp_path / "old")


def test_changed_data_is_refused(definition, tmp_path, whole_run):
    workdir, _ = whole_run
    labels = sorted((definition.parent / "labels" / "all").glob("*.txt"))[0]
    before = labels.read_text()
    try:
        labels.write_text("0 0.5 0.5 0.2 0.2\n")
        with pytest.raises(UserError, match="was trained on other data"):
            train_and_evaluate(config_of(definition), workdir)
    finally:
        labels.write_text(before)


def test_a_given_checkpoint_is_continued_in_a_new_workdir(whole_run, definition, tmp_path):
    workdir, _ = whole_run
    config = config_of(definition, train__resume=str(workdir))
    train_and_evaluate(config, tmp_path)
    assert train_records(tmp_path) == train_records(workdir)
    assert (tmp_path / "test" / "metrics.json").exists()
    names = [
        sorted(folder.name for folder in committed_checkpoints(each / "checkpoints"))
        for each in (tmp_path, workdir)
    ]
    assert names[0] == names[1]
    # The same command again, as a requeued job would give it.
    train_and_evaluate(config, tmp_path)


def test_one_compilation_per_function(definition, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "jax"), jax.log_compiles():
        train_and_evaluate(config_of(definition), tmp_path)
    compiled = [
        record.getMessage().split("(")[1].split(")")[0]
        for record in caplog.records
        if record.getMessage().startswith("Finished XLA compilation of")
    ]
    assert compiled.count("train_step") == 1
    assert compiled.count("eval_step") == 1


@pytest.mark.slow
def test_weights_of_another_run_are_a_start(whole_run, definition, tmp_path, capsys):
    workdir, _ = whole_run
    config = config_of(definition, train__from_pretrained=str(workdir), train__epochs=1)
    train_and_evaluate(config, tmp_path / "same")
    assert "weights from" in capsys.readouterr().out
    fresh = train_records(workdir)[0]["loss"]
    assert train_records(tmp_path / "same")[0]["loss"] < fresh

    others = write_dataset(tmp_path / "data", class_names=("a", "b", "c"), images=12)
    config = config_of(others, train__from_pretrained=str(workdir), train__epochs=1)
    train_and_evaluate(config, tmp_path / "others")
    assert "the head is made anew, its classes were healthy, ring" in capsys.readouterr().out

    config = config_of(definition, train__from_pretrained=str(workdir), model__name="half_filters")
    with pytest.raises(UserError, match=r"set --config.model.name=quarter_filters"):
        train_and_evaluate(config, tmp_path / "refused")


def test_a_loss_that_is_not_finite_names_term_and_batch(definition, tmp_path, monkeypatch):
    def poisoned(*args, **kwargs):
        step_fn = make_train_step(*args, **kwargs)

        def train_step(state, batch):
            state, metrics = step_fn(state, batch)
            bad = metrics.terms._replace(box=jax.numpy.where(state.step == 5, np.nan, metrics.loss))
            return state, metrics._replace(loss=bad.total(), terms=bad)

        return train_step

    monkeypatch.setattr(trainer, "make_train_step", poisoned)
    with pytest.raises(UserError, match=r"the box loss is not finite at step 5 .*all_\d+\.png"):
        train_and_evaluate(config_of(definition), tmp_path)
    assert [folder.name for folder in committed_checkpoints(tmp_path / "checkpoints")] == ["3"]


def test_what_is_called_after_validations_may_end_the_run(definition, tmp_path, whole_run):
    workdir, _ = whole_run
    seen = []

    def on_validation(epoch, metrics):
        seen.append((epoch, metrics["mAP50"]))
        if epoch == 2:
            raise Cut

    with pytest.raises(Cut):
        train_and_evaluate(config_of(definition), tmp_path, on_validation=on_validation)
    logged = [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "validation"]
    assert seen == [(each["epoch"], each["mAP50"]) for each in logged[:2]]
    # The checkpoint of the validation is there.
    assert committed_checkpoints(tmp_path / "checkpoints")[-1].name == "6"


def test_a_data_set_without_validation_or_test(definition, tmp_path, capsys):
    config = config_of(definition, data__split_override=(1.0, 0.0, 0.0), train__epochs=1)
    assert train_and_evaluate(config, tmp_path) == {}
    assert len(committed_checkpoints(tmp_path / "checkpoints")) == 1
    assert train_and_evaluate(config, tmp_path) == {}
    assert f"{tmp_path} is complete: 1 epoch, no test split" in capsys.readouterr().out


def test_a_run_that_saved_nothing_yet_is_not_overwritten_by_another(definition, tmp_path):
    config = config_of(definition)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1}) + "\n")
    with pytest.raises(UserError, match=r"config\.seed: 0 != 3.*has no checkpoint yet"):
        train_and_evaluate(config_of(definition, seed=3), tmp_path)


@pytest.mark.slow
def test_a_run_says_how_long_it_takes_before_its_first_step_and_why_it_finds_nothing(
    definition, tmp_path, capsys
):
    # No cell reaches a half.
    fields = {"model__objectness_prior": 0.02, "optim__learning_rate": 1e-7}
    train_and_evaluate(config_of(definition, train__epochs=2, **fields), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    pace = next(i for i, line in enumerate(lines) if line.startswith("an epoch takes about"))
    assert "(3 steps of" in lines[pace]
    assert pace < next(i for i, line in enumerate(lines) if line.startswith("epoch 1/2"))
    # Of the validations the first one says it, and the test says it again.
    assert sum(line.startswith("nothing is found: no prediction") for line in lines) == 2


def test_a_file_in_the_place_of_the_workdir_is_refused(definition, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir .*cannot be made a folder"):
        train_and_evaluate(config_of(definition), tmp_path / "file" / "run")
