"""When a run saves and when it stops: asked after every step, the same in all processes."""

import collections
import time
from typing import NamedTuple

import jax
import numpy as np

from yogo_jax.parallel import Devices
from yogo_jax.training.stopping import Stop


# Steps whose wishes are not read yet: one keeps the device busy while the host reads.
_UNREAD = 1


class Decision(NamedTuple):
    """What is to be done after a step."""

    save: bool
    stop: bool


class Pace:
    """Saves whenever some time has passed, and stops when it is asked to.

    Clocks and signals differ between processes, and all of them must do the same after the same
    step. So each gives its wishes into the step, which finds out whether any process has them; the
    answer is read while the device is busy with the step after it. A process alone knows its wishes
    and follows them at once.

    Args:
      stop: says whether this process is asked to stop.
      devices: of the run.
      save_every: seconds between checkpoints.
    """

    def __init__(self, stop: Stop, devices: Devices, *, save_every: float) -> None:
        self._stop = stop
        self._devices = devices
        self._save_every = save_every
        self.saved()

    def saved(self) -> None:
        """Everything up to the last step is saved; wishes from before are fulfilled."""
        self._saved_at = time.monotonic()
        self._pending: collections.deque[jax.Array] = collections.deque()

    def _own(self) -> Decision:
        return Decision(
            save=time.monotonic() - self._saved_at >= self._save_every,
            stop=self._stop.reason is not None,
        )

    def wishes(self) -> jax.Array:
        """Of all processes, for the next step."""
        rows = self._devices.count // self._devices.share.count
        return self._devices.spread(np.tile(np.asarray(self._own()), (rows, 1)))

    def decide(self, wishes: jax.Array) -> Decision:
        """What to do now.

        Args:
          wishes: of any process, as the step gave them back that was just dispatched.
        """
        if self._devices.share.count == 1:
            return self._own()
        self._pending.append(wishes)
        if len(self._pending) <= _UNREAD:
            return Decision(save=False, stop=False)
        save, stop = jax.device_get(self._pending.popleft()).tolist()
        return Decision(save=save, stop=stop)
