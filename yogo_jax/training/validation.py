"""The validations of a run: when they are due, and what becomes of their metrics."""

from collections.abc import Callable
from typing import Any

from yogo_jax.checkpoint.state import TrainState
from yogo_jax.data.pack import PackedImages
from yogo_jax.data.records import Records
from yogo_jax.detector.detections import NotNumbersError
from yogo_jax.metrics.evaluator import Evaluator
from yogo_jax.reports.tables import advice_on_nothing_found
from yogo_jax.training.tracking import NotFiniteError, Tracker


class Validator:
    """Validates a run every few epochs, and after the last.

    Args:
      evaluator: of the run's model.
      records: of the validation split, maybe none.
      steps_per_epoch: of the training.
      epochs: of the whole run.
      every_epochs: how often.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        records: Records,
        *,
        steps_per_epoch: int,
        epochs: int,
        every_epochs: int,
    ) -> None:
        self._evaluator = evaluator
        self._records = records
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = epochs * steps_per_epoch
        self._every_epochs = every_epochs
        # Once in a run is enough.
        self._advised = False

    def is_due(self, done: int) -> bool:
        """Whether the checkpoint after `done` steps is one to be validated."""
        epoch, rest = divmod(done, self._steps_per_epoch)
        if rest or len(self._records) == 0:
            # Without a validation split the end of the last epoch still is a checkpoint.
            return done == self._total_steps
        return epoch % self._every_epochs == 0 or done == self._total_steps

    def run(
        self,
        state: TrainState,
        done: int,
        tracker: Tracker,
        before_batch: Callable[[], None],
        packed: PackedImages | None = None,
    ) -> dict[str, Any] | None:
        """Metrics after `done` steps, logged; None without a validation split.

        Args:
          state: after these steps.
          done: how many.
          tracker: takes the metrics and a line.
          before_batch: called before each batch; what it raises ends the validation, unlogged.
          packed: the images of the split, if they are packed.

        Raises:
          NotFiniteError: the loss is no longer finite.
        """
        if len(self._records) == 0:
            tracker.say("no validation split in this data set: the latest checkpoint is the best")
            return None
        tracker.doing(f"validating with {len(self._records)} images")
        try:
            evaluation = self._evaluator.run(
                state.variables,
                self._records,
                keep_images=tracker.shows_images,
                before_batch=before_batch,
                packed=packed,
            )
        except NotNumbersError as error:
            raise NotFiniteError(
                f"the validation after step {done} cannot be used: lower "
                f"--config.optim.learning_rate ({error})"
            ) from error
        metrics = evaluation.metrics
        epoch = done // self._steps_per_epoch
        tracker.log("validation", done, {"epoch": epoch, **metrics})
        tracker.show("validation", done, evaluation, self._evaluator.spec)
        m_ap = metrics["mAP50"]
        tracker.say(
            f"epoch {epoch}: validation loss {metrics['loss']:.4f}, mAP50 "
            f"{'-' if m_ap is None else f'{m_ap:.4f}'}"
        )
        advice = advice_on_nothing_found(metrics)
        if advice is not None and not self._advised:
            self._advised = True
            tracker.say(advice)
        return metrics
