"""The commands in processes of their own: what they write, what they refuse, kills."""

import json
import shutil
import signal
import sys

import pytest

from kills import assert_equals_a_run_in_peace, train_under_fire
from parity import data_set
from runs import run_command, train_command
from tiny_data import write_dataset
from yogo_jax.checkpoint.metrics_file import read_metrics


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), images=16, published=True)


@pytest.fixture(scope="module")
def trained(definition, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    done = run_command(train_command(definition, workdir))
    assert done.returncode == 0, done.stderr
    return workdir, done


def refused(done) -> str:
    """The message of a command that refused its input in the way that it should."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return message


def test_train_prints_where_and_what(trained):
    workdir, done = trained
    assert "16 images with 96 boxes" in done.stdout
    assert "8 train, 4 val, 4 test" in done.stdout
    assert "device: cpu" in done.stdout
    assert f"workdir {workdir}" in done.stdout
    assert "mAP50" in done.stdout
    assert "Traceback" not in done.stderr


def test_evaluate_repeats_the_test_of_the_run(trained, definition, tmp_path):
    workdir, _ = trained
    command = [sys.executable, "-m", "yogo_jax.evaluate", str(workdir)]
    done = run_command(
        [*command, "--definition", str(definition), "--output", str(tmp_path), "--batch-size", "4"]
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found == json.loads((workdir / "test" / "metrics.json").read_text())
    assert "mAP50" in done.stdout
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    assert f"written {tmp_path / 'metrics.json'} and {tmp_path / 'report.html'}" in done.stdout
    # It shows the training of the run that the checkpoint lies in.
    assert 'id="training"' in (tmp_path / "report.html").read_text()

    validation = tmp_path / "val"
    done = run_command([*command, "--output", str(validation), "--split", "val", "--pictures", "0"])
    assert done.returncode == 0, done.stderr
    found = json.loads((validation / "metrics.json").read_text())
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "validation"]
    best = min(records, key=lambda record: record["loss"])
    assert found["test_loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_anchors_prints_the_flag(definition):
    done = run_command([sys.executable, "-m", "yogo_jax.anchors", str(definition)])
    assert done.returncode == 0, done.stderr
    flag = done.stdout.strip().splitlines()[-1]
    assert flag.startswith("--config.model.anchor=")
    width, height = (float(part) for part in flag.split("=")[1].split(","))
    boxes = [
        [float(value) for value in line.split()[3:]]
        for file in sorted((definition.parent / "labels" / "train").glob("*.txt"))
        for line in file.read_text().splitlines()
    ]
    assert width == pytest.approx(sum(box[0] for box in boxes) / len(boxes), abs=1e-6)
    assert height == pytest.approx(sum(box[1] for box in boxes) / len(boxes), abs=1e-6)


TRAIN_REFUSALS = [
    pytest.param(
        [], "no config given: add --config strong, or another of base, demo", id="no config"
    ),
    pytest.param(["--config", "configs/none.py"], "configs/none.py: cannot be read", id="no file"),
    pytest.param(
        ["--config", "definition.yml"],
        "a data set definition goes to --config.data.definition",
        id="definition for config",
    ),
    pytest.param(
        ["--config", "configs/base.py", "--config.optim.learning_rte=1"],
        "did you mean --config.optim.learning_rate?",
        id="unknown field",
    ),
    pytest.param(
        ["--config", "configs/base.py", "--config.optim.learning_rate=fast"],
        "argument --config.optim.learning_rate: expected a number, got 'fast'",
        id="wrong type",
    ),
    pytest.param(
        ["--config", "configs/base.py", "--config.train.epochs=0"],
        "config.train.epochs must be 1 or more, got 0",
        id="out of range",
    ),
    pytest.param(
        ["--config", "configs/base.py", "--config.data.definition=nowhere.yml"],
        "nowhere.yml",
        id="missing definition",
    ),
    pytest.param(
        ["--config", "configs/base.py", "--learning-rate", "3"],
        "learning-rate",
        id="unknown flag",
    ),
    pytest.param(
        ["--config", "configs/base.py", "configs/demo.py"],
        "unrecognized arguments: configs/demo.py",
        id="stray argument",
    ),
]


@pytest.mark.parametrize(("flags", "message"), TRAIN_REFUSALS)
def test_train_refuses(flags, message):
    done = run_command([sys.executable, "-m", "yogo_jax.train", *flags])
    assert message in refused(done)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("def get_config(:\n", "SyntaxError", id="syntax"),
        pytest.param("values = missing\n", "NameError", id="name"),
        pytest.param("def get_config():\n    return 3\n", "found 3", id="no ConfigDict"),
    ],
)
def test_train_refuses_a_config_file_that_is_none(tmp_path, text, found):
    (tmp_path / "config.py").write_text(text)
    command = [sys.executable, "-m", "yogo_jax.train", "--config", str(tmp_path / "config.py")]
    message = refused(run_command(command))
    assert "expected a Python file whose get_config() returns a ConfigDict" in message
    assert found in message


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "cache"), [(0, "disk"), (1, "disk"), (1, "none")])
def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(
    definition, tmp_path, workers, cache
):
    folder = shutil.copytree(definition.parent, tmp_path / "data")
    broken = sorted((folder / "images" / "train").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:60])
    fields = {"data__workers": workers, "data__cache": cache}
    command = train_command(folder / "definition.yml", tmp_path / "run", **fields)
    assert broken.name in refused(run_command(command))


@pytest.mark.slow
def test_a_bad_label_ends_the_run_or_is_skipped_and_counted(definition, tmp_path):
    folder = shutil.copytree(definition.parent, tmp_path / "data")
    label = sorted((folder / "labels" / "train").iterdir())[0]
    label.write_text(label.read_text() + "0 0.5 0.5 1.5 0.1\n")
    command = train_command(folder / "definition.yml", tmp_path / "run", train__epochs=1)
    message = refused(run_command(command))
    assert f"{label.name}:7" in message
    assert "data.on_bad_label=skip" in message
    done = run_command([*command, "--config.data.on_bad_label=skip"])
    assert done.returncode == 0, done.stderr
    assert "1 bad rows of label files skipped" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--obj-thresh", "1.5"], "--obj-thresh must be in [0, 1]", id="threshold"),
        pytest.param(["--batch-size", "0"], "--batch-size must be 1 or more", id="batch size"),
        pytest.param(["--definition", "nowhere.yml"], "nowhere.yml", id="missing definition"),
    ],
)
def test_evaluate_refuses(trained, tmp_path, flags, message):
    workdir, _ = trained
    command = [sys.executable, "-m", "yogo_jax.evaluate", str(workdir), "--output", str(tmp_path)]
    assert message in refused(run_command([*command, *flags]))


def test_evaluate_refuses_other_classes_and_what_is_no_checkpoint(trained, tmp_path):
    workdir, _ = trained
    others = write_dataset(tmp_path / "data", images=4, class_names=("ring", "healthy"))
    command = [sys.executable, "-m", "yogo_jax.evaluate"]
    output = ["--output", str(tmp_path / "out")]
    done = run_command([*command, str(workdir), "--definition", str(others), *output])
    assert "they must be the same, in the same order" in refused(done)
    done = run_command([*command, str(tmp_path), *output])
    assert "expected a run's workdir" in refused(done)


@pytest.mark.acceptance
def test_a_killed_or_stopped_run_continues_and_loses_nothing(definition, tmp_path):
    overrides = {
        "train__epochs": 60,
        "train__eval_every_epochs": 30,
        "train__checkpoint_every_minutes": 0.002,
        "data__workers": 1,
    }
    command = train_command(definition, tmp_path / "run", **overrides)
    signals = [signal.SIGTERM, signal.SIGKILL]
    train_under_fire(command, tmp_path / "run", signals=signals, seed=0, log=tmp_path / "log")
    assert_equals_a_run_in_peace(definition, tmp_path, overrides, steps=120)


@pytest.mark.slow
def test_one_epoch_of_real_data(tmp_path):
    definition = data_set("lfm")
    command = train_command(definition, tmp_path / "run", data__image_hw="193,258", train__epochs=1)
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    assert "8 train, 2 val, 3 test" in done.stdout
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    rows = [
        [float(value) for value in line.split()]
        for file in (definition.parent / "labels" / "test").glob("*.txt")
        for line in file.read_text().splitlines()
    ]
    assert metrics["objects"] == sum(w * h >= 200 / (772 * 1032) for _, _, _, w, h in rows)
    assert list(metrics["AP50_by_class"])[:3] == ["healthy", "ring", "trophozoite"]
