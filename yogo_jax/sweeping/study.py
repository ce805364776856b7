"""The folder of a sweep: what it searches, its trials in Optuna's journal, and who works on them.

    DIR/study.json      config and search space; the same for all tasks
    DIR/journal.log     Optuna's journal: parameters, validations and results of all trials
    DIR/trials/NUMBER/  workdir of a trial, with `claims/` beside what a training leaves

The number of trials is fixed when they are enqueued, before anybody works on them: a trial's number
in Optuna is that of its folder, and numbers from `trials` on (two tasks that enqueue at once may
make some) are not touched.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from yogo_jax.checkpoint.run_data import PATHS_OF_TRAIN, with_absolute_paths, with_paths_of
from yogo_jax.checkpoint.store import committed_checkpoints
from yogo_jax.config.fields import differences, with_fields
from yogo_jax.config.old_names import with_current_names
from yogo_jax.config.schema import from_mapping
from yogo_jax.errors import UserError
from yogo_jax.files import given_path, make_folder, write_json
from yogo_jax.ownership import (
    Claim,
    Claimed,
    deaths_without_progress,
    file_system_now,
    read_claims,
    try_to_claim,
)
from yogo_jax.sweeping.space import Parameter, SearchSpace, read_space


class TrialSeededSampler(BaseSampler):
    """TPE whose draws follow from a seed, the number of the trial, and the results known so far.

    One generator for all trials of a process would give every task of an array the same draws.

    References:
      Bergstra, Bardenet, Bengio, Kégl 2011, Algorithms for hyper-parameter optimization, NIPS 24.
    """

    def __init__(self, seed: int, *, random_trials: int) -> None:
        self._seed = seed
        self._random_trials = random_trials
        self._of_number = functools.lru_cache(maxsize=8)(self._make)

    def _make(self, number: int) -> TPESampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        # What others work on counts as bad (Optuna's "constant liar"), so that they spread.
        return TPESampler(seed=seed, n_startup_trials=self._random_trials, constant_liar=True)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        """What is drawn together."""
        return self._of_number(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict:
        """Values of what is drawn together."""
        return self._of_number(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """The value of one parameter."""
        sampler = self._of_number(trial.number)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class _MendingLock(JournalFileOpenLock):
    """Optuna's lock by O_EXCL, which also cuts off a line that a killed writer left unfinished.

    The next line would else be written behind it, and the journal be unreadable for good.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        locked = super().acquire()
        with self._journal.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                file.seek(end - 1)
                if file.read(1) == b"\n":
                    break
                end -= 1
            if end < size:
                file.truncate(end)
        return locked


def open_journal(path: Path) -> JournalStorage:
    """The journal as a storage of Optuna; made if it is not there.

    Of Optuna's two locks this is the one by O_EXCL, as claims are: one thing for the file system to
    get right. The other, by symbolic links, is for NFS before version 3.

    Raises:
      UserError: it cannot be read.
    """
    journal = path.absolute()
    try:
        return JournalStorage(JournalFileBackend(str(journal), _MendingLock(journal)))
    except (OSError, ValueError) as error:
        raise UserError(f"{journal}: cannot be read as Optuna's journal ({error})") from error


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
        values = json.loads(path.read_text(encoding="utf-8"))
        # In a sweep of an earlier version fields may have their old names.
        renamed = {name: with_current_names(values[name]) for name in ("config", "space")}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: lacks {error}; is it of this version?") from error
    return {**values, **renamed}


def _that_must_agree(values: dict[str, Any]) -> dict[str, Any]:
    config = {name: group for name, group in values["config"].items() if name != "track"}
    for name, fields in MAY_DIFFER.items():
        config[name] = {key: each for key, each in config[name].items() if key not in fields}
    # Of what each trial chooses, the value in the file is never taken.
    config = with_fields(config, dict.fromkeys(values["space"]))
    settings = {name: each for name, each in values["settings"].items() if name != "trials"}
    return {**values, "config": config, "settings": settings}
