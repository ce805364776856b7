"""Stopping in time: signals of a scheduler, and the budget of `train.max_hours`.

A run that is asked to stop saves what it has done and ends with `EXIT_TO_BE_CONTINUED`; the same
command goes on from there.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from yogo_jax.errors import EXIT_TO_BE_CONTINUED


# What schedulers send before they take the machine away: SLURM the first when it preempts or
# cancels, and the second when `sbatch --signal=USR1@SECONDS` asked for it.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The run was asked to stop, and everything that it has done is saved.

    Like `KeyboardInterrupt` it is no `Exception`: nothing that handles errors may take it for one.
    """


class Stop:
    """Whether the run is asked to stop, and why.

    Where nothing is at stake, as before the first step, a signal raises `Stopped` at once. Between
    `held` it is only noted, and the run looks for it wherever it can save. Only the first counts.

    Args:
      max_hours: from now on, after which the run stops as if it had got a signal; 0 is no end.
    """

    def __init__(self, max_hours: float = 0.0) -> None:
        self._reason: str | None = None
        self._held = 0
        self._max_hours = max_hours
        self._began = time.monotonic()

    def limit(self, max_hours: float) -> None:
        """Sets the budget, counted from when this was made; 0 is no end."""
        self._max_hours = max_hours

    def listen(self) -> None:
        """Takes over the signals; to be called in the main thread."""
        for each in SIGNALS:
            signal.signal(each, self._on_signal)

    def request(self, reason: str) -> None:
        """Asks for the stop; an earlier reason stays."""
        if self._reason is not None:
            return
        self._reason = reason
        if not self._held:
            raise Stopped(reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)

    @property
    def reason(self) -> str | None:
        """Why the run is to stop; None if it is not."""
        hours = (time.monotonic() - self._began) / 3600
        if self._reason is None and 0 < self._max_hours < hours:
            self._reason = f"train.max_hours={self._max_hours:g} are over"
        return self._reason

    @property
    def noted(self) -> bool:
        """Whether something asked, however much of the budget is left."""
        return self._reason is not None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Requests are noted and do not raise: something in here must not be cut."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextmanager
    def released(self) -> Iterator[None]:
        """The opposite of `held`, within it: requests raise again, also one that was noted.

        Raises:
          Stopped: the run is to stop.
        """
        held, self._held = self._held, 0
        try:
            self.check()
            yield
        finally:
            self._held = held

    def check(self, any_process: Callable[[bool], bool] = bool) -> None:
        """For places that can be left as they are.

        Args:
          any_process: says whether a flag is set in any process of the run, if there are several.

        Raises:
          Stopped: the run is to stop.
        """
        if any_process(self.reason is not None):
            self.leave()

    def leave(self) -> NoReturn:
        """The way out, when everything is saved.

        Raises:
          Stopped: always.
        """
        raise Stopped(self.reason or "another process of the run has to stop")


@contextmanager
def exit_when_stopped() -> Iterator[Stop]:
    """For a command: listens to the signals, and turns `Stopped` into exit status 75."""
    stop = Stop()
    try:
        stop.listen()
        yield stop
    except Stopped as stopped:
        print(
            f"stopped ({stopped}): the same command goes on (exit status {EXIT_TO_BE_CONTINUED})",
            file=sys.stderr,
        )
        sys.exit(EXIT_TO_BE_CONTINUED)
