"""Stops in time, on Ctrl-C, a scheduler's signal or after `train.max_hours`; and regular saves.

A run that is asked to stop saves what it has done and ends with `EXIT_TO_BE_CONTINUED`; the same
command goes on from there.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from yogo_jax.command import as_command, end, hush, is_owned
from yogo_jax.errors import EXIT_TO_BE_CONTINUED


if TYPE_CHECKING:
    # Commands import this module before they wait for JAX.
    import jax

    from yogo_jax.parallel import Devices


# What schedulers send before they take the machine away: SLURM the first when it preempts or
# cancels, and the second when `sbatch --signal=USR1@SECONDS` asked for it. The third is Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """The run was asked to stop, and everything that it has done is saved.

    Like `KeyboardInterrupt` it is no `Exception`: nothing that handles errors may take it for one.
    """


class Stop:
    """A request to stop the run, and its reason.

    Where nothing is at stake, as before the first step, a signal raises `Stopped` at once. Within
    `defer_stop` it is only noted, and the run asks for it wherever it can save. Only the first
    counts.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._deferred = 0
        self._max_hours = 0.0
        self._began = time.monotonic()
        # Whether the process may end while it compiles the first step: no other process goes on
        # without the signal, and the caller has nothing to put in order.
        self.may_end_at_once = False
        # Whether other processes belong to the run.
        self.with_others = False

    def limit(self, max_hours: float) -> None:
        """Sets the hours, counted from when this was made, after which to stop; 0 is no end."""
        self._max_hours = max_hours

    def listen(self) -> None:
        """Takes over the signals; to be called in the main thread."""
        for each in SIGNALS:
            signal.signal(each, self._on_signal)

    def request(self, reason: str) -> None:
        """Asks for the stop; an earlier reason stays. Other threads than the main one only note it.

        Raises:
          Stopped: at once, in the main thread, unless stops are deferred.
        """
        if self._reason is not None:
            return
        self._reason = reason
        if not self._deferred and threading.current_thread() is threading.main_thread():
            raise Stopped(reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred:
            hush()
        self.request(signal.Signals(number).name)

    @property
    def reason(self) -> str | None:
        """The reason to stop; None if the run goes on."""
        hours = (time.monotonic() - self._began) / 3600
        if self._reason is None and 0 < self._max_hours < hours:
            self._reason = f"train.max_hours={self._max_hours:g} are over"
        return self._reason

    @property
    def is_requested(self) -> bool:
        """True if a signal or a reader asked, however much of the budget is left."""
        return self._reason is not None

    @contextmanager
    def defer_stop(self) -> Iterator[None]:
        """Requests are noted and do not raise: something in here must not be cut.

        Raises:
          Stopped: there was a request before. What it raised may have been lost: Python ignores
            what is raised while it collects garbage.
        """
        if not self._deferred and self.is_requested:
            self.raise_stopped()
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    @contextmanager
    def end_at_once(self) -> Iterator[None]:
        """Signals end the process with `EXIT_TO_BE_CONTINUED`, although it waits in compiled code.

        Python would look at them only afterwards. Nothing may be at stake in here. To be called in
        the main thread.

        Raises:
          Stopped: there was a request before, which would now wait for the compiled code.
        """
        if self.is_requested:
            self.raise_stopped()
        ours, pythons = os.pipe()
        os.set_blocking(pythons, False)

        def watch() -> None:
            while number := os.read(ours, 1)[0]:
                if number in SIGNALS:
                    end_process(signal.Signals(number).name)

        before = signal.set_wakeup_fd(pythons, warn_on_full_buffer=False)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            # Deferred: one of the two says that it ends, not both.
            with self.defer_stop():
                yield
        finally:
            signal.set_wakeup_fd(before)
            os.write(pythons, b"\0")
            watcher.join()
            os.close(ours)
            os.close(pythons)

    @contextmanager
    def allow_stop(self) -> Iterator[None]:
        """The opposite of `defer_stop`, within it: requests raise again, also one that was noted.

        Raises:
          Stopped: the run is to stop.
        """
        deferred, self._deferred = self._deferred, 0
        try:
            self.check()
            yield
        finally:
            self._deferred = deferred

    def check(self, any_process: Callable[[bool], bool] = bool) -> None:
        """For places that can be left as they are; `any_process` asks all processes of the run.

        Raises:
          Stopped: the run is to stop.
        """
        if any_process(self.reason is not None):
            self.raise_stopped()

    def raise_stopped(self) -> NoReturn:
        """Raises `Stopped`: ends the run, when everything is saved."""
        self._reason = self.reason or "another process of the run has to stop"
        raise Stopped(self._reason)


def say_stopped(reason: str) -> None:
    """The last line of a command that is to be continued."""
    print(
        f"stopped ({reason}): the same command goes on (exit status {EXIT_TO_BE_CONTINUED})",
        file=sys.stderr,
        flush=True,
    )


def end_process(reason: str) -> NoReturn:
    """Ends the command, to be continued, without putting anything in order."""
    try:
        say_stopped(reason)
        sys.stdout.flush()
    finally:
        os._exit(EXIT_TO_BE_CONTINUED)


@contextmanager
def exit_when_stopped() -> Iterator[Stop]:
    """For a command: `as_command` that also listens to the signals; `Stopped` is exit status 75.

    Whoever calls it in a process of their own gets their handlers back. A process that is a command
    and nothing else keeps ours to its end, which a second signal must not cut.
    """
    stop = Stop()
    before = [(each, signal.getsignal(each)) for each in SIGNALS]
    with as_command(stop.request):
        try:
            stop.listen()
            yield stop
        except Stopped as stopped:
            say_stopped(str(stopped))
            if stop.with_others:
                # Python's farewell is what tells them.
                sys.exit(EXIT_TO_BE_CONTINUED)
            end(EXIT_TO_BE_CONTINUED)
        finally:
            if not is_owned():
                for each, handler in before:
                    # None is one that Python did not set, and cannot set again.
                    if handler is not None:
                        signal.signal(each, handler)


class Decision(NamedTuple):
    """Says what is to be done after a step."""

    save: bool
    stop: bool


class SaveStopPolicy:
    """Saves whenever some time has passed, and stops when the run is asked to.

    Clocks and signals differ between processes, and all of them must do the same after the same
    step. So each gives its requests into the step, which finds out whether any process has them;
    the answer is read while the device is busy with the step after it. A process alone knows its
    requests and follows them at once.

    Args:
      stop: says whether this process is asked to stop.
      save_every: seconds between checkpoints.
    """

    def __init__(self, stop: Stop, devices: "Devices", *, save_every: float) -> None:
        self._stop = stop
        self._devices = devices
        self._save_every = save_every
        self.saved()

    def saved(self) -> None:
        """Everything up to the last step is saved; requests from before are fulfilled."""
        self._saved_at = time.monotonic()
        self._unread: jax.Array | None = None

    def _own(self) -> Decision:
        return Decision(
            save=time.monotonic() - self._saved_at >= self._save_every,
            stop=self._stop.reason is not None,
        )

    def requests(self) -> "jax.Array":
        """Requests of all processes, for the next step: booleans [n 2] of n devices, spread."""
        rows = self._devices.count // self._devices.share.count
        return self._devices.spread(np.tile(np.asarray(self._own()), (rows, 1)))

    def decide(self, requests: "jax.Array") -> Decision:
        """Says what to do now.

        The requests are of any process, as the step gave them back that was just dispatched.
        """
        if self._devices.share.count == 1:
            return self._own()
        # One step's are not read yet: it keeps the device busy while the host reads.
        ready, self._unread = self._unread, requests
        save, stop = (False, False) if ready is None else np.asarray(ready).tolist()
        return Decision(save=save, stop=stop)
