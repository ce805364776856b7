"""The folder of a sweep: what it searches, its trials in Optuna's journal, and who works on them.

    DIR/study.json      config and search space; the same for all tasks
    DIR/journal.log     Optuna's journal: parameters, validations and results of all trials
    DIR/trials/NUMBER/  workdir of a trial, with `claims/` beside what a training leaves

The number of trials is fixed when they are enqueued, before anybody works on them: a trial's number
in Optuna is that of its folder, and numbers from `trials` on (two tasks that enqueue at once may
make some) are not touched.
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from yogo_jax.config import differences, from_mapping
from yogo_jax.errors import UserError
from yogo_jax.given import given_path
from yogo_jax.output.claims import (
    Claim,
    Claimed,
    deaths_without_progress,
    file_system_now,
    read_claims,
    try_to_claim,
)
from yogo_jax.output.files import make_folder, write_json
from yogo_jax.sweeping.journal import open_journal
from yogo_jax.sweeping.sampler import TrialSeededSampler
from yogo_jax.sweeping.space import Parameter, SearchSpace, with_fields
from yogo_jax.sweeping.space_rules import read_space
from yogo_jax.training.checkpoints import committed_checkpoints
from yogo_jax.training.run_data import PATHS_OF_TRAIN, with_absolute_paths, with_paths_of


STUDY_NAME = "sweep"
# A trial whose tasks died so often without a new checkpoint in between is not tried again.
MAX_DEATHS = 3
# Fields that a later task may set otherwise: they change where work is done, not what comes out.
MAY_DIFFER = {"data": ("workers",), "train": ("checkpoint_every_minutes", "max_hours")}


class SweepStudy:
    """A sweep as one of its tasks sees it.

    Args:
      folder: of the sweep; it has a `study.json`.
      space: what is searched.
      stale_after: seconds without a sign of life after which a trial's task counts as dead.
    """

    def __init__(self, folder: Path, space: SearchSpace, *, stale_after: float) -> None:
        self.folder = folder
        self.space = space
        self.stale_after = stale_after
        settings = space.settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = open_journal(folder / "journal.log")
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if settings.pruner.name == "median":
            pruner = optuna.pruners.MedianPruner(
                n_startup_trials=settings.pruner.startup_trials,
                n_warmup_steps=settings.pruner.warmup_epochs,
            )
        options: Any = {
            "storage": self._storage,
            "study_name": STUDY_NAME,
            "sampler": TrialSeededSampler(settings.seed, random_trials=settings.random_trials),
            "pruner": pruner,
        }
        try:
            self.optuna = optuna.load_study(**options)
        except KeyError:
            better = optuna.study.StudyDirection
            direction = better.MAXIMIZE if settings.maximize else better.MINIMIZE
            # Another task may do so at the same moment.
            self.optuna = optuna.create_study(**options, direction=direction, load_if_exists=True)

    @property
    def planned(self) -> int:
        """How many trials the sweep has: the most that any of its tasks was started with."""
        return self.optuna.user_attrs.get("trials", 0)

    def plan(self, trials: int) -> None:
        """Sees to it that there are at least so many trials."""
        while len(self.optuna.get_trials(deepcopy=False)) < trials:
            self.optuna.enqueue_trial({})
        if trials > self.planned:
            self.optuna.set_user_attr("trials", trials)

    def trials(self) -> list[FrozenTrial]:
        """The planned trials, as they are now."""
        return self.optuna.get_trials(deepcopy=False)[: self.planned]

    def unfinished(self) -> list[FrozenTrial]:
        """Those of them that are neither complete, nor pruned, nor failed."""
        return [trial for trial in self.trials() if not trial.state.is_finished()]

    def workdir(self, number: int) -> Path:
        """Where a trial trains."""
        return self.folder / "trials" / str(number)

    def claim_next(self) -> tuple[int, Claim] | None:
        """A trial that nobody works on, the lowest first; None if there is none now.

        A trial whose tasks died again and again at the same place becomes a failed one here.
        """
        unfinished = self.unfinished()
        if not unfinished:
            return None
        now = file_system_now(self.folder)
        for trial in unfinished:
            workdir = self.workdir(trial.number)
            checkpoints = committed_checkpoints(workdir / "checkpoints")
            step = int(checkpoints[-1].name) if checkpoints else 0
            claim = try_to_claim(workdir, step=step, now=now, stale_after=self.stale_after)
            if claim is None:
                continue
            # Its last owner may have finished it just before giving it back.
            if self.trials()[trial.number].state.is_finished():
                with claim:
                    continue
            deaths = deaths_without_progress(read_claims(workdir)[:-1], step)
            if len(deaths) >= MAX_DEATHS:
                with claim:
                    self.start(trial.number)
                    self.fail(trial.number, _reason(deaths, step))
                continue
            return trial.number, claim
        return None

    def start(self, number: int) -> optuna.Trial:
        """The trial with a value for every parameter; one that was begun keeps what it has."""
        trial_id = self._trial_id(number)
        if self.trials()[number].state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        trial = optuna.Trial(self.optuna, trial_id)
        for parameter in self.space.parameters:
            name, kind = parameter.field, parameter.kind
            if kind == "choice":
                trial.suggest_categorical(name, list(parameter.texts))
            elif isinstance(parameter.values[0], int):
                trial.suggest_int(name, *parameter.values, log=kind == "log")
            else:
                trial.suggest_float(name, *parameter.values, log=kind == "log")
        return trial

    def complete(self, number: int, value: float) -> None:
        """Ends a trial with its objective."""
        self.optuna.tell(number, value, skip_if_finished=True)

    def prune(self, trial: optuna.Trial, reason: str) -> None:
        """Ends a trial that is not worth going on."""
        trial.set_user_attr("reason", reason)
        self.optuna.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial that cannot be finished."""
        self._storage.set_trial_user_attr(self._trial_id(number), "reason", reason)
        self.optuna.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(STUDY_NAME)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


def _reason(deaths: Sequence[Claimed], step: int) -> str:
    errors = [claim.values["error"] for claim in deaths if "error" in claim.values]
    if errors:
        return f"ended {len(deaths)} times at step {step} without a new checkpoint: {errors[-1]}"
    return (
        f"its task was killed {len(deaths)} times at step {step} without a new checkpoint; did the "
        "machine run out of memory?"
    )


def open_study(folder: Path, space: SearchSpace, *, stale_after: float) -> SweepStudy:
    """Joins a sweep, or begins it.

    Raises:
      UserError: the folder holds another sweep, or cannot be written.
    """
    make_folder(folder, "--study")
    # Tasks may be started from different folders.
    config = with_absolute_paths(from_mapping(space.base))
    parameters = tuple(map(_with_absolute_paths, space.parameters))
    space = dataclasses.replace(space, base=config.to_dict(), parameters=parameters)
    path = folder / "study.json"
    ours = json.loads(json.dumps(space.to_dict()))
    own = folder / f".study.{os.getpid()}.{time.time_ns()}.json"
    try:
        write_json(own, ours)
        # A link appears whole, and for one of several tasks that start at once.
        os.link(own, path)
    except FileExistsError:
        theirs = _read_study(path)
        theirs["config"] = with_paths_of(ours["config"], theirs["config"])
        different = differences(_that_must_agree(theirs), _that_must_agree(ours), "study")
        if different:
            raise UserError(
                f"--study {folder} holds another sweep ({'; '.join(different)}): choose another "
                "folder, or give the same config to join it"
            ) from None
    except OSError as error:
        raise UserError(f"--study {folder}: cannot be written ({error.strerror})") from error
    finally:
        own.unlink(missing_ok=True)
    study = SweepStudy(folder, space, stale_after=stale_after)
    study.plan(space.settings.trials)
    return study


def _with_absolute_paths(parameter: Parameter) -> Parameter:
    """The parameter, whose values, if they are paths, mean the same from any folder."""
    group, _, name = parameter.field.rpartition(".")
    if group != "train" or name not in PATHS_OF_TRAIN:
        return parameter
    values = tuple(str(given_path(each).resolve()) if each else each for each in parameter.values)
    return dataclasses.replace(parameter, values=values)


def load_study(folder: Path, *, stale_after: float) -> SweepStudy:
    """A sweep that is there, to look at.

    Raises:
      UserError: the folder holds none.
    """
    path = folder / "study.json"
    if not path.is_file() or not (folder / "journal.log").is_file():
        raise UserError(f"{folder}: expected the folder of a sweep (--study), found no study in it")
    values = _read_study(path)
    try:
        sweep = {**values["settings"], "space": values["space"]}
        space = read_space({**values["config"], "sweep": sweep})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: lacks {error}; is it of this version?") from error
    return SweepStudy(folder, space, stale_after=stale_after)


def _read_study(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def _that_must_agree(values: dict[str, Any]) -> dict[str, Any]:
    config = {name: group for name, group in values["config"].items() if name != "track"}
    for name, fields in MAY_DIFFER.items():
        config[name] = {key: each for key, each in config[name].items() if key not in fields}
    # Of what each trial chooses, the value in the file is never taken.
    config = with_fields(config, dict.fromkeys(values["space"]))
    settings = {name: each for name, each in values["settings"].items() if name != "trials"}
    return {**values, "config": config, "settings": settings}
