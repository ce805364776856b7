"""A progress bar for those who wait at a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn


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
