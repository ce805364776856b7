"""The training of one run, from its config to the metrics of its best checkpoint.

Reads top to bottom: `train_and_evaluate` prepares data and model and finds where to start;
`Trainer.run` takes the steps, validates and saves between them, and tests at the end.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from yogo_jax.checkpoint.metadata import Metadata, environment, git_revision
from yogo_jax.checkpoint.run_data import RunData, prepare_data, with_absolute_paths
from yogo_jax.checkpoint.store import (
    CheckpointStore,
    TrainState,
    find_checkpoint,
    read_metadata,
    record_validation,
    restore_state,
)
from yogo_jax.config.schema import Config
from yogo_jax.data.pipeline import PackedImages
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.files import make_folder
from yogo_jax.metrics.decisions import Goal
from yogo_jax.parallel import Devices, check_batch_size, check_same_everywhere
from yogo_jax.progress import said_while
from yogo_jax.reports.findings import advice_on_nothing_found
from yogo_jax.training.compilation import compile_train_step, duration_lines, seconds_of_call
from yogo_jax.training.feed import Feed, Work, make_feed, open_pack, training_source
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.rare_cells import CutCells, cut_cells, rare_cells_line
from yogo_jax.training.start import (
    Start,
    Teacher,
    adopt,
    complete_run_summary,
    find_start,
    initial_state,
    load_teacher,
    prepare_loss,
    prepare_spec,
    record_config,
    run_summary,
    training_order,
)
from yogo_jax.training.step import TrainStep, make_train_step
from yogo_jax.training.stopping import SaveStopPolicy, Stop, Stopped
from yogo_jax.training.tracking import Meter, SilentTracker, Tracker
from yogo_jax.training.validation import (
    STAYS_MOST_PROBABLE,
    Best,
    decide_best,
    evaluate_best,
    find_best,
    log_test,
    make_evaluator,
    other_decision_lines,
    read_test,
    validate,
    write_test,
)


OnValidation = Callable[[int, Mapping[str, Any]], None]


def train_and_evaluate(
    config: Config,
    workdir: Path,
    *,
    stop: Stop | None = None,
    on_validation: OnValidation | None = None,
) -> dict[str, Any]:
    """Trains, or continues what the workdir holds, and tests the best checkpoint.

    A run that is complete, with its test, is left as it is, and said to be so.

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
    with said_while("reading the data set", silent=not devices.first):
        data = prepare_data(config.data, config.augment, config.train)
    make_folder(workdir, "--workdir")
    # ---- model ----
    spec = prepare_spec(config, data.splits.train)
    teacher, data = load_teacher(config, spec, data, devices.copied)
    # ---- where to start ----
    start = find_start(config, workdir, data.fingerprint, data.hint_if_changed)
    trainer = Trainer(config, workdir, spec, data, devices, stop, start, teacher, on_validation)
    complete = trainer.test_of_complete()
    # All processes have looked before the first one changes anything.
    seen = {"config": config, "data": data.fingerprint, "checkpoint": start and start.folder}
    check_same_everywhere(devices, {**seen, "workdir": workdir, "test": complete})
    if devices.any(stop.is_requested):
        stop.raise_stopped()
    if start is not None and complete is not None:
        if devices.first:
            epochs, tested = start.metadata.epoch, bool(complete)
            lines = complete_run_summary(config, workdir, epochs, tested=tested)
            lines += other_decision_lines(config, workdir, validated=len(data.splits.val) > 0)
            print(*lines, sep="\n", flush=True)
        return complete if devices.first else {}
    if start is not None and not start.own and devices.first:
        adopt(start, workdir)
    # ---- steps and test ----
    return trainer.run()


@dataclasses.dataclass
class Trainer:
    """One run: what stays the same during it, and its phases.

    `start` is the checkpoint to go on from, `teacher` the network to imitate; None is none.
    """

    config: Config
    workdir: Path
    spec: ModelSpec
    data: RunData
    devices: Devices
    stop: Stop
    start: Start | None
    teacher: Teacher | None
    on_validation: OnValidation | None

    def __post_init__(self) -> None:
        config, data, start = self.config, self.data, self.start
        self._first_step = 0 if start is None else start.metadata.step
        # Whether the step computes some features twice; None before that is decided.
        self._rematerialized = None if start is None else start.metadata.rematerialized
        self._loss = prepare_loss(config, data.splits.train)
        self._order = training_order(config, data.splits.train)
        self._steps_per_epoch = self._order.steps_per_epoch
        self._total_steps = config.train.epochs * self._steps_per_epoch
        self._schedule = learning_rate_schedule(
            config.optim, self._total_steps, steps_per_epoch=self._steps_per_epoch
        )
        self._tx = make_optimizer(config.optim, self._schedule)
        # One for each model: a checkpoint that was calibrated since is another than the run's. And
        # the test is made as the best checkpoint decides.
        self._evaluator_of = functools.cache(
            lambda spec, thresholds: make_evaluator(
                spec, config, data.max_boxes, self.devices, thresholds
            )
        )
        self._packs: dict[str, PackedImages | None] = {}
        self._rare_cells: CutCells | None = None
        self._advised = False
        self._revision = git_revision()
        self._tracker: Tracker = SilentTracker()

    def run(self) -> dict[str, Any]:
        """Takes all steps that are left and tests, see `train_and_evaluate`."""
        if self.devices.first:
            self._tracker = Tracker(
                self.config,
                self.workdir,
                total_steps=self._total_steps,
                first_step=self._first_step,
                validated=not self._lacks_validation,
            )
        with self._tracker:
            self._say_start()
            state = self._first_state()
            if self.devices.first:
                record_config(self.config, self.workdir)
            self._train(self.devices.copy(state))
            return self._test(self._decided())

    def _say_start(self) -> None:
        self._tracker.start(self._first_step, environment(self.devices))
        for line in (
            *run_summary(self.data, self.spec),
            f"device: {self.devices}; {self._total_steps} steps of "
            f"{self.config.train.batch_size} images; workdir {self.workdir}",
        ):
            self._tracker.say(line)

    def _first_state(self) -> TrainState:
        self._tracker.doing("preparing the weights")
        if self.start is None:
            return initial_state(self.config, self.spec, self._tx, self._tracker.say)
        folder = self.start.folder
        self._tracker.say(f"continuing {folder} at step {self._first_step} of {self._total_steps}")
        averages = self.config.optim.ema_decay > 0
        return restore_state(folder, self.spec, self._tx, self.devices.copied, averages=averages)

    # ---- steps ----

    def _train(self, state: TrainState) -> None:
        """Takes the steps from the start to the last, with validations and checkpoints between.

        Raises:
          Stopped: the run was asked to stop; everything is saved.
        """
        self._open_packs()
        if self._lacks_validation:
            self._make_up_for_validation(state)
        if not self._is_over_early() and self._first_step < self._total_steps:
            self._cut_rare_cells()
            self._take_steps(state)

    def _open_packs(self) -> None:
        # Several processes do not all pack, so that they cannot agree to stop in between; but if
        # all of them get the signal, each may just end, since nothing is at stake here.
        alone = self.devices.share.count == 1
        check = self._check_stop if alone else lambda: None
        with self.stop.end_at_once() if self.stop.may_end_at_once and not alone else nullcontext():
            for name in ("train", "val"):
                records = getattr(self.data.splits, name)
                self._packs[name] = open_pack(
                    name, records, self.spec, self.config.data, self._tracker, check
                )

    def _cut_rare_cells(self) -> None:
        train, augment = self.data.splits.train, self.config.augment
        if not augment.rare_cells:
            return
        self._tracker.doing("cutting rare cells from the training images")
        source = training_source(self.data, self.spec, self._packs["train"])
        weights = augment.rare_cells_weights
        self._rare_cells = cut_cells(train, lambda index: source[index]["image"], weights)
        self._tracker.say(rare_cells_line(train, self._rare_cells, augment.rare_cells))

    def _take_steps(self, state: TrainState) -> None:
        config, devices, tracker = self.config, self.devices, self._tracker
        tracker.doing("reading the images")
        feed = make_feed(self.data, self.spec, config, self._order, devices, self._packs["train"])
        done = self._first_step
        image_paths = self.data.splits.train.image_paths
        meter = Meter(self._order, tracker, config.train.epochs, image_paths)
        with (
            CheckpointStore(self.workdir / "checkpoints", config.train.keep_best) as store,
            feed.open(done) as works,
            self.stop.defer_stop(),
        ):
            save_every = config.train.checkpoint_every_minutes * 60
            policy = SaveStopPolicy(self.stop, devices, save_every=save_every)
            step = None
            for work in works:
                requests = policy.requests()
                if step is None:
                    step = self._compile_step(feed, state, work, requests)
                    meter.skip_time()
                state, metrics, requests = step(state, work.inputs, requests)
                meter.add(done, work.steps, metrics)
                done += work.steps
                decision = policy.decide(requests)
                validates = self._validates_after(done)
                if not (validates or decision.save or decision.stop):
                    continue
                meter.finish()
                validation, stopped = None, decision.stop
                if validates and not stopped:
                    try:
                        validation = self._validate(state, done)
                    except Stopped:
                        # The next start repeats it.
                        stopped = True
                store.save(state, self._metadata(done, validation))
                policy.saved()
                tracker.doing("training")
                self._tell(done, validation)
                if stopped:
                    store.wait()
                    tracker.say(
                        f"step {done} of {self._total_steps} is saved; "
                        f"go on with --workdir {self.workdir}"
                    )
                    self.stop.raise_stopped()
                if validates and self._stops_early(done, store.best_step):
                    break
                meter.skip_time()

    def _compile_step(
        self, feed: Feed, state: TrainState, work: Work, requests: jax.Array
    ) -> jax.stages.Compiled:
        """The training step, compiled for this machine's memory; says how long an epoch takes.

        Nothing is at stake in it yet, so that a signal may end the process.
        """
        tracker, image_hw = self._tracker, self.spec.image_hw
        with self.stop.end_at_once() if self.stop.may_end_at_once else nullcontext():
            tracker.doing("compiling the training step")
            step, self._rematerialized = compile_train_step(
                lambda rematerialize: feed.steps_of(self._make_step(rematerialize)),
                state,
                work.inputs,
                self.devices,
                batch_size=self._order.batch_size,
                image_hw=image_hw,
                rematerialized=self._rematerialized,
                say=tracker.say,
            )
            tracker.doing("measuring how long a step takes")
            seconds = seconds_of_call(step, state, work.inputs, requests, self.devices)
        for line in duration_lines(
            seconds / work.steps,
            steps_per_epoch=self._steps_per_epoch,
            steps_left=self._total_steps - self._first_step,
            image_hw=image_hw,
            small_network=self.spec.architecture.startswith("yogo_"),
            on_cpu=self.devices.on_cpu,
        ):
            tracker.say(line)
        tracker.doing("taking the first steps")
        return step

    def _make_step(self, rematerialize: bool) -> TrainStep:
        config = self.config
        steps_without_paste = config.augment.epochs_without_paste * self._steps_per_epoch
        return make_train_step(
            self.spec,
            self._tx,
            self._schedule,
            loss=self._loss,
            augment=config.augment,
            seed=config.seed,
            compute_dtype=config.model.dtype,
            ema_decay=config.optim.ema_decay,
            steps_with_paste=self._total_steps - steps_without_paste,
            teacher=self.teacher,
            imitation=config.loss.imitation,
            thumbnails=self.data.thumbnails,
            rare_cells=self._rare_cells,
            rematerialize=rematerialize,
        )

    def _metadata(self, done: int, validation: dict[str, Any] | None) -> Metadata:
        return Metadata(
            model=self.spec,
            config=self.config.to_dict(),
            step=done,
            epoch=done // self._steps_per_epoch,
            position=self._order.position_after(done),
            data_fingerprint=self.data.fingerprint,
            validation=validation,
            git_revision=self._revision,
            rematerialized=bool(self._rematerialized),
            split_is_usual=self.data.splits.split_is_usual,
        )

    # ---- validations ----

    def _validates_after(self, done: int) -> bool:
        """True if the checkpoint after `done` steps is one to be validated."""
        epoch, rest = divmod(done, self._steps_per_epoch)
        if rest or len(self.data.splits.val) == 0:
            # Without a validation split the end of the last epoch still is a checkpoint.
            return done == self._total_steps
        return epoch % self.config.train.eval_every_epochs == 0 or done == self._total_steps

    def _validate(self, state: TrainState, done: int) -> dict[str, Any] | None:
        metrics = validate(
            self._evaluator_of(self.spec, Thresholds()),
            state.variables,
            self.data.splits.val,
            self._tracker,
            step=done,
            epoch=done // self._steps_per_epoch,
            before_batch=self._check_stop,
            packed=self._packs["val"],
        )
        advice = None if metrics is None else advice_on_nothing_found(metrics)
        # Once in a run is enough.
        if advice is not None and not self._advised:
            self._advised = True
            self._tracker.say(advice)
        return metrics

    @property
    def _lacks_validation(self) -> bool:
        """True if the run stopped before the validation of its checkpoint was over."""
        if self.start is None or self.start.metadata.validation is not None:
            return False
        return len(self.data.splits.val) > 0 and self._validates_after(self._first_step)

    def _make_up_for_validation(self, state: TrainState) -> None:
        step = self._first_step
        with self.stop.defer_stop():
            validation = self._validate(state, step)
            folder = self.workdir / "checkpoints" / str(step)
            record_validation(folder, self._metadata(step, validation))
            self.devices.wait("validated")
        self._tell(step, validation)

    def _tell(self, done: int, validation: dict[str, Any] | None) -> None:
        if self.on_validation is not None and validation is not None:
            self.on_validation(done // self._steps_per_epoch, validation)

    def _check_stop(self) -> None:
        # For places that all processes come to and that can be left as they are.
        self.stop.check(self.devices.any)

    def _is_over_early(self) -> bool:
        """True, and said, if the run that goes on had lost its patience at its checkpoint."""
        done = self._first_step
        # Asked where a run that was not stopped asks: after a validation.
        if self.start is None or not self._validates_after(done):
            return False
        return self._stops_early(done, read_metadata(find_checkpoint(self.workdir)).step)

    def _stops_early(self, done: int, best_step: int | None) -> bool:
        """True, and said, if `train.patience` epochs have gone by since the best validation."""
        train, patience = self.config.train, self.config.train.patience * self._steps_per_epoch
        if patience == 0 or best_step is None or done - best_step < patience:
            return False
        self._tracker.say(
            f"stopped early, after epoch {done // self._steps_per_epoch}: no better "
            f"{train.keep_best} since epoch {best_step // self._steps_per_epoch} "
            f"(train.patience is {train.patience})"
        )
        return True

    # ---- test ----

    def _decided(self) -> Best:
        """The best checkpoint, with the decision that the config asks for."""
        best, val, goal = find_best(self.workdir), self.data.splits.val, self.config.train.decision
        if goal == "most_probable" or not self._lacks_decision(best):
            return best
        self._tracker.doing(f"choosing thresholds of classes by {len(val)} validation images")
        with self.stop.defer_stop():
            return decide_best(
                self._evaluator_of,
                best,
                val,
                Goal(goal),
                before_batch=self._check_stop,
                packed=self._packs["val"],
                say=self._tracker.say,
            )

    def _lacks_decision(self, best: Best) -> bool:
        # One that is there is of an earlier start, or of a calibration.
        if self.config.train.decision == "most_probable" or best.metadata.decision is not None:
            return False
        if len(self.data.splits.val) == 0:
            self._tracker.say(f"no validation split in this data set: {STAYS_MOST_PROBABLE}")
            return False
        return True

    def _test(self, best: Best) -> dict[str, Any]:
        """Metrics of the best checkpoint on the test split, written and printed by one process."""
        records = self.data.splits.test
        if len(records) == 0:
            self._tracker.say("no test split in this data set: nothing is tested")
            return {}
        self._tracker.doing(f"testing with {len(records)} images")
        with self.stop.defer_stop():
            result = evaluate_best(self._evaluator_of, best, records, before_batch=self._check_stop)
        if not self.devices.first:
            return {}
        with self.stop.allow_stop():
            metrics = write_test(result, self.workdir, self._tracker)
        log_test(result, metrics, self._total_steps, self._tracker)
        return metrics

    def test_of_complete(self) -> dict[str, Any] | None:
        """Test metrics of a run that has nothing left to do, none at all without a test split.

        None if something is left: steps, a validation, a decision, or the test.
        """
        if self.start is None or not self.start.own or self._lacks_validation:
            return None
        if self._first_step < self._total_steps and not self._is_over_early():
            return None
        if len(self.data.splits.test) > 0:
            return read_test(self.workdir)
        return None if self._lacks_decision(find_best(self.workdir)) else {}
