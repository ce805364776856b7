"""The training of one run, from its config to the metrics of its best checkpoint.

`train_and_evaluate` reads top to bottom: data, model, where to start, steps, test.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from yogo_jax.config import Config
from yogo_jax.data.pipeline import EpochOrder, open_batches
from yogo_jax.data.records import Records
from yogo_jax.data.source import RecordSource
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.evaluator import Evaluator
from yogo_jax.output.files import make_folder
from yogo_jax.training.checkpoints import CheckpointStore, restore_state
from yogo_jax.training.metadata import Metadata, git_revision
from yogo_jax.training.meter import Meter, NotFiniteError
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.resume import adopt, find_start, record_config
from yogo_jax.training.setup import (
    RunData,
    initial_state,
    prepare_data,
    prepare_spec,
    with_absolute_paths,
)
from yogo_jax.training.state import TrainState
from yogo_jax.training.step import make_train_step
from yogo_jax.training.testing import write_test
from yogo_jax.training.tracking import Tracker


OnValidation = Callable[[int, Mapping[str, Any]], None]


def train_and_evaluate(
    config: Config, workdir: Path, on_validation: OnValidation | None = None
) -> dict[str, Any]:
    """Trains, or continues what the workdir holds, and tests the best checkpoint.

    Args:
      config: the run.
      workdir: receives config.json, checkpoints/, metrics.jsonl, train.log and test/.
      on_validation: called after each validation with the epochs done and its metrics; what it
        raises ends the run, after the checkpoint of that validation is written.

    Returns:
      The metrics of the test split, as in test/metrics.json; empty without a test split.

    Raises:
      UserError: data or config cannot be used, the workdir holds another run, or the loss is no
        longer finite.
    """
    config = with_absolute_paths(config)
    # ---- data ----
    data = prepare_data(config.data)
    make_folder(workdir, "--workdir")
    # ---- model ----
    spec = prepare_spec(config, data.splits.train)
    # ---- where to start ----
    start = find_start(config, workdir, data.fingerprint)
    run = _Run(config, workdir, spec, data)
    first_step = 0 if start is None else start.metadata.step
    position = 0 if start is None else start.metadata.position
    if start is not None and not start.own:
        adopt(start, workdir)
    with Tracker(config, workdir, total_steps=run.total_steps, first_step=first_step) as tracker:
        _describe(run, tracker)
        # ---- steps ----
        if start is None:
            state = initial_state(config, spec, run.tx, tracker.say)
        else:
            tracker.say(f"continuing {start.folder} at step {first_step} of {run.total_steps}")
            state = restore_state(start.folder, spec, run.tx)
        record_config(config, workdir)
        run.train(state, first_step, position, tracker, on_validation)
        # ---- test ----
        return run.test(tracker)


def _describe(run: "_Run", tracker: Tracker) -> None:
    splits, spec = run.data.splits, run.spec
    for line in splits.report.lines():
        tracker.say(line)
    counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "val", "test"))
    device = jax.devices()[0]
    rows, columns = spec.grid_hw
    tracker.say(
        f"images: {counts}; {spec.architecture} on {spec.image_hw[0]}x{spec.image_hw[1]} px, grid "
        f"{rows}x{columns}, anchor {spec.anchor_wh[0]:.4f},{spec.anchor_wh[1]:.4f}, up to "
        f"{run.data.max_boxes} boxes an image"
    )
    tracker.say(
        f"device: {device.platform} ({device.device_kind}); {run.total_steps} steps of "
        f"{run.order.batch_size} images; workdir {run.workdir}"
    )


class _Run:
    """What stays the same during a run, and the pieces that its phases share."""

    def __init__(self, config: Config, workdir: Path, spec: ModelSpec, data: RunData) -> None:
        self.config = config
        self.workdir = workdir
        self.spec = spec
        self.data = data
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
            batch_size=config.train.batch_size,
            max_boxes=data.max_boxes,
            workers=config.data.workers,
        )
        self._revision = git_revision()

    def train(
        self,
        state: TrainState,
        first_step: int,
        position: int,
        tracker: Tracker,
        on_validation: OnValidation | None,
    ) -> None:
        """Steps from `first_step` to the last, with validations and checkpoints between.

        `position` is the number of images that the steps before have consumed.
        """
        if first_step >= self.total_steps:
            return
        config, order = self.config, self.order
        step_fn = jax.jit(
            make_train_step(
                self.spec,
                self.tx,
                learning_rate_schedule(config.optim, self.total_steps),
                loss=config.loss,
                augment=config.augment,
                seed=config.seed,
            ),
            donate_argnums=0,
        )
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
        device = jax.devices()[0]
        state = jax.device_put(state, device)
        save_every = config.train.checkpoint_every_minutes * 60
        with (
            CheckpointStore(self.workdir / "checkpoints") as store,
            open_batches(
                source,
                order,
                epochs=config.train.epochs,
                position=position,
                workers=config.data.workers,
            ) as batches,
        ):
            saved_at = time.monotonic()
            for step, batch in enumerate(batches, start=first_step):
                state, metrics = step_fn(state, jax.device_put(batch, device))
                meter.add(step, metrics)
                done = step + 1
                validation = None
                if self._validates_after(done):
                    meter.finish()
                    validation = self._validate(state, done, tracker)
                elif time.monotonic() - saved_at < save_every:
                    continue
                meter.finish()
                store.save(state, self._metadata(done, validation))
                saved_at = time.monotonic()
                if on_validation is not None and validation is not None:
                    on_validation(done // order.steps_per_epoch, validation)
                meter.skip_time()

    def test(self, tracker: Tracker) -> dict[str, Any]:
        """Metrics of the best checkpoint on the test split, written and printed."""
        records = self.data.splits.test
        if len(records) == 0:
            tracker.say("no test split in this data set: nothing is tested")
            return {}
        metrics = write_test(self.evaluator, self.workdir, records, tracker)
        tracker.log("test", self.total_steps, metrics)
        return metrics

    def _validates_after(self, done: int) -> bool:
        epoch, rest = divmod(done, self.order.steps_per_epoch)
        if rest or len(self.data.splits.val) == 0:
            # Without a validation split the end of the last epoch still is a checkpoint.
            return done == self.total_steps
        return epoch % self.config.train.eval_every_epochs == 0 or done == self.total_steps

    def _validate(self, state: TrainState, done: int, tracker: Tracker) -> dict[str, Any] | None:
        records: Records = self.data.splits.val
        if len(records) == 0:
            tracker.say("no validation split in this data set: the latest checkpoint is the best")
            return None
        metrics = self.evaluator.run(state.variables, records).metrics
        if not math.isfinite(metrics["loss"]):
            raise NotFiniteError(
                f"the validation loss after step {done} is {metrics['loss']}, with terms "
                f"{metrics['loss_terms']}: lower --config.optim.learning_rate"
            )
        epoch = done // self.order.steps_per_epoch
        tracker.log("validation", done, {"epoch": epoch, **metrics})
        m_ap = metrics["mAP50"]
        tracker.say(
            f"epoch {epoch}: validation loss {metrics['loss']:.4f}, mAP50 "
            f"{'-' if m_ap is None else f'{m_ap:.4f}'}"
        )
        return metrics

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
