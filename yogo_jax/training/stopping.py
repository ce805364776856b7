"""Stopping in time: Ctrl-C, signals of a scheduler, and the budget of `train.max_hours`.

A run that is asked to stop saves what it has done and ends with `EXIT_TO_BE_CONTINUED`; the same
command goes on from there.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

from yogo_jax.command import as_command, end, hush, is_owned
from yogo_jax.errors import EXIT_TO_BE_CONTINUED


# What schedulers send before they take the machine away: SLURM the first when it preempts or
# cancels, and the second when `sbatch --signal=USR1@SECONDS` asked for it. The third is Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


P = ParamSpec("P")
T = TypeVar("T")


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
        # Whether the process may end while it compiles the first step: no other process goes on
        # without the signal, and whoever called has nothing to put in order.
        self.ends_all = False
        # Whether other processes belong to the run.
        self.with_others = False

    def limit(self, max_hours: float) -> None:
        """Sets the budget, counted from when this was made; 0 is no end."""
        self._max_hours = max_hours

    def listen(self) -> None:
        """Takes over the signals; to be called in the main thread."""
        for each in SIGNALS:
            signal.signal(each, self._on_signal)

    def request(self, reason: str) -> None:
        """Asks for the stop; an earlier reason stays. Other threads than the main one only note it.

        Raises:
          Stopped: at once, in the main thread, unless it is held.
        """
        if self._reason is not None:
            return
        self._reason = reason
        if not self._held and threading.current_thread() is threading.main_thread():
            raise Stopped(reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            hush()
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
        """Requests are noted and do not raise: something in here must not be cut.

        Raises:
          Stopped: there was a request before. What it raised may have been lost: Python ignores
            what is raised while it collects garbage.
        """
        if not self._held and self.noted:
            self.leave()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Signals end the process with `EXIT_TO_BE_CONTINUED`, although it waits in compiled code.

        Python would look at them only afterwards. Nothing may be at stake in here. To be called in
        the main thread.

        Raises:
          Stopped: there was a request before.
        """
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
            # Held: one of the two says that it ends, not both.
            with self.held():
                yield
        finally:
            signal.set_wakeup_fd(before)
            os.write(pythons, b"\0")
            watcher.join()
            os.close(ours)
            os.close(pythons)

    def at_once_in_first_call(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, whose first call compiles and may be cut, if `ends_all`."""
        calls = 0

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal calls
            calls += 1
            if self.ends_all and calls == 1 and self._reason is not None:
                # It came a moment ago, and would now wait for the compiler.
                self.leave()
            with self.at_once() if self.ends_all and calls == 1 else nullcontext():
                return function(*args, **kwargs)

        return call

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


# Steps whose wishes are not read yet: one keeps the device busy while the host reads.
_UNREAD = 1
