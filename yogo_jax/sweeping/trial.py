"""The work of one task of a sweep: it trains trial after trial and records their results.

Each validation of a trial is reported to Optuna, whose pruner may end the trial early. At the end
the speed of the model is measured.
"""

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optuna
from optuna.trial import TrialState

from yogo_jax.checkpoint.run_data import load_data
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.config.schema import from_mapping
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.sweeping.space import SearchSpace
from yogo_jax.sweeping.study import SweepStudy
from yogo_jax.training.compilation import TooLittleMemoryError
from yogo_jax.training.stopping import Stop
from yogo_jax.training.tracking import NotFiniteError
from yogo_jax.training.trainer import train_and_evaluate


# A task that finds all trials taken looks again after at most so many seconds.
LONGEST_WAIT_S = 30.0
# The speed is that of the fastest round of a batch, of at least so many rounds and seconds.
SPEED_BATCH = 8
SPEED_SECONDS = 1.0
SPEED_MIN_ROUNDS = 3


def check_data(space: SearchSpace) -> None:
    """Reads the data once before any trial, so that a mistake in it does not end trials.

    Raises:
      UserError: the data cannot be used, or has no true box to compare trials on.
    """
    validation = load_data(from_mapping(space.base).data).val
    if len(validation.class_ids) == 0:
        what = "no true box" if len(validation) else "no image"
        raise UserError(
            f"a sweep compares trials on the validation split, in which there is {what}: choose "
            "another split, for example by --config.data.split_override=0.8,0.1,0.1"
        )


def run_task(
    study: SweepStudy, *, one: bool, say: Callable[[str], None], stop: Stop | None = None
) -> None:
    """Works on trials until the sweep is complete, and waits while other tasks train the last ones.

    Args:
      study: the sweep.
      one: ends after one trial, and does not wait for other tasks.
      say: receives messages on the progress, line by line.
      stop: asks the task to end; its trial is saved, and another task can continue it.

    Raises:
      UserError: the data cannot be used.
      Stopped: the task was asked to end.
    """
    waiting = False
    while unfinished := study.unfinished():
        taken = study.claim_next()
        if taken is not None:
            waiting = False
            number, claim = taken
            with claim:
                run_trial(study, number, say, stop)
            if one:
                return
        elif one:
            say(f"nothing to do: other tasks work on the {len(unfinished)} trials that are left")
            return
        else:
            if not waiting:
                numbers = ", ".join(str(trial.number) for trial in unfinished)
                say(f"waiting: other tasks train {numbers}; this task continues them if they die")
            waiting = True
            time.sleep(min(study.stale_after / 4, LONGEST_WAIT_S))
    say(f"the sweep is complete: {study.planned} trials in {study.folder}")


def run_trial(
    study: SweepStudy, number: int, say: Callable[[str], None], stop: Stop | None = None
) -> None:
    """Trains a claimed trial to its end and records it; continues what another task left.

    If the loss is not finite or memory runs out, the trial has failed. Every other error is raised:
    the parameters are not its cause.

    Args:
      study: the sweep.
      number: number of the trial; this process holds its claim.
      say: receives messages on the progress, line by line.
      stop: asks the training to end early; it saves its work first.

    Raises:
      UserError: the data cannot be used.
      Stopped: the training was asked to end.
    """
    trial = study.start(number)
    config = study.space.config_of(trial.params)
    # A name that tells W&B the sweep and the trial.
    name = f"{config.track.name or study.folder.resolve().name}-{number}"
    config = dataclasses.replace(config, track=dataclasses.replace(config.track, name=name))
    chosen = ", ".join(f"{name}={value}" for name, value in trial.params.items())
    say(f"trial {number} of {study.planned}: {chosen}")
    reporter = _Reporter(study, trial, epochs=config.train.epochs)
    workdir = study.workdir(number)
    try:
        train_and_evaluate(config, workdir, stop=stop, on_validation=reporter)
        value = _finish(study, trial, reporter)
    except _Pruned as pruned:
        study.prune(trial, str(pruned))
        say(f"trial {number} pruned: {pruned}")
    except (NotFiniteError, TooLittleMemoryError) as error:
        study.fail(number, str(error))
        say(f"trial {number} failed: {error}")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = f"out of memory: {str(error).splitlines()[0] if str(error) else 'of the host'}"
        study.fail(number, reason)
        say(f"trial {number} failed: {reason}")
    else:
        say(f"trial {number} complete: {study.space.settings.objective} {value:.4f}")
    # The next trial has other shapes and cannot use what was compiled here. Objects that refer to
    # each other must not keep their arrays on the device while the next trial trains.
    jax.clear_caches()
    gc.collect()


class _Reporter:
    """Reports each validation to Optuna, and ends the training if the pruner wants it."""

    def __init__(self, study: SweepStudy, trial: optuna.Trial, *, epochs: int) -> None:
        self._study = study
        self._trial = trial
        self._epochs = epochs
        self._objective = study.space.settings.objective
        self._reported = set(study.trials()[trial.number].intermediate_values)
        self._seconds_before = trial.user_attrs.get("seconds", 0.0)
        self._began = time.monotonic()

    def __call__(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        # A task that continues from a checkpoint may repeat a validation that was reported before.
        if epoch not in self._reported:
            self._trial.report(objective_of(metrics, self._objective), epoch)
        self.note_time()
        # After the last epoch there is no time left to save.
        if epoch < self._epochs and self._trial.should_prune():
            raise _Pruned(self._reason(epoch))

    def note_time(self) -> None:
        """Records the time that all tasks have spent on the trial so far."""
        elapsed = time.monotonic() - self._began
        self._trial.set_user_attr("seconds", round(self._seconds_before + elapsed, 1))

    def _reason(self, epoch: int) -> str:
        finished = [
            each.intermediate_values[epoch]
            for each in self._study.trials()
            if each.state == TrialState.COMPLETE and epoch in each.intermediate_values
        ]
        own = self._study.trials()[self._trial.number].intermediate_values.values()
        best = max(own) if self._study.space.settings.maximize else min(own)
        return (
            f"after epoch {epoch} its best {self._objective}, {best:.4f}, is worse than "
            f"{statistics.median(finished):.4f}, the median of {len(finished)} finished trials"
        )


def objective_of(metrics: Mapping[str, Any], objective: str) -> float:
    """Returns the objective from the metrics of a validation.

    Raises:
      UserError: it has no finite value.
    """
    value = metrics[objective]
    if value is None or not math.isfinite(value):
        raise UserError(f"config.sweep.objective={objective} of a validation is {value}")
    return float(value)


def _finish(study: SweepStudy, trial: optuna.Trial, reporter: _Reporter) -> float:
    """Records the results of a trained trial; returns the objective at the checkpoint it keeps."""
    checkpoint = find_checkpoint(study.workdir(trial.number))
    metadata = read_metadata(checkpoint)
    # `check_data` has refused data without a validation split.
    assert metadata.validation is not None
    value = objective_of(metadata.validation, study.space.settings.objective)
    variables = restore_variables(checkpoint, metadata.model)
    figures = {
        **measure_speed(metadata.model, variables),
        # The trained ones.
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "grid_hw": list(metadata.model.grid_hw),
        "best_epoch": metadata.epoch,
    }
    for name, figure in figures.items():
        trial.set_user_attr(name, figure)
    reporter.note_time()
    study.complete(trial.number, value)
    return value


class _Pruned(Exception):
    """Ends a training early; the text gives the reason."""


def measure_speed(spec: ModelSpec, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Measures network and decoding in one jit on the default device, from pixels in its memory.

    The fastest of all rounds counts, because other work on the device can only slow a round down.
    The first round, which compiles, does not count.

    Args:
      spec: description of the model.
      variables: its weights.

    Returns:
      `frames_per_second`, `device`, and `batch_size` of the measurement.
    """
    device = jax.devices()[0]
    shape = (SPEED_BATCH, *spec.image_hw, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = jax.device_put(pixels, device)
    weights = jax.device_put(dict(variables), device)
    predict = jax.jit(spec.predict)
    jax.block_until_ready(predict(weights, images))
    rounds = 0
    fastest = float("inf")
    began = time.perf_counter()
    while rounds < SPEED_MIN_ROUNDS or time.perf_counter() - began < SPEED_SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(predict(weights, images))
        fastest = min(fastest, time.perf_counter() - start)
        rounds += 1
    where = f"{device.platform} ({device.device_kind})"
    frames_per_second = SPEED_BATCH / fastest
    return {"frames_per_second": frames_per_second, "device": where, "batch_size": SPEED_BATCH}
