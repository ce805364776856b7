"""When a run saves and when it stops, asked after every step."""

import time
from typing import NamedTuple

from yogo_jax.training.preemption import Stop


class Decision(NamedTuple):
    """What is to be done after a step."""

    save: bool
    stop: bool


class Pace:
    """Saves whenever some time has passed, and stops when it is asked to.

    Args:
      stop: says whether the run is asked to stop.
      save_every: seconds between checkpoints.
    """

    def __init__(self, stop: Stop, *, save_every: float) -> None:
        self._stop = stop
        self._save_every = save_every
        self.saved()

    def saved(self) -> None:
        """Everything up to the last step is saved."""
        self._saved_at = time.monotonic()

    def decide(self) -> Decision:
        """What to do now, after a step."""
        return Decision(
            save=time.monotonic() - self._saved_at >= self._save_every,
            stop=self._stop.reason is not None,
        )
