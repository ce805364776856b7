"""The results of a sweep so far: one record for each trial, and a table for the terminal."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from yogo_jax.config.fields import RENAMED, with_current_names
from yogo_jax.files import read_json
from yogo_jax.ownership import Claimed, file_system_now, read_claims
from yogo_jax.reports.tables import align, number
from yogo_jax.sweeping.space import SearchSpace
from yogo_jax.sweeping.study import SweepStudy


# With fewer finished trials the importance of a field means little.
MIN_TRIALS_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class TrialResult:
    """One trial in any state.

    Attributes:
      number: number of the trial.
      state: "complete", "pruned", "failed", "running", "stopped" (no task works on it) or
        "waiting".
      chosen: values of the searched fields; empty before the trial begins.
      config: all fields; empty before the trial begins.
      value: the objective at the kept checkpoint; of an unfinished trial, at its last validation.
      epochs: finished epochs at the last validation.
      minutes: time that all tasks spent on it; None before the first validation.
      figures: frames/s, parameters and others of a complete trial.
      reason: reason why it was pruned or failed.
      taken_up: number of times that another task continued it.
      test: metrics of its test; None without a test.
      workdir: its workdir.
    """

    number: int
    state: str
    chosen: Mapping[str, Any]
    config: Mapping[str, Any]
    value: float | None
    epochs: int
    minutes: float | None
    figures: Mapping[str, Any]
    reason: str
    taken_up: int
    test: Mapping[str, Any] | None
    workdir: Path


@dataclass(frozen=True)
class SweepResults:
    """A whole sweep.

    Attributes:
      name: name of its folder.
      space: the search.
      trials: in the order of their numbers.
      importance: share of each field in the variance of the objective; None for too few trials.
    """

    name: str
    space: SearchSpace
    trials: tuple[TrialResult, ...]
    importance: Mapping[str, float] | None

    @property
    def objective(self) -> str:
        """Name of the metric that trials are compared by."""
        return self.space.settings.objective

    @property
    def fields(self) -> list[str]:
        """Dotted names of the searched fields."""
        return [each.field for each in self.space.parameters]

    @property
    def ranked(self) -> list[TrialResult]:
        """Complete trials, best first; equal trials by number."""
        complete = [each for each in self.trials if each.state == "complete"]
        sign = -1 if self.space.settings.maximize else 1
        return sorted(complete, key=lambda each: (sign * (each.value or 0.0), each.number))

    def summary(self) -> str:
        """Returns the number of trials in each state as text."""
        states = [each.state for each in self.trials]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        return f"{len(states)} trials: {', '.join(counts)}"


def read_results(study: SweepStudy) -> SweepResults:
    """Reads everything that a report shows."""
    try:
        now = file_system_now(study.folder)
    except OSError:
        # Somebody without the right to write may read a study too; the local clock must do then.
        now = time.time()
    return SweepResults(
        name=study.folder.resolve().name,
        space=study.space,
        trials=tuple(_result(study, trial, now) for trial in study.trials()),
        importance=_importance(study),
    )


def _result(study: SweepStudy, trial: FrozenTrial, now: float) -> TrialResult:
    workdir = study.workdir(trial.number)
    claims = read_claims(workdir)
    test = workdir / "test" / "metrics.json"
    begun = len(trial.params) == len(study.space.parameters)
    reported = trial.intermediate_values
    value = trial.value
    if value is None and reported:
        value = reported[max(reported)]
    seconds = trial.user_attrs.get("seconds")
    return TrialResult(
        number=trial.number,
        state=_state(trial, claims, now),
        chosen=with_current_names(trial.params),
        config=study.space.config_of(trial.params).to_dict() if begun else {},
        value=value,
        epochs=max(reported, default=0),
        minutes=None if seconds is None else round(seconds / 60, 1),
        figures=trial.user_attrs,
        reason=trial.user_attrs.get("reason", ""),
        taken_up=max(len(claims) - 1, 0),
        test=read_json(test) if test.exists() else None,
        workdir=workdir,
    )


def _state(trial: FrozenTrial, claims: list[Claimed], now: float) -> str:
    finished = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    if trial.state in finished:
        return finished[trial.state]
    if not claims:
        return "waiting"
    # Each task records after how many seconds without a sign of life it counts as dead.
    patience = claims[-1].values.get("stale_after", 0.0)
    return "stopped" if claims[-1].is_stale(now, patience) else "running"


def _importance(study: SweepStudy) -> dict[str, float] | None:
    """Shares of the fields in the variance by fANOVA, largest first.

    References:
      Hutter, Hoos, Leyton-Brown 2014, An efficient approach for assessing hyperparameter
      importance, ICML.
    """
    values = [trial.value for trial in study.trials() if trial.state == TrialState.COMPLETE]
    if len(values) < MIN_TRIALS_FOR_IMPORTANCE or len(set(values)) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)
    return {RENAMED.get(name, name): share for name, share in shares.items()}


def format_trials(results: SweepResults) -> str:
    """Returns a table of the trials: complete ones first, best first, then the others by number."""
    ranked = results.ranked
    rest = [each for each in results.trials if each.state != "complete"]
    header = ["trial", "state", results.objective, "epochs", "minutes", "frames/s"]
    rows = [
        [
            str(each.number),
            each.state,
            *map(short_text, (each.value, each.epochs, each.minutes)),
            short_text(each.figures.get("frames_per_second")),
            *(short_text(each.chosen.get(field)) for field in results.fields),
        ]
        for each in [*ranked, *rest]
    ]
    lines = align([*header, *(field.split(".")[-1] for field in results.fields)], rows)
    lines += [f"trial {each.number} {each.state}: {each.reason}" for each in rest if each.reason]
    return "\n".join([*lines, results.summary()])


def short_text(value: Any) -> str:
    """Writes a value in few characters: three digits of a fraction, a dash for None."""
    if isinstance(value, float):
        return number(value, digits=3)
    return "-" if value is None else str(value)
