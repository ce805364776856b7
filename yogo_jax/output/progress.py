"""Signs of life: a bar at a terminal, and a line from time to time anywhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn


# Without a line for so long, one is said.
SECONDS_BETWEEN_LINES = 10.0


class Heartbeat:
    """Says what a program is doing whenever it has said nothing for a while.

    Use as a context manager. A thread says it, so that a long call of compiled code is no silence.

    Args:
      say: takes a line; called from that thread.
      seconds: of silence.
    """

    def __init__(self, say: Callable[[str], None], *, seconds: float | None = None) -> None:
        self._say = say
        self._seconds = SECONDS_BETWEEN_LINES if seconds is None else seconds
        self._text = ""
        self._since = self._said = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def doing(self, text: str) -> None:
        """Sets what the program does from now on; empty says nothing."""
        self._text, self._since = text, time.monotonic()

    def said(self) -> None:
        """A line was said: the silence begins anew."""
        self._said = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(self._seconds / 4, 1.0)):
            now = time.monotonic()
            text, since = self._text, now - self._since
            if text and now - self._said >= self._seconds:
                self._said = now
                self._say(text if since < self._seconds else f"{text}: {since:.0f} s")


@contextmanager
def said_while(text: str, *, silent: bool = False) -> Iterator[None]:
    """While the block runs, says on standard output from time to time that it does.

    Args:
      text: what is being done.
      silent: says nothing, as all but one of several processes.
    """

    def say(line: str) -> None:
        if not silent:
            print(line, flush=True)

    with Heartbeat(say) as heartbeat:
        heartbeat.doing(text)
        yield


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int], Callable[[], None]]]:
    """A bar on standard error if that is a terminal, else nothing.

    Gives a function of the number of steps to come, which returns what is to be called after each.

    Args:
      what: a word for the steps.
    """
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def on_start(total: int) -> Callable[[], None]:
            task = bar.add_task(what, total=total)
            return lambda: bar.advance(task)

        yield on_start
