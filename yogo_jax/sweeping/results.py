"""What a sweep has found so far: a row for each trial, and a table for the terminal."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from yogo_jax.config.old_names import with_current_names
from yogo_jax.ownership import Claimed, file_system_now, read_claims
from yogo_jax.reports.tables import align
from yogo_jax.sweeping.space import SearchSpace
from yogo_jax.sweeping.study import SweepStudy


# Of fewer finished trials, what a forest learns of them says little.
MIN_TRIALS_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class TrialResult:
    """One trial, at whatever point it is.

    Attributes:
      number: of the trial.
      state: "complete", "pruned", "failed", "running", "stopped" (nobody works on it) or "waiting".
      chosen: values of the swept fields; empty before it begins.
      config: all of its fields; empty before it begins.
      value: the objective: at the kept checkpoint, or the last one known of a trial that has none.
      epochs: done at its last validation.
      seconds: of all tasks that worked on it; None before the first validation.
      figures: frames/s, parameters and others of a complete trial.
      reason: why it was pruned or failed.
      taken_up: how often another task went on with it.
      test: metrics of its test, None without one.
      workdir: where it trained.
    """

    number: int
    state: str
    chosen: Mapping[str, Any]
    config: Mapping[str, Any]
    value: float | None
    epochs: int
    seconds: float | None
    figures: Mapping[str, Any]
    reason: str
    taken_up: int
    test: Mapping[str, Any] | None
    workdir: Path


@dataclass(frozen=True)
class SweepResults:
    """A whole sweep.

    Attributes:
      name: of its folder.
      space: what was searched.
      trials: in the order of their numbers.
      importance: share of each field in the variance of the objective; None of too few trials.
    """

    name: str
    space: SearchSpace
    trials: tuple[TrialResult, ...]
    importance: Mapping[str, float] | None

    @property
    def objective(self) -> str:
        """Name of what trials are compared by."""
        return self.space.settings.objective

    @property
    def fields(self) -> list[str]:
        """Dotted names of what they differ in."""
        return [each.field for each in self.space.parameters]

    @property
    def ranked(self) -> list[TrialResult]:
        """Complete trials, best first; of equal ones the lower number."""
        complete = [each for each in self.trials if each.state == "complete"]
        sign = -1 if self.space.settings.maximize else 1
        return sorted(complete, key=lambda each: (sign * (each.value or 0.0), each.number))

    def summary(self) -> str:
        """How many trials are in which state."""
        states = [each.state for each in self.trials]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        return f"{len(states)} trials: {', '.join(counts)}"


def read_results(study: SweepStudy) -> SweepResults:
    """Everything that a report shows, read at one moment."""
    try:
        now = file_system_now(study.folder)
    except OSError:
        # One may look at a study that one may not write to; the clock here has to do.
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
    return TrialResult(
        number=trial.number,
        state=_state(trial, claims, now),
        chosen=with_current_names(trial.params),
        config=study.space.config_of(trial.params).to_dict() if begun else {},
        value=value,
        epochs=max(reported, default=0),
        seconds=trial.user_attrs.get("seconds"),
        figures=trial.user_attrs,
        reason=trial.user_attrs.get("reason", ""),
        taken_up=max(len(claims) - 1, 0),
        test=json.loads(test.read_text(encoding="utf-8")) if test.exists() else None,
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
    # Each task wrote down how long its silence may last.
    patience = claims[-1].values.get("stale_after", 0.0)
    return "stopped" if claims[-1].is_stale(now, patience) else "running"


def _importance(study: SweepStudy) -> dict[str, float] | None:
    """Shares of the fields by fANOVA, largest first.

    References:
      Hutter, Hoos, Leyton-Brown 2014, An efficient approach for assessing hyperparameter
      importance, ICML.
    """
    values = [trial.value for trial in study.trials() if trial.state == TrialState.COMPLETE]
    if len(values) < MIN_TRIALS_FOR_IMPORTANCE or len(set(values)) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)


def format_trials(results: SweepResults) -> str:
    """The trials as text: complete ones first, best first, then the others by number."""
    ranked = results.ranked
    rest = [each for each in results.trials if each.state != "complete"]
    header = ["trial", "state", results.objective, "epochs", "minutes", "frames/s"]
    rows = [
        [
            str(each.number),
            each.state,
            *map(short_text, (each.value, each.epochs, minutes(each))),
            short_text(each.figures.get("frames_per_second")),
            *(short_text(each.chosen.get(field)) for field in results.fields),
        ]
        for each in [*ranked, *rest]
    ]
    lines = align([*header, *(field.split(".")[-1] for field in results.fields)], rows)
    lines += [f"trial {each.number} {each.state}: {each.reason}" for each in rest if each.reason]
    return "\n".join([*lines, results.summary()])


def minutes(trial: TrialResult) -> float | None:
    """Time that went into a trial, None before its first validation."""
    return None if trial.seconds is None else round(trial.seconds / 60, 1)


def short_text(value: Any) -> str:
    """A value in few characters: three digits of a number, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
