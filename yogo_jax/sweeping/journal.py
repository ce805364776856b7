"""Optuna's journal on a file system that many nodes share."""

import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from yogo_jax.errors import UserError


class _MendingLock(JournalFileOpenLock):
    """Optuna's lock by O_EXCL, which also cuts off a line that a killed writer left unfinished.

    The next line would else be written behind it, and the journal be unreadable for good.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        locked = super().acquire()
        with self._journal.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                file.seek(end - 1)
                if file.read(1) == b"\n":
                    break
                end -= 1
            if end < size:
                file.truncate(end)
        return locked


def open_journal(path: Path) -> JournalStorage:
    """The journal as a storage of Optuna; made if it is not there.

    Of Optuna's two locks this is the one by O_EXCL, as claims are: one thing for the file system to
    get right. The other, by symbolic links, is for NFS before version 3.

    Raises:
      UserError: it cannot be read.
    """
    journal = path.absolute()
    try:
        return JournalStorage(JournalFileBackend(str(journal), _MendingLock(journal)))
    except (OSError, ValueError) as error:
        raise UserError(f"{journal}: cannot be read as Optuna's journal ({error})") from error
