"""Small runs for tests: a config of a tiny network, and whole commands in their own process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs import base
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.config.schema import Config, from_mapping


ROOT = Path(__file__).parents[1]


def tiny_values(definition: Path | str, **overrides: Any) -> dict[str, Any]:
    """Fields of a run of a few seconds; overrides are `group__field=value`."""
    values = base.get_config().to_dict()
    values["data"].update(definition=str(definition), image_hw=(64, 96), workers=0)
    values["model"].update(name="quarter_filters", anchor="auto")
    values["train"].update(epochs=2, batch_size=4, eval_every_epochs=1)
    for name, value in overrides.items():
        group, _, field = name.partition("__")
        if field:
            values[group][field] = value
        else:
            values[group] = value
    return values


def tiny_config(definition: Path | str, **overrides: Any) -> Config:
    return from_mapping(tiny_values(definition, **overrides))


def train_command(definition: Path | str, workdir: Path, **overrides: Any) -> list[str]:
    """The command line of such a run."""
    fields = {
        "data__definition": definition,
        "data__image_hw": "64,96",
        "data__workers": 0,
        "model__name": "quarter_filters",
        "model__anchor": "auto",
        "train__epochs": 2,
        "train__batch_size": 4,
        "train__eval_every_epochs": 1,
        **overrides,
    }
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    base_file = str(ROOT / "configs" / "base.py")
    command = [sys.executable, "-m", "yogo_jax.train", "--config", base_file]
    return [*command, "--workdir", str(workdir), *flags]


def logged_losses(workdir: Path, kind: str = "train") -> list[float]:
    records = read_metrics(workdir / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == kind]


def environment(*, optimized: bool) -> dict[str, str]:
    """The environment of commands: this checkout first, and one cache of compilations.

    Args:
      optimized: compile as users do, which starts slower and runs faster.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" or not optimized}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(not optimized),
    }


def run_command(
    command: list[str], *, optimized: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(optimized=optimized),
        capture_output=True,
        text=True,
        check=False,
        **{"cwd": ROOT, "timeout": 300, **options},
    )


def run_aloud(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs as users do, prints the command and its output, and expects it to succeed."""
    print("\n$", " ".join(command))
    done = run_command(command, optimized=True, timeout=None, **options)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stderr[-4000:]
    return done
