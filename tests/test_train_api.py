"""Training and evaluation from Python: the same numbers as the commands give."""

import json

import pytest

from runs import run_command, tiny_config, train_command
from tiny_data import write_dataset
from yogo_jax.config.schema import Config
from yogo_jax.errors import UserError
from yogo_jax.evaluate import evaluate
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.ownership import own_folder
from yogo_jax.train import Run, train


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), images=16)


@pytest.fixture(scope="module")
def run(definition, tmp_path_factory) -> Run:
    return train(tiny_config(definition), tmp_path_factory.mktemp("runs") / "run")


def test_a_run_says_what_it_left(run):
    assert run.metrics == json.loads((run.workdir / "test" / "metrics.json").read_text())
    assert run.checkpoint.parent == run.workdir / "checkpoints"
    assert str(run.checkpoint) == run.metrics["checkpoint"]


def test_evaluation_gives_the_metrics_of_the_test_and_of_the_command(run, tmp_path, capsys):
    found = evaluate(run, batch_size=4)
    assert capsys.readouterr().out == ""
    # As JSON gives them back.
    found = json.loads(json.dumps(found))
    assert found | {"picture_files": 0} == run.metrics | {"picture_files": 0}
    folder = tmp_path / "out"
    evaluate_command([str(run.workdir), "--output", str(folder), "--batch-size", "4"])
    assert json.loads((folder / "metrics.json").read_text()) == found
    said = capsys.readouterr().out
    assert "mAP50" in said
    evaluate_command([str(run.workdir), "--output", str(folder), "--batch-size", "4", "--quiet"])
    quiet = capsys.readouterr().out
    assert quiet in said
    assert len(quiet) < len(said)
    assert "mAP50" in quiet


def test_splits_and_thresholds(run):
    val = evaluate(run.checkpoint, split="val", objectness=0.3)
    assert val["images"] == 4
    assert val["thresholds"]["objectness"] == 0.3
    with pytest.raises(UserError, match=r"--split must be one of train, val, test, got 'tst'"):
        evaluate(run, split="tst")
    with pytest.raises(UserError, match=r"--obj-thresh must be in .0, 1., got 2"):
        evaluate(run, objectness=2)


def test_the_names_of_the_package_are_the_functions():
    import yogo_jax
    import yogo_jax.evaluate
    import yogo_jax.train

    assert (yogo_jax.train, yogo_jax.evaluate) == (train, evaluate)
    assert (yogo_jax.Config, yogo_jax.Run) == (Config, Run)


def test_a_run_gives_its_model(run):
    model = run.load()
    assert model.path == run.workdir or model.path == run.checkpoint
    found = evaluate(model, batch_size=4)
    assert found["mAP50"] == run.metrics["mAP50"]


def test_a_folder_in_use_is_refused(run, tmp_path):
    with own_folder(tmp_path / "out", "--output"), pytest.raises(UserError, match="is in use"):
        evaluate(run, output=tmp_path / "out")
    with own_folder(run.workdir, "--workdir"), pytest.raises(UserError, match="is in use"):
        train(tiny_config("x.yml"), run.workdir)


@pytest.mark.slow
def test_the_command_trains_the_same_quietly(run, definition, tmp_path):
    done = run_command([*train_command(definition, tmp_path / "run"), "--quiet"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"workdir {tmp_path / 'run'}"
    assert "device: cpu" not in done.stdout
    assert "mAP50" in done.stdout
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics | {"checkpoint": ""} == run.metrics | {"checkpoint": ""}


def test_a_config_by_name_and_its_overrides(definition, tmp_path):
    config = Config.from_file("demo", **{"data.definition": str(definition)})
    assert config.model.name == "half_filters"
    with pytest.raises(UserError, match=r"--config no-such: .* base, demo, strong, sweep"):
        train("no-such", tmp_path / "run")
    assert not (tmp_path / "run").exists()
