"""The files in slurm/: scripts that refuse early, and W&B's sweep as our training reads it."""

import os
import subprocess

import pytest
from ruamel.yaml import YAML

from runs import ROOT
from yogo_jax.config.overrides import overrides_in, read_values
from yogo_jax.config.schema import from_mapping
from yogo_jax.sweeping.space import read_space
from yogo_jax.train import make_parser


def refusal(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / script), *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "python", "message"),
    [
        ("sweep.sbatch", (), "python", "no study given"),
        ("sweep.sbatch", ("--study", "x"), "no-such-python", "no-such-python is no command"),
        ("sweep.sbatch", ("--study=x",), "false", "lacks yogo_jax or optuna"),
        ("wandb_sweep.sbatch", (), "python", "expected one sweep ENTITY/PROJECT/ID, got ''"),
        ("wandb_sweep.sbatch", ("only-an-id",), "python", "got 'only-an-id'"),
        ("wandb_sweep.sbatch", ("a/b/c",), "no-such-python", "no-such-python is no command"),
        ("wandb_sweep.sbatch", ("a/b/c",), "false", "lacks yogo_jax or wandb"),
    ],
)
def test_scripts_say_at_once_what_is_missing(script, arguments, python, message):
    assert message in refusal(script, *arguments, PYTHON=python)


@pytest.fixture(scope="module")
def wandb_sweep():
    return YAML(typ="safe").load((ROOT / "slurm" / "sweep.yml").read_text())


def training_flags(wandb_sweep: dict, chosen: dict) -> list[str]:
    """The flags that W&B's agent would give to the training, by W&B's own code."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    command = utils.create_sweep_command(list(wandb_sweep["command"]))
    values = {name: {"value": value} for name, value in chosen.items()}
    arguments = utils.create_sweep_command_args({"args": values})["args"]
    start = command.index("yogo_jax.train") + 1
    assert command[: start - 1] == ["${env}", "${interpreter}", "-m"]
    return [
        each for part in command[start:] for each in (arguments if part == "${args}" else [part])
    ]


@pytest.mark.parametrize("end", ["first", "last"])
def test_training_reads_what_the_agent_of_wandb_writes(wandb_sweep, monkeypatch, end):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    chosen = {
        name: each["values"][0 if end == "first" else -1]
        if "values" in each
        else each["min" if end == "first" else "max"]
        for name, each in wandb_sweep["parameters"].items()
    }
    argv = training_flags(wandb_sweep, chosen)
    assert "--workdir=runs/wandb-17" in argv
    monkeypatch.chdir(ROOT)
    args = make_parser().parse_args(argv)
    config = from_mapping(read_values(args.config, overrides_in(args)))
    assert config.track.wandb_mode == "online"
    assert config.data.image_hw == ((386, 516) if end == "first" else (772, 1032))
    assert config.optim.learning_rate == (0.0001 if end == "first" else 0.003)
    assert config.train.batch_size == (16 if end == "first" else 64)


def test_both_sweeps_search_the_same(wandb_sweep):
    from configs import sweep

    values = sweep.get_config().to_dict()
    values["data"]["definition"] = "d.yml"
    space = read_space(values)
    ours = {}
    for each in space.parameters:
        # W&B passes pairs on as text.
        texts = list(each.texts) if each.field == "data.image_hw" else list(each.values)
        ours[f"config.{each.field}"] = texts
    theirs = {
        name: each["values"] if "values" in each else [each["min"], each["max"]]
        for name, each in wandb_sweep["parameters"].items()
    }
    assert ours == theirs
