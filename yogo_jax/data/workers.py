"""Threads and processes that a scheduler's signals do not reach, and that nobody leaves behind."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


# Schedulers send these to every process of a job. Only the one that trains is to act on them, and
# it still needs its workers while it does.
_SIGNALS_OF_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Threads and processes that are started in here never get a scheduler's signals.

    They inherit that from this thread, so that there is no moment without protection; what arrives
    in the meantime is delivered to this thread afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_SCHEDULERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with_parent(*_: object) -> None:
    """In a worker process: ends it when the process that started it is gone, even if killed."""
    for each in _SIGNALS_OF_SCHEDULERS:
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
