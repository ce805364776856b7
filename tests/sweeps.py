"""Sweeps for tests: a small search space, and studies whose trials were never trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import TrialState

from runs import tiny_values
from yogo_jax.sweeping.space import SearchSpace, read_space
from yogo_jax.sweeping.study import SweepStudy, open_study


SPACE: dict[str, Any] = {
    "data": {"image_hw": {"choice": ((64, 96), (48, 64))}},
    "model": {"name": {"choice": ("quarter_filters", "half_filters", "depth_ver_0")}},
    "loss": {"no_object_weight": {"uniform": (0.05, 0.5)}},
    "optim": {"learning_rate": {"log": (1e-4, 1e-2)}},
    "train": {"batch_size": {"int": (2, 8)}},
}


def sweep_values(definition: Path | str = "d.yml", **overrides: Any) -> dict[str, Any]:
    """Fields of a config with a sweep; overrides are those of `sweep`, or `group__field`."""
    sweep = {
        "trials": 4,
        "objective": "mAP50",
        "random_trials": 3,
        "seed": 0,
        "pruner": {"name": "median", "startup_trials": 2, "warmup_epochs": 0},
        "space": SPACE,
    }
    of_run = {name: value for name, value in overrides.items() if "__" in name}
    sweep.update({name: value for name, value in overrides.items() if "__" not in name})
    return {**tiny_values(definition, **of_run), "sweep": sweep}


def space_of(definition: Path | str = "d.yml", **overrides: Any) -> SearchSpace:
    return read_space(sweep_values(definition, **overrides))


def study_in(folder: Path, definition: Path | str = "d.yml", **overrides: Any) -> SweepStudy:
    return open_study(folder, space_of(definition, **overrides), stale_after=60)


def finish_with(study: SweepStudy, number: int, value: float, device: str = "cpu (cpu)") -> None:
    """Makes a trial complete as if it had been trained."""
    trial = study.start(number)
    for epoch, share in ((1, 0.5), (2, 1.0)):
        trial.report(share * value, epoch)
    rows, columns = (int(side) for side in trial.params["data.image_hw"].split(","))
    figures = {
        "frames_per_second": 4e6 / (rows * columns),
        "device": device,
        "batch_size": 8,
        "parameters": {"quarter_filters": 34000, "half_filters": 136000}.get(
            trial.params["model.name"], 180000
        ),
        "best_epoch": 2,
        "seconds": 93.0 + number,
    }
    for name, figure in figures.items():
        trial.set_user_attr(name, figure)
    study.complete(number, value)
    test = study.workdir(number) / "test"
    test.mkdir(parents=True)
    by_class = {"healthy": value, "<ring> & others": 0.9 * value}
    (test / "metrics.json").write_text(
        json.dumps({"mAP50": 0.95 * value, "test_loss": 1.0, "AP50_by_class": by_class})
    )
    (test / "report.html").write_text(f"<title>{number}</title>")


def response(parameters: dict[str, Any]) -> float:
    """A made-up objective that hangs on the learning rate most."""
    rate = np.log10(parameters["optim.learning_rate"])
    return float(0.7 - 0.2 * (rate + 3) ** 2 + 0.05 * (parameters["model.name"] != "depth_ver_0"))


def states_of(study: Study) -> list[str]:
    return [TrialState(trial.state).name for trial in study.get_trials(deepcopy=False)]
