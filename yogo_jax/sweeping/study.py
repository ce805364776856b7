"""The folder of a sweep, and the trials in it.

    DIR/study.json      config and search space, the same for all tasks
    DIR/journal.log     Optuna's journal: parameters, validations and results of all trials
    DIR/trials/NUMBER/  workdir of a trial; `claims/` in it says which task works on it

All trials are enqueued before any task works on them. So the number of a trial in Optuna is the
name of its folder. Two tasks that enqueue at the same moment may make more trials than planned;
those with the highest numbers are then never used.

First come opening and joining a study, then the study itself, then Optuna's journal and its lock.
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from yogo_jax.checkpoint.run_data import (
    PATHS_OF_TRAIN,
    path_or_name,
    with_absolute_paths,
    with_paths_of,
)
from yogo_jax.checkpoint.store import committed_checkpoints
from yogo_jax.config.fields import RENAMED, differences, with_fields
from yogo_jax.config.schema import Config, from_mapping
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, read_json, write_json
from yogo_jax.ownership import (
    Claim,
    Claimed,
    deaths_without_progress,
    file_system_now,
    read_claims,
    try_to_claim,
)
from yogo_jax.sweeping.space import Parameter, SearchSpace, read_space


STUDY_NAME = "sweep"
# A trial is given up after so many deaths of its tasks without a new checkpoint in between.
MAX_DEATHS = 3
# Fields that tasks of one sweep may set differently, because they do not change what trials are
# compared by.
MAY_DIFFER = {"data": ("workers",), "train": ("checkpoint_every_minutes", "max_hours", "decision")}


def open_study(folder: Path, space: SearchSpace, *, stale_after: float) -> "SweepStudy":
    """Joins the sweep in a folder, or begins one there.

    Args:
      folder: made if it does not exist.
      space: the search; of the sweep that is there it may differ in `MAY_DIFFER`, in tracking and
        in the number of trials.
      stale_after: seconds without a sign of life after which a task counts as dead.

    Raises:
      UserError: the folder holds another sweep, or cannot be written.
    """
    make_folder(folder, "--study")
    # Tasks may be started from different folders.
    config = with_absolute_paths(from_mapping(space.base))
    parameters = tuple(map(_with_absolute_paths, space.parameters))
    space = dataclasses.replace(space, base=config.to_dict(), parameters=parameters)
    path = folder / "study.json"
    own = folder / f".study.{os.getpid()}.{time.time_ns()}.json"
    try:
        write_json(own, space.to_dict())
        # A link appears as a whole file, and only one of several tasks that start at once makes it.
        os.link(own, path)
    except FileExistsError:
        theirs = _result_relevant(read_study(path), paths_from=config)
        different = differences(theirs, _result_relevant(space, paths_from=config), "study")
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
    """Returns the parameter; values that are paths are made absolute."""
    group, _, name = parameter.field.rpartition(".")
    if group != "train" or name not in PATHS_OF_TRAIN:
        return parameter
    values = tuple(map(path_or_name, parameter.values))
    return dataclasses.replace(parameter, values=values)


def load_study(folder: Path, *, stale_after: float) -> "SweepStudy":
    """Opens the sweep in a folder to read it.

    Raises:
      UserError: the folder holds no sweep.
    """
    path = folder / "study.json"
    if not path.is_file() or not (folder / "journal.log").is_file():
        raise UserError(f"{folder}: expected the folder of a sweep (--study), found no study in it")
    return SweepStudy(folder, read_study(path), stale_after=stale_after)


def read_study(path: Path) -> SearchSpace:
    """Reads a `study.json`; fields of the config that it lacks get their defaults.

    Raises:
      UserError: the file cannot be read, or is not that of a sweep.
    """
    values = read_json(path)
    try:
        sweep = {**values["settings"], "space": values["space"]}
        return read_space({**values["config"], "sweep": sweep})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: lacks {error}; is it of this version?") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _result_relevant(space: SearchSpace, *, paths_from: Config) -> dict[str, Any]:
    """Returns the values on which the result depends; tasks of one sweep must agree on them.

    The paths of `paths_from` replace recorded ones that name the same files.
    """
    values = json.loads(json.dumps(space.to_dict()))
    config = with_paths_of(paths_from.to_dict(), values["config"])
    del config["track"]
    for name, fields in MAY_DIFFER.items():
        config[name] = {key: each for key, each in config[name].items() if key not in fields}
    # The base value of a field that trials choose is never used.
    values["config"] = with_fields(config, dict.fromkeys(values["space"]))
    del values["settings"]["trials"]
    return values


class SweepStudy:
    """The trials of a sweep, for one of its tasks: which are left, who works on them, how they end.

    Args:
      folder: folder of the sweep, with its `study.json`.
      space: the search.
      stale_after: seconds without a sign of life after which the task of a trial counts as dead.
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
        options: Any = {"storage": self._storage, "study_name": STUDY_NAME, "pruner": pruner}
        try:
            # First without writing: a report may be made without the right to write.
            self.optuna = optuna.load_study(**options)
        except KeyError:
            better = optuna.study.StudyDirection
            direction = better.MAXIMIZE if settings.maximize else better.MINIMIZE
            # Another task may create it at the same moment.
            self.optuna = optuna.create_study(**options, direction=direction, load_if_exists=True)

    @property
    def planned(self) -> int:
        """Number of trials of the sweep: the largest that any task was started with."""
        return self.optuna.user_attrs.get("trials", 0)

    def plan(self, trials: int) -> None:
        """Enqueues trials until there are at least so many."""
        while len(self.optuna.get_trials(deepcopy=False)) < trials:
            self.optuna.enqueue_trial({})
        if trials > self.planned:
            self.optuna.set_user_attr("trials", trials)

    def trials(self) -> list[FrozenTrial]:
        """The planned trials, as they are now."""
        return self.optuna.get_trials(deepcopy=False)[: self.planned]

    def unfinished(self) -> list[FrozenTrial]:
        """The planned trials that are neither complete, nor pruned, nor failed."""
        return [trial for trial in self.trials() if not trial.state.is_finished()]

    def workdir(self, number: int) -> Path:
        """The workdir of a trial."""
        return self.folder / "trials" / str(number)

    def claim_next(self) -> tuple[int, Claim] | None:
        """Claims the first trial that no task works on; None if there is none now.

        A trial becomes a failed one here if its tasks died `MAX_DEATHS` times at the same step.
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
            # Its last task may have finished it just before it gave the trial back.
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
        """Gives a trial a value for every parameter; values that it has already are kept."""
        trial_id = self._trial_id(number)
        if self.trials()[number].state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        self.optuna.sampler = self._sampler(number)
        trial = optuna.Trial(self.optuna, trial_id)
        # A sweep goes on with the old name of a field that has been renamed since it began.
        known = {name for each in self.trials() for name in each.params}
        old_names = {new: old for old, new in RENAMED.items() if old in known}
        for parameter in self.space.parameters:
            name, kind = old_names.get(parameter.field, parameter.field), parameter.kind
            if kind == "choice":
                trial.suggest_categorical(name, list(parameter.texts))
            elif isinstance(parameter.values[0], int):
                trial.suggest_int(name, *parameter.values, log=kind == "log")
            else:
                trial.suggest_float(name, *parameter.values, log=kind == "log")
        return trial

    def _sampler(self, number: int) -> TPESampler:
        """TPE; its draws depend on the sweep's seed, the number of the trial, and the results.

        With one generator for all trials, every task of a job array would draw the same values.
        Unfinished trials of other tasks count as bad (Optuna's "constant liar"), so that the trials
        spread over the space.

        References:
          Bergstra, Bardenet, Bengio, Kégl 2011, Algorithms for hyper-parameter optimization, NIPS.
        """
        settings = self.space.settings
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
        return TPESampler(seed=seed, n_startup_trials=settings.random_trials, constant_liar=True)

    def complete(self, number: int, value: float) -> None:
        """Ends a trial with its objective."""
        self.optuna.tell(number, value, skip_if_finished=True)

    def prune(self, trial: optuna.Trial, reason: str) -> None:
        """Ends a trial early, because it is worse than others."""
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


def open_journal(path: Path) -> JournalStorage:
    """Opens the journal as a storage of Optuna; makes the file if it does not exist.

    Of Optuna's two locks this is the one by O_EXCL. Claims use O_EXCL too, so the file system must
    support one thing only. The other lock, by symbolic links, is for NFS before version 3.

    Raises:
      UserError: the journal cannot be read.
    """
    journal = path.absolute()
    try:
        return JournalStorage(JournalFileBackend(str(journal), _MendingLock(journal)))
    except (OSError, ValueError) as error:
        raise UserError(f"{journal}: cannot be read as Optuna's journal ({error})") from error


class _MendingLock(JournalFileOpenLock):
    """Optuna's lock by O_EXCL; it also cuts off a line that a killed writer left unfinished.

    Optuna itself would append the next line to the unfinished one, and could then never read the
    journal again.
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
