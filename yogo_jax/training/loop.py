"""The training of one run, from its config to the metrics of its best checkpoint.

`train_and_evaluate` reads top to bottom: data, model, where to start, steps, test.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yogo_jax.config import Config
from yogo_jax.data.pipeline import EpochOrder, open_batches
from yogo_jax.data.source import RecordSource
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.devices import Devices
from yogo_jax.evaluation.evaluator import IMAGES_AT_A_TIME, Evaluator
from yogo_jax.output.files import make_folder
from yogo_jax.training.checkpoints import CheckpointStore, record_validation, restore_state
from yogo_jax.training.distributed import (
    check_batch_size,
    check_same_everywhere,
    compile_train_step,
)
from yogo_jax.training.environment import environment
from yogo_jax.training.metadata import Metadata, git_revision
from yogo_jax.training.meter import Meter
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.pace import Pace
from yogo_jax.training.preemption import Stop, Stopped
from yogo_jax.training.resume import Start, adopt, find_start, record_config
from yogo_jax.training.setup import (
    RunData,
    initial_state,
    lines_of,
    prepare_data,
    prepare_spec,
    with_absolute_paths,
)
from yogo_jax.training.state import TrainState
from yogo_jax.training.step import make_train_step
from yogo_jax.training.testing import evaluate_best, log_test, write_test
from yogo_jax.training.tracking import SilentTracker, Tracker
from yogo_jax.training.validation import Validator


OnValidation = Callable[[int, Mapping[str, Any]], None]


def train_and_evaluate(
    config: Config,
    workdir: Path,
    *,
    stop: Stop | None = None,
    on_validation: OnValidation | None = None,
) -> dict[str, Any]:
    """Trains, or continues what the workdir holds, and tests the best checkpoint.

    Args:
      config: the run.
      workdir: receives config.json, checkpoints/, metrics.jsonl, train.log and test/.
      stop: asks the run to stop early; what it has done is saved first.
      on_validation: called after each validation with the epochs done and its metrics; what it
        raises ends the run, after the checkpoint of that validation is written.

    Returns:
      The metrics of the test split, as in test/metrics.json; empty without a test split, and in all
      processes of a run but the first.

    Raises:
      UserError: data or config cannot be used, the workdir holds another run, or the loss is no
        longer finite.
      Stopped: it was asked to stop; the same call goes on.
    """
    stop = Stop() if stop is None else stop
    stop.limit(config.train.max_hours)
    devices = Devices()
    check_batch_size(config.train.batch_size, devices)
    config = with_absolute_paths(config)
    # ---- data ----
    data = prepare_data(config.data)
    make_folder(workdir, "--workdir")
    # ---- model ----
    spec = prepare_spec(config, data.splits.train)
    # ---- where to start ----
    start = find_start(config, workdir, data.fingerprint)
    run = _Run(config, workdir, spec, data, stop, devices, on_validation)
    # All processes have looked before the first one changes anything.
    seen = {"config": config, "data": data.fingerprint, "checkpoint": start and start.folder}
    check_same_everywhere(devices, {**seen, "workdir": workdir})
    if devices.any(stop.noted):
        stop.leave()
    if start is not None and not start.own and devices.first:
        adopt(start, workdir)
    with run.tracker(start) as tracker:
        tracker.start(0 if start is None else start.metadata.step, environment(devices))
        for line in lines_of(data, spec):
            tracker.say(line)
        tracker.say(
            f"device: {devices}; {run.total_steps} steps of {config.train.batch_size} images; "
            f"workdir {workdir}"
        )
        # ---- steps ----
        if start is None:
            state = initial_state(config, spec, run.tx, tracker.say)
        else:
            step = start.metadata.step
            tracker.say(f"continuing {start.folder} at step {step} of {run.total_steps}")
            state = restore_state(start.folder, spec, run.tx, devices.copied)
        if devices.first:
            record_config(config, workdir)
        run.train(devices.copy(state), start, tracker)
        # ---- test ----
        return run.test(tracker)


class _Run:
    """What stays the same during a run, and the pieces that its phases share."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        spec: ModelSpec,
        data: RunData,
        stop: Stop,
        devices: Devices,
        on_validation: OnValidation | None,
    ) -> None:
        self.config = config
        self.workdir = workdir
        self.spec = spec
        self.data = data
        self.stop = stop
        self.devices = devices
        self.on_validation = on_validation
        self.order = EpochOrder(
            num_records=len(data.splits.train),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        self.total_steps = config.train.epochs * self.order.steps_per_epoch
        self.tx = make_optimizer(config.optim, self.total_steps)
        self.evaluator = Evaluator(
            spec,
            loss_weights=config.loss,
            batch_size=min(config.train.batch_size, IMAGES_AT_A_TIME),
            max_boxes=data.max_boxes,
            workers=config.data.workers,
            devices=devices,
        )
        self.validator = Validator(
            self.evaluator,
            data.splits.val,
            steps_per_epoch=self.order.steps_per_epoch,
            epochs=config.train.epochs,
            every_epochs=config.train.eval_every_epochs,
        )
        self._revision = git_revision()

    def lacks_validation(self, start: Start | None) -> bool:
        """Whether the run stopped before the validation of this checkpoint was over."""
        if start is None or start.metadata.validation is not None:
            return False
        return len(self.data.splits.val) > 0 and self.validator.is_due(start.metadata.step)

    def tracker(self, start: Start | None) -> Tracker:
        """Where this process reports to."""
        if not self.devices.first:
            return SilentTracker()
        return Tracker(
            self.config,
            self.workdir,
            total_steps=self.total_steps,
            first_step=0 if start is None else start.metadata.step,
            validated=not self.lacks_validation(start),
        )

    def train(self, state: TrainState, start: Start | None, tracker: Tracker) -> None:
        """Steps from the start to the last, with validations and checkpoints between.

        Raises:
          Stopped: the run was asked to stop; everything is saved.
        """
        if start is not None and self.lacks_validation(start):
            self._validate_start(state, start.metadata.step, tracker)
        if start is None or start.metadata.step < self.total_steps:
            self._take_steps(state, start, tracker)

    def _validate_start(self, state: TrainState, step: int, tracker: Tracker) -> None:
        with self.stop.held():
            validation = self.validator.run(state, step, tracker, self.check)
            folder = self.workdir / "checkpoints" / str(step)
            record_validation(folder, self._metadata(step, validation))
            self.devices.wait("validated")
        self._tell(step, validation)

    def _take_steps(self, state: TrainState, start: Start | None, tracker: Tracker) -> None:
        config, order = self.config, self.order
        devices = self.devices
        train_step = make_train_step(
            self.spec,
            self.tx,
            learning_rate_schedule(config.optim, self.total_steps),
            loss=config.loss,
            augment=config.augment,
            seed=config.seed,
        )
        step_fn = self.stop.at_once_in_first_call(compile_train_step(train_step, devices))
        source = RecordSource(
            self.data.splits.train,
            image_hw=self.spec.image_hw,
            rgb=self.spec.rgb,
            max_boxes=self.data.max_boxes,
        )
        meter = Meter(
            order,
            tracker,
            epochs=config.train.epochs,
            image_paths=self.data.splits.train.image_paths,
        )
        with (
            CheckpointStore(self.workdir / "checkpoints") as store,
            open_batches(
                source,
                order,
                epochs=config.train.epochs,
                position=0 if start is None else start.metadata.position,
                workers=config.data.workers,
                share=devices.share,
            ) as batches,
            self.stop.held(),
        ):
            save_every = config.train.checkpoint_every_minutes * 60
            pace = Pace(self.stop, devices, save_every=save_every)
            first_step = 0 if start is None else start.metadata.step
            for step, batch in enumerate(batches, start=first_step):
                state, metrics, wishes = step_fn(state, devices.spread(batch), pace.wishes())
                meter.add(step, metrics)
                done = step + 1
                decision = pace.decide(wishes)
                validates = self.validator.is_due(done)
                if not (validates or decision.save or decision.stop):
                    continue
                meter.finish()
                validation, stopped = None, decision.stop
                if validates and not stopped:
                    try:
                        validation = self.validator.run(state, done, tracker, self.check)
                    except Stopped:
                        # The next start repeats it.
                        stopped = True
                store.save(state, self._metadata(done, validation))
                pace.saved()
                self._tell(done, validation)
                if stopped:
                    store.wait()
                    tracker.say(
                        f"step {done} of {self.total_steps} is saved; "
                        f"go on with --workdir {self.workdir}"
                    )
                    self.stop.leave()
                meter.skip_time()

    def test(self, tracker: Tracker) -> dict[str, Any]:
        """Metrics of the best checkpoint on the test split, written and printed by one process."""
        records = self.data.splits.test
        if len(records) == 0:
            tracker.say("no test split in this data set: nothing is tested")
            return {}
        with self.stop.held():
            found = evaluate_best(self.evaluator, self.workdir, records, self.check)
        if not self.devices.first:
            return {}
        with self.stop.released():
            metrics = write_test(found, self.workdir, len(records), tracker)
        log_test(found, metrics, self.total_steps, tracker)
        return metrics

    def check(self) -> None:
        """For places that all processes come to and that can be left as they are.

        Raises:
          Stopped: one of them is to stop.
        """
        self.stop.check(self.devices.any)

    def _tell(self, done: int, validation: dict[str, Any] | None) -> None:
        if self.on_validation is not None and validation is not None:
            self.on_validation(done // self.order.steps_per_epoch, validation)

    def _metadata(self, done: int, validation: dict[str, Any] | None) -> Metadata:
        return Metadata(
            model=self.spec,
            config=self.config.to_dict(),
            step=done,
            epoch=done // self.order.steps_per_epoch,
            position=self.order.position_after(done),
            data_fingerprint=self.data.fingerprint,
            validation=validation,
            git_revision=self._revision,
        )
