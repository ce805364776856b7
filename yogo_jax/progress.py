"""Signs of life: a bar at a terminal, and a line from time to time anywhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0


class Rate:
    """Frames per second since the first was asked for."""

    def __init__(self) -> None:
        self.frames = 0
        self._began = time.perf_counter()

    @property
    def per_second(self) -> float:
        """Frames per second so far."""
        return self.frames / max(time.perf_counter() - self._began, 1e-9)


def with_progress(
    items: Iterable[Item], rate: Rate, *, done: int, total: int | None, bar: bool
) -> Iterator[Item]:
    """The items as they are, while standard error tells how far they are.

    Args:
      items: of which each is one frame.
      rate: counts them.
      done: frames that an earlier run has finished.
      total: of all frames, None if it is not known.
      bar: a moving bar, else plain lines.
    """
    if not bar:
        yield from _with_lines(items, rate, done, total)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total, completed=done, rate=0.0)
        for item in items:
            rate.frames += 1
            progress.update(task, advance=1, rate=rate.per_second)
            yield item


def _with_lines(items: Iterable[Item], rate: Rate, done: int, total: int | None) -> Iterator[Item]:
    said = time.perf_counter()
    for item in items:
        rate.frames += 1
        if time.perf_counter() - said > _SECONDS_BETWEEN_LINES:
            said = time.perf_counter()
            of_all = "" if total is None else f" of {total}"
            print(
                f"{done + rate.frames}{of_all} frames, {rate.per_second:.1f} frames/s",
                file=sys.stderr,
                flush=True,
            )
        yield item


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
