"""What stays the same during a run, and its phases: steps, validations, checkpoints, test."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from yogo_jax.checkpoint.metadata import Metadata, git_revision
from yogo_jax.checkpoint.run_data import RunData
from yogo_jax.checkpoint.state import TrainState
from yogo_jax.checkpoint.store import (
    CheckpointStore,
    find_checkpoint,
    read_metadata,
    record_validation,
)
from yogo_jax.config.schema import Config
from yogo_jax.data.pipeline import EpochOrder
from yogo_jax.data.source import PackedImages, RecordSource
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.evaluator import IMAGES_AT_A_TIME, Evaluator
from yogo_jax.parallel import Devices
from yogo_jax.training.distributed import compile_train_step
from yogo_jax.training.feed import DeviceFeed, Feed, HostFeed, Work, fits_on_device, open_pack
from yogo_jax.training.memory import (
    SHORT_CALL_S,
    compile_that_fits,
    duration_lines,
    seconds_of_call,
)
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.pace import Pace
from yogo_jax.training.resume import Start
from yogo_jax.training.setup import prepare_loss, prepare_train_step
from yogo_jax.training.step import Teacher
from yogo_jax.training.stopping import Stop, Stopped
from yogo_jax.training.testing import evaluate_best, log_test, read_test, write_test
from yogo_jax.training.tracking import Meter, SilentTracker, Tracker
from yogo_jax.training.validation import Validator


OnValidation = Callable[[int, Mapping[str, Any]], None]


class Run:
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
        teacher: Teacher | None,
    ) -> None:
        self.config = config
        self.workdir = workdir
        self.spec = spec
        self.data = data
        self.stop = stop
        self.devices = devices
        self.on_validation = on_validation
        self.teacher = teacher
        self.loss = prepare_loss(config, data.splits.train)
        self.order = EpochOrder(
            num_records=len(data.splits.train),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        self.total_steps = config.train.epochs * self.order.steps_per_epoch
        self.schedule = learning_rate_schedule(
            config.optim, self.total_steps, steps_per_epoch=self.order.steps_per_epoch
        )
        self.tx = make_optimizer(config.optim, self.schedule)
        self.evaluator = self._make_evaluator(spec)
        self.validator = Validator(
            self.evaluator,
            data.splits.val,
            steps_per_epoch=self.order.steps_per_epoch,
            epochs=config.train.epochs,
            every_epochs=config.train.eval_every_epochs,
        )
        self.packs: dict[str, PackedImages | None] = {}
        # Whether the step computes some features twice; None before that is decided.
        self.rematerialized: bool | None = None
        self._revision = git_revision()

    def _make_evaluator(self, spec: ModelSpec) -> Evaluator:
        config = self.config
        return Evaluator(
            spec,
            loss_weights=config.loss.for_evaluation(),
            batch_size=min(config.train.batch_size, IMAGES_AT_A_TIME),
            max_boxes=self.data.max_boxes,
            workers=config.data.workers,
            devices=self.devices,
        )

    def _evaluator_of(self, spec: ModelSpec) -> Evaluator:
        """The run's own, unless the model is another: a checkpoint that was calibrated since."""
        return self.evaluator if spec == self.spec else self._make_evaluator(spec)

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
        if start is not None:
            # First of all: a validation that is made up for writes it into its checkpoint again.
            self.rematerialized = start.metadata.rematerialized
        self._open_packs(tracker)
        if start is not None and self.lacks_validation(start):
            self._validate_start(state, start.metadata.step, tracker)
        done = 0 if start is None else start.metadata.step
        # Asked where a run that was not stopped asks: after a validation.
        ends = (
            start is not None
            and self.validator.is_due(done)
            and self._lost_patience(
                done, read_metadata(find_checkpoint(self.workdir)).step, tracker
            )
        )
        if done < self.total_steps and not ends:
            self._take_steps(state, start, tracker)

    def _validate_start(self, state: TrainState, step: int, tracker: Tracker) -> None:
        with self.stop.held():
            validation = self._validate(state, step, tracker)
            folder = self.workdir / "checkpoints" / str(step)
            record_validation(folder, self._metadata(step, validation))
            self.devices.wait("validated")
        self._tell(step, validation)

    def _validate(self, state: TrainState, done: int, tracker: Tracker) -> dict[str, Any] | None:
        return self.validator.run(state, done, tracker, self.check, self.packs.get("val"))

    def _open_packs(self, tracker: Tracker) -> None:
        # Several processes do not all pack, so that they cannot agree to stop in between; but if
        # all of them get the signal, each may just end, since nothing is at stake here.
        alone = self.devices.share.count == 1
        at_once = nullcontext() if alone or not self.stop.ends_all else self.stop.at_once()
        with at_once:
            for name in ("train", "val"):
                records = getattr(self.data.splits, name)
                check = self.check if alone else lambda: None
                self.packs[name] = open_pack(
                    name, records, self.spec, self.config.data, tracker, check
                )

    def _make_feed(self) -> Feed:
        source = RecordSource(
            self.data.splits.train,
            image_hw=self.spec.image_hw,
            rgb=self.spec.rgb,
            max_boxes=self.data.max_boxes,
            apply_orientation=self.spec.apply_orientation,
            packed=self.packs.get("train"),
        )
        order, devices, data = self.order, self.devices, self.config.data
        epochs = self.config.train.epochs
        if data.cache == "device" or (data.cache == "auto" and fits_on_device(source, devices)):
            return DeviceFeed(source, order, epochs=epochs, devices=devices)
        return HostFeed(source, order, epochs=epochs, workers=data.workers, devices=devices)

    def _take_steps(self, state: TrainState, start: Start | None, tracker: Tracker) -> None:
        config, order, devices = self.config, self.order, self.devices
        tracker.doing("reading the images")
        feed = self._make_feed()
        done = first_step = 0 if start is None else start.metadata.step
        meter = Meter(
            order,
            tracker,
            epochs=config.train.epochs,
            image_paths=self.data.splits.train.image_paths,
        )
        with (
            CheckpointStore(self.workdir / "checkpoints", config.train.keep_best) as store,
            feed.open(first_step) as works,
            self.stop.held(),
        ):
            save_every = config.train.checkpoint_every_minutes * 60
            pace = Pace(self.stop, devices, save_every=save_every)
            step_fn = None
            for work in works:
                wishes = pace.wishes()
                if step_fn is None:
                    # Nothing is at stake in it yet, so that a signal may end the process.
                    prepare = self.stop.at_once_in_first_call(self._prepare_step)
                    step_fn = prepare(feed, state, work, wishes, done, tracker)
                    meter.skip_time()
                state, metrics, wishes = step_fn(state, work.inputs, wishes)
                meter.add(done, work.steps, metrics)
                done += work.steps
                decision = pace.decide(wishes)
                validates = self.validator.is_due(done)
                if not (validates or decision.save or decision.stop):
                    continue
                meter.finish()
                validation, stopped = None, decision.stop
                if validates and not stopped:
                    try:
                        validation = self._validate(state, done, tracker)
                    except Stopped:
                        # The next start repeats it.
                        stopped = True
                store.save(state, self._metadata(done, validation))
                pace.saved()
                tracker.doing("training")
                self._tell(done, validation)
                if stopped:
                    store.wait()
                    tracker.say(
                        f"step {done} of {self.total_steps} is saved; "
                        f"go on with --workdir {self.workdir}"
                    )
                    self.stop.leave()
                if validates and self._lost_patience(done, store.best_step, tracker):
                    break
                meter.skip_time()

    def _prepare_step(
        self,
        feed: Feed,
        state: TrainState,
        work: Work,
        wishes: jax.Array,
        done: int,
        tracker: Tracker,
    ) -> jax.stages.Compiled:
        """The training step, compiled for this machine's memory; says how long an epoch takes.

        Args:
          feed: gave the work.
          state: that the first step takes; it stays as it is.
          work: of the first call.
          wishes: of the processes.
          done: steps of the run so far.
          tracker: takes lines.

        Raises:
          UserError: it needs more memory than is free.
        """
        config, order = self.config, self.order
        closed_steps = config.augment.epochs_without_paste * order.steps_per_epoch

        def lowered(rematerialize: bool, batch_size: int) -> jax.stages.Lowered:
            train_step = prepare_train_step(
                config,
                self.spec,
                self.data,
                self.tx,
                self.schedule,
                loss=self.loss,
                teacher=self.teacher,
                composed_steps=self.total_steps - closed_steps,
                rematerialize=rematerialize,
            )
            step = compile_train_step(feed.steps_of(train_step), self.devices, feed.shardings)
            return step.lower(state, feed.shapes(work.inputs, batch_size), wishes)

        tracker.doing("compiling the training step")
        step_fn, self.rematerialized = compile_that_fits(
            lowered,
            self.devices,
            batch_size=order.batch_size,
            image_hw=self.spec.image_hw,
            before=self.rematerialized,
            say=tracker.say,
        )
        tracker.doing("measuring how long a step takes")
        seconds = seconds_of_call(step_fn, state, work.inputs, wishes)
        # All processes take part in a call, so that all have to decide the same.
        if self.devices.any(seconds < SHORT_CALL_S):
            seconds = seconds_of_call(step_fn, state, work.inputs, wishes)
        ways = []
        if not self.spec.architecture.startswith("yogo_"):
            ways.append("the faster network of --config configs/strong.py")
        if self.devices.mesh.devices.flat[0].platform == "cpu":
            ways.append("a GPU")
        for line in duration_lines(
            seconds / work.steps,
            steps_per_epoch=order.steps_per_epoch,
            steps_left=self.total_steps - done,
            image_hw=self.spec.image_hw,
            ways=tuple(ways),
        ):
            tracker.say(line)
        tracker.doing("taking the first steps")
        return step_fn

    def test_of_complete(self, start: Start | None) -> dict[str, Any] | None:
        """Test metrics of a run that has nothing left to do, none at all without a test split.

        None if something is left: steps, a validation, or the test.
        """
        if start is None or not start.own or self.lacks_validation(start):
            return None
        done = start.metadata.step
        if done < self.total_steps:
            best = read_metadata(find_checkpoint(self.workdir)).step
            if not self.validator.is_due(done) or not self._is_out_of_patience(done, best):
                return None
        return {} if len(self.data.splits.test) == 0 else read_test(self.workdir)

    def _is_out_of_patience(self, done: int, best_step: int | None) -> bool:
        """Whether `train.patience` epochs have gone by since the best validation."""
        patience, spe = self.config.train.patience, self.order.steps_per_epoch
        return bool(patience) and best_step is not None and done - best_step >= patience * spe

    def _lost_patience(self, done: int, best_step: int | None, tracker: Tracker) -> bool:
        patience, spe = self.config.train.patience, self.order.steps_per_epoch
        if best_step is None or not self._is_out_of_patience(done, best_step):
            return False
        tracker.say(
            f"stopped early, after epoch {done // spe}: no better "
            f"{self.config.train.keep_best} since epoch {best_step // spe} "
            f"(train.patience is {patience})"
        )
        return True

    def test(self, tracker: Tracker) -> dict[str, Any]:
        """Metrics of the best checkpoint on the test split, written and printed by one process."""
        records = self.data.splits.test
        if len(records) == 0:
            tracker.say("no test split in this data set: nothing is tested")
            return {}
        tracker.doing(f"testing with {len(records)} images")
        with self.stop.held():
            found = evaluate_best(self._evaluator_of, self.workdir, records, self.check)
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
            rematerialized=bool(self.rematerialized),
            split_is_usual=self.data.splits.split_is_usual,
        )
