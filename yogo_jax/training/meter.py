"""What the steps of a run report: to the log, to the bar, and whether the loss is still finite."""

import collections
import math
import time
from collections.abc import Mapping, Sequence

import jax

from yogo_jax.data.pipeline import EpochOrder
from yogo_jax.errors import UserError
from yogo_jax.training.step import StepMetrics
from yogo_jax.training.tracking import Tracker


# Calls whose metrics may still be on the device: enough to keep it busy, few enough that a
# non-finite loss stops the run at once.
CALLS_IN_FLIGHT = 2


class NotFiniteError(UserError):
    """A run that cannot go on, because its loss or a gradient is no longer a number."""


class Meter:
    """Reads the metrics of steps a little late, so that the device never waits for the host.

    Args:
      order: of the training data.
      tracker: where records and lines go.
      epochs: of the whole run.
      image_paths: of the training records, to name the images of a bad batch.
    """

    def __init__(
        self, order: EpochOrder, tracker: Tracker, *, epochs: int, image_paths: Sequence[str]
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
