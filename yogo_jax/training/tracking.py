"""The progress of a run, told: terminal, `train.log`, `metrics.jsonl`, and W&B if asked for.

A `Meter` reads the metrics of the steps and gives them to the run's `Tracker`.
"""

import collections
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.config.schema import Config
from yogo_jax.data.pipeline import EpochOrder
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import write_atomically
from yogo_jax.metrics.curves import Roc
from yogo_jax.metrics.evaluator import Evaluation
from yogo_jax.progress import Heartbeat
from yogo_jax.training.step import StepMetrics
from yogo_jax.training.wandb import evaluation_media, scalars, start_wandb


def open_metrics(path: Path, *, first_step: int, validated: bool = True) -> TextIO:
    """`metrics.jsonl`, to be appended to.

    A continued run first drops what came after its checkpoint, and what comes again: the test, and
    the checkpoint's validation if that was cut short.

    Args:
      first_step: steps of the checkpoint that the run goes on from.
      validated: False if its validation was cut short.
    """
    kept = [
        record
        for record in read_metrics(path)
        if record["step"] <= first_step
        and record["kind"] != "test"
        and (validated or (record["kind"], record["step"]) != ("validation", first_step))
    ]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
    return path.open("a", encoding="utf-8")


class Tracker:
    """All places that progress goes to.

    Lines go to the terminal, under a live bar, and with their time to `train.log`; records, which
    carry "kind" and "step", to `metrics.jsonl` and Weights & Biases. Use as a context manager.

    Args:
      workdir: of the run; holds the files.
      first_step: steps that are done already.

    Raises:
      UserError: Weights & Biases is asked for and cannot be used.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        *,
        total_steps: int,
        first_step: int = 0,
        validated: bool = True,
    ) -> None:
        path = workdir / "metrics.jsonl"
        self._metrics = open_metrics(path, first_step=first_step, validated=validated)
        self._log = (workdir / "train.log").open("a", buffering=1, encoding="utf-8")
        self._live = sys.stdout.isatty()
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=first_step)
        self._progress.start()
        self._heartbeat = Heartbeat(self._say_still)
        self._heartbeat.__enter__()
        try:
            self._wandb = start_wandb(config, workdir, self.say)
        except BaseException:
            self._close_files()
            raise

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        code = 0 if kind is None else 1
        try:
            self._to_wandb(lambda run: run.finish(exit_code=code))
        finally:
            self._close_files()

    def _close_files(self) -> None:
        self._metrics.close()
        self._heartbeat.__exit__()
        self._progress.stop()
        self._log.close()

    def say(self, line: str) -> None:
        """A line that stays, with the time in the log file."""
        self._heartbeat.said()
        self._print(line)
        self._note(line)

    def _say_still(self, line: str) -> None:
        # A bar shows the same, and moves.
        if not self._live:
            self._print(line)
        self._note(line)

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _note(self, line: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.writelines(f"{stamp} {part}\n" for part in line.splitlines())

    def doing(self, text: str, step: int | None = None) -> None:
        """Tells what is done from now on: in the bar if there is one, and now and then in a line.

        `step` steps of the run are done; None leaves the bar where it is.
        """
        self._heartbeat.doing(text)
        if self._live:
            self._progress.update(self._task, completed=step, description=text)

    def flush(self) -> None:
        """Hands everything logged to the operating system, which a kill does not undo."""
        self._metrics.flush()

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record of a kind ("train", "validation", "test"), after `step` updates."""
        self._write({"kind": kind, "step": step, **values})
        if kind != "train":
            # Before the checkpoint that says it is done: a kill between must not lose it.
            self._metrics.flush()

        def log_scalars(run: Any) -> None:
            flat = {f"{kind}/{name}": value for name, value in scalars(values)}
            run.log({"step": step, **flat})

        self._to_wandb(log_scalars)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._metrics.write(json.dumps(dict(record)) + "\n")

    def start(self, step: int, environment: Mapping[str, Any]) -> None:
        """Records the host, devices and versions that compute the run from `step` on."""
        self._write({"kind": "start", "step": step, **environment})
        self._metrics.flush()
        values = {"environment": dict(environment)}
        self._to_wandb(lambda run: run.config.update(values, allow_val_change=True))

    @property
    def shows_images(self) -> bool:
        """True if `show` needs the images of an evaluation."""
        return self._wandb is not None

    def show(
        self,
        kind: str,
        step: int,
        evaluation: Evaluation,
        spec: ModelSpec,
        rocs: Mapping[str, Roc | None] | None = None,
    ) -> None:
        """Pictures and tables of an evaluation, where there is a place for them.

        Args:
          kind: "validation" or "test".
          step: updates of the weights evaluated.
          evaluation: with its images, if `shows_images`.
          rocs: curves by class, if they were measured.
        """

        def log_media(run: Any) -> None:
            media = evaluation_media(evaluation, spec, rocs)
            run.log({"step": step} | {f"{kind}/{key}": media[key] for key in media})

        self._to_wandb(log_media)

    def _to_wandb(self, action: Callable[[Any], None]) -> None:
        """Does something with the W&B run, if there is one; a trouble there ends that run alone."""
        if self._wandb is None:
            return
        try:
            action(self._wandb)
        except Exception as error:  # of its service, its network, or an image that has gone
            self._wandb = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"Weights & Biases is off from here on: {reason}")


class SilentTracker(Tracker):
    """Reports nothing: of several processes of a run only the first one writes."""

    def __init__(self) -> None:
        self._wandb = None

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    say = doing = flush = log = start = show = _close_files = _nothing


# Calls whose metrics may still be on the device: enough to keep it busy, few enough that a
# non-finite loss stops the run at once.
CALLS_IN_FLIGHT = 2


class NotFiniteError(UserError):
    """A run that cannot go on, because its loss or a gradient is no longer a number."""


class Meter:
    """Reads the metrics of steps a little late, so that the device never waits for the host.

    Args:
      image_paths: of the training records, to name the images of a bad batch.
    """

    def __init__(
        self, order: EpochOrder, tracker: Tracker, epochs: int, image_paths: Sequence[str]
    ) -> None:
        self._order = order
        self._tracker = tracker
        self._epochs = epochs
        self._image_paths = image_paths
        self._pending: collections.deque[tuple[int, int, StepMetrics]] = collections.deque()
        self._began = self._clock = time.monotonic()
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._losses = 0.0
        self._images = 0
        self._epoch_seconds = 0.0

    def add(self, step: int, steps: int, metrics: StepMetrics) -> None:
        """Takes the metrics of a call that was just dispatched.

        Args:
          step: its first one, counted from 0.
          steps: how many it takes.
          metrics: arrays of at least that many, a value for each step.
        """
        self._pending.append((step, steps, metrics))
        while len(self._pending) > CALLS_IN_FLIGHT:
            self._read()

    def finish(self) -> None:
        """Reads everything that is still on the device."""
        while self._pending:
            self._read()
        self._tracker.flush()

    def skip_time(self) -> None:
        """Leaves the time since the last step, which went elsewhere, out of the speed."""
        self._clock = time.monotonic()

    def _read(self) -> None:
        first, steps, on_device = self._pending.popleft()
        all_metrics = jax.device_get(on_device)
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        for index in range(steps):
            metrics = jax.tree.map(lambda values, index=index: values[index], all_metrics)
            self._log(first + index, metrics, seconds / steps)

    def _log(self, step: int, metrics: StepMetrics, seconds: float) -> None:
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        terms = {name: float(value) for name, value in metrics.terms._asdict().items()}
        self._stop_if_not_finite(step, loss, grad_norm, terms)
        done = step + 1
        images = self._order.position_after(done) - self._order.position_after(step)
        self._losses += loss * images
        self._images += images
        self._epoch_seconds += seconds
        epoch = step // self._order.steps_per_epoch
        rate = self._images / max(self._epoch_seconds, 1e-9)
        self._tracker.log(
            "train",
            done,
            {
                "epoch": epoch + 1,
                "loss": loss,
                **terms,
                "learning_rate": float(metrics.learning_rate),
                "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
                "param_norm": float(metrics.param_norm),
                "images_per_second": round(images / max(seconds, 1e-9), 2),
                "seconds": round(self._clock - self._began, 3),
            },
        )
        where = f"epoch {epoch + 1}/{self._epochs}"
        in_epoch = done % self._order.steps_per_epoch or self._order.steps_per_epoch
        self._tracker.doing(
            f"{where}, {in_epoch} of {self._order.steps_per_epoch} steps: loss {loss:.3f}, "
            f"{rate:.1f} images/s",
            done,
        )
        if done % self._order.steps_per_epoch == 0:
            mean = self._losses / self._images
            self._tracker.say(f"{where}: loss {mean:.4f}, {rate:.1f} images/s")
            self._start_epoch()

    def _stop_if_not_finite(
        self, step: int, loss: float, grad_norm: float, terms: Mapping[str, float]
    ) -> None:
        # An endless norm may be the overflow of a square; the clamp takes care of such gradients.
        if math.isfinite(loss) and not math.isnan(grad_norm):
            return
        self._tracker.flush()
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        what = f"the {' and '.join(bad)} loss" if bad else "a gradient"
        images = [self._image_paths[record] for record in self._order.records_of_batch(step)]
        raise NotFiniteError(
            f"{what} is not finite at step {step + 1} (terms {dict(terms)}, gradient norm "
            f"{grad_norm}); its batch holds {', '.join(images)}. Lower "
            "--config.optim.learning_rate or look at these images; checkpoints are untouched"
        )
