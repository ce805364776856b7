"""Threads and processes that signals to stop do not reach, and that nobody leaves behind."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


# Schedulers send the first two to every process of a job, a terminal the third. Only the one that
# trains is to act on them, and it still needs its workers while it does.
_SIGNALS_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Threads and processes that are started in here never get a signal to stop.

    They inherit that from this thread, so that there is no moment without protection; what arrives
    in the meantime is delivered to this thread afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_resource_tracker() -> None:
    """Starts Python's own process for what processes share; else the first worker would do it.

    A run that ends at once leaves semaphores behind, which that process takes away, silently.
    """
    option = "ignore:resource_tracker"
    sys.warnoptions.append(option)
    try:
        with signals_held_back():
            resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(option)


def leave_with_parent(*_: object) -> None:
    """In a worker process: ends it when the process that started it is gone, even if killed."""
    for each in _SIGNALS_TO_STOP:
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
