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
SECONDS_BETWEEN_LINES = 10.0
# Whether `with_progress` tells anything.
_is_shown = True


@contextmanager
def without_progress() -> Iterator[None]:
    """Within the block, `with_progress` tells nothing."""
    global _is_shown
    before, _is_shown = _is_shown, False
    try:
        yield
    finally:
        _is_shown = before


class Rate:
    """Items per second since the first was asked for."""

    def __init__(self) -> None:
        self.frames = 0
        self._began = time.perf_counter()

    @property
    def per_second(self) -> float:
        """Items per second so far."""
        return self.frames / max(time.perf_counter() - self._began, 1e-9)


def with_progress(
    items: Iterable[Item],
    rate: Rate | None = None,
    *,
    what: str = "frames",
    total: int | None = None,
    done: int = 0,
    bar: bool | None = None,
) -> Iterator[Item]:
    """Yields the items as they are, while standard error tells how many there were.

    Args:
      items: to count.
      rate: counts them, for callers that want to know it afterwards.
      what: a word for the items.
      total: of all items, None if it is not known.
      done: items that an earlier run has finished.
      bar: a moving bar, else a line from time to time; None for a bar at a terminal alone.
    """
    rate = Rate() if rate is None else rate
    shown = _is_shown
    bar = shown and (sys.stderr.isatty() if bar is None else bar)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]:.1f}} {what}/s"),
        TimeRemainingColumn(),
    )
    said = time.perf_counter()
    with Progress(*columns, console=Console(file=sys.stderr), disable=not bar) as progress:
        task = progress.add_task(what, total=total, completed=done, rate=0.0)
        for item in items:
            rate.frames += 1
            progress.update(task, advance=1, rate=rate.per_second)
            if shown and not bar and time.perf_counter() - said > SECONDS_BETWEEN_LINES:
                said = time.perf_counter()
                of_all = "" if total is None else f" of {total}"
                print(
                    f"{done + rate.frames}{of_all} {what}, {rate.per_second:.1f} {what}/s",
                    file=sys.stderr,
                    flush=True,
                )
            yield item


class Heartbeat:
    """Says what a program is doing whenever it has said nothing for a while.

    Use as a context manager. A thread says it, so that a long call of compiled code is no silence.

    Args:
      say: takes a line; called from that thread.
      seconds: of silence; None for SECONDS_BETWEEN_LINES.
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
        """Starts the silence anew, because a line was said."""
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
