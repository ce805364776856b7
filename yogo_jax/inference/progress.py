"""How far a long command is: a bar at a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
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
