"""The journal of an inference: every finished frame, in order, in one SQLite file.

It is what an interrupted run continues from, and what the files over all frames are written from at
the end, so that memory does not grow with the frames. One table has the settings of the run, the
other a row a frame.
"""

import dataclasses
import errno
import fcntl
import json
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from yogo_jax.detector.detections import Detections
from yogo_jax.errors import UserError


JOURNAL_NAME = "infer.journal"
# A kill loses the frames since the last commit; they are done again. Each commit waits for the
# disk, so that one a frame would slow the run down.
SECONDS_BETWEEN_COMMITS = 1.0
_MAGIC = b"SQLite format 3\0"
_TABLES = """
CREATE TABLE settings (json TEXT NOT NULL);
CREATE TABLE frames (
  image_id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  error TEXT,  -- why the frame was skipped; what follows is NULL then
  image_rows INTEGER, image_columns INTEGER,
  window_x1 REAL, window_y1 REAL, window_x2 REAL, window_y2 REAL,
  detections BLOB,  -- float32, little-endian: corners, objectness and class probabilities of each
  crc INTEGER NOT NULL  -- of all columns before
);
"""
_BOX_COLUMNS = 5  # corners and objectness; the class probabilities follow


class FrameRecord(NamedTuple):
    """The result of one frame.

    Attributes:
      image_id: its place in the source.
      name: what the source calls it.
      error: why it was skipped; None if it was looked at.
      detections: None if it was skipped.
    """

    image_id: int
    name: str
    error: str | None
    detections: Detections | None


class Journal:
    """A journal that is being written; it goes on with what is there.

    Use as a context manager. Another process cannot write the same journal at the same time.

    Args:
      folder: of the outputs.
      settings: everything that the outputs follow from, as plain values; `class_names` is among
        them, and `class_thresholds` if there are any.

    Attributes:
      count: frames in it.

    Raises:
      UserError: the journal is of other settings, in use, or none of ours.
      OSError: the disk is full, or fails.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / JOURNAL_NAME
        self._class_names = tuple(settings["class_names"])
        self._class_thresholds = tuple(settings.get("class_thresholds", ()))
        if _is_in_old_format(self.path):
            _convert(self.path, settings)
        self._db = _open(self.path)
        try:
            with _errors_named(self.path):
                self.count = self._begin(settings)
                self._commit()
        except BaseException:
            self._db.close()
            raise

    def _begin(self, settings: Mapping[str, Any]) -> int:
        """The number of whole frames, after what is damaged was dropped."""
        if not self._db.execute("SELECT name FROM sqlite_master").fetchall():
            _create(self._db, settings)
            return 0
        (earlier,) = self._db.execute("SELECT json FROM settings").fetchone()
        check_same_settings(self.path, json.loads(earlier), settings)
        count = sum(1 for _ in self.records())
        self._db.execute("DELETE FROM frames WHERE image_id >= ?", (count,))
        return count

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.path.exists() and self._db.in_transaction:
                with _errors_named(self.path):
                    self._db.execute("COMMIT")
        finally:
            self._db.close()

    def append(self, record: FrameRecord) -> None:
        """Adds a finished frame.

        Raises:
          OSError: the disk is full, or fails.
        """
        with _errors_named(self.path):
            _insert(self._db, record)
            self.count += 1
            if time.monotonic() - self._committed >= SECONDS_BETWEEN_COMMITS:
                self._commit()

    def _commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN EXCLUSIVE")
        self._committed = time.monotonic()

    def records(self) -> Iterator[FrameRecord]:
        """All records up to one that is damaged; a few are in memory at a time."""
        place = 0
        # A query that is still open would keep the lock after the connection is closed.
        query = "SELECT * FROM frames WHERE image_id >= ? ORDER BY image_id LIMIT 64"
        while rows := self._db.execute(query, (place,)).fetchall():
            for *row, crc in rows:
                if row[0] != place or _crc(row) != crc:
                    return
                yield _record(row, self._class_names, self._class_thresholds)
                place += 1

    def remove(self) -> None:
        """Deletes the journal, when everything is written from it."""
        self._db.execute("COMMIT")
        self._db.close()
        self.path.unlink()


def _open(path: Path) -> sqlite3.Connection:
    """The database, locked against other processes until it is closed.

    Clusters keep outputs on network file systems. SQLite's write-ahead log does not work there: it
    needs memory that is shared between all who have the file open. The rollback journal works, as
    long as one process at a time has the file: the lock is taken once and kept. After a kill at any
    moment the next start finds the last commit.
    """
    db = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        with _errors_named(path):
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("BEGIN EXCLUSIVE")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turns the errors of SQLite into those that the user can act on."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its details
        if code == sqlite3.SQLITE_BUSY:
            raise _in_use(path) from None
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise OSError(errno.EIO, f"{path.name}: {error}") from error
        raise UserError(
            f"{path}: cannot be read ({error}), so it is damaged or none of ours: delete it to "
            "begin anew"
        ) from error


def _in_use(path: Path) -> UserError:
    return UserError(f"{path}: another process is writing it; wait for it")


def _create(db: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    for statement in _TABLES.split(";\n"):
        db.execute(statement)
    db.execute("INSERT INTO settings VALUES (?)", (json.dumps(settings),))


def _insert(db: sqlite3.Connection, record: FrameRecord) -> None:
    row: list[Any] = [record.image_id, record.name, record.error]
    if (found := record.detections) is None:
        row += [None] * 7
    else:
        table = np.concatenate(
            [found.boxes_xyxy, found.objectness[:, None], found.class_probs], axis=1
        )
        # Of one type, whatever was given: they are part of the CRC.
        row += [*map(int, found.image_hw), *map(float, found.window_xyxy)]
        row.append(table.astype("<f4").tobytes())
    db.execute(f"INSERT INTO frames VALUES ({', '.join('?' * 11)})", (*row, _crc(row)))


def _crc(row: Sequence[Any]) -> int:
    return zlib.crc32(row[-1] or b"", zlib.crc32(json.dumps(row[:-1]).encode()))


def _record(
    row: Sequence[Any], class_names: tuple[str, ...], class_thresholds: tuple[float, ...]
) -> FrameRecord:
    image_id, name, error, rows, columns, *window, blob = row
    if error is not None:
        return FrameRecord(image_id, name, error, None)
    found = _detections(blob, class_names, (rows, columns), window)
    found = dataclasses.replace(found, class_thresholds=class_thresholds)
    return FrameRecord(image_id, name, None, found)


def _detections(
    table: bytes, class_names: tuple[str, ...], image_hw: Sequence[int], window: Sequence[float]
) -> Detections:
    columns = _BOX_COLUMNS + len(class_names)
    rows = np.frombuffer(table, "<f4").reshape(-1, columns).astype(np.float32)
    rows_px, columns_px = image_hw
    x1, y1, x2, y2 = window
    return Detections(
        boxes_xyxy=rows[:, :4],
        objectness=rows[:, 4],
        class_probs=rows[:, _BOX_COLUMNS:],
        class_names=class_names,
        image_hw=(rows_px, columns_px),
        window_xyxy=(x1, y1, x2, y2),
    )


def _is_in_old_format(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    return start not in (b"", _MAGIC)


def _convert(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a journal of version 0.1 anew in the form of today.

    Raises:
      UserError: it is of other settings, in use, or none of ours.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _in_use(path) from None
        try:
            with closing(_open(new)) as db, _errors_named(new):
                _create(db, settings)
                for record in _read_old(file, path, settings):
                    _insert(db, record)
                db.execute("COMMIT")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _read_old(file: IO[bytes], path: Path, settings: Mapping[str, Any]) -> Iterator[FrameRecord]:
    """The whole records of a journal of version 0.1.

    Its first line is the settings as JSON. A record has the lengths of its two parts, their CRC-32,
    a JSON head, and the detections: the number of columns, then float32. A kill may have torn it.
    """
    line = file.readline()
    if not line.endswith(b"\n"):
        return
    try:
        earlier = json.loads(line)
    except ValueError:
        raise UserError(f"{path}: its first line is no JSON, so it is none of ours") from None
    if not isinstance(earlier, dict):
        raise UserError(f"{path}: its first line is no settings, so it is none of ours")
    check_same_settings(path, earlier, settings)
    lengths = struct.Struct("<III")
    size = os.fstat(file.fileno()).st_size
    while len(start := file.read(lengths.size)) == lengths.size:
        head_size, body_size, crc = lengths.unpack(start)
        if head_size + body_size > size - file.tell():
            return
        head, body = file.read(head_size), file.read(body_size)
        if zlib.crc32(body, zlib.crc32(head)) != crc:
            return
        image_id, name, error, image_hw, window = json.loads(head)
        found = None
        if error is None:
            found = _detections(body[4:], tuple(settings["class_names"]), image_hw, window)
        yield FrameRecord(image_id, name, error, found)


def check_same_settings(
    path: Path, earlier: Mapping[str, object], now: Mapping[str, object]
) -> None:
    """Refuses to go on with a run of other settings.

    Raises:
      UserError: naming each that differs, as it was and as it is.
    """
    now = json.loads(json.dumps(now))
    if not earlier.get("score_thresholds", True):
        # Thresholds of earlier versions; where there were none, nothing has changed.
        earlier = {"class_thresholds": [], **earlier}
        del earlier["score_thresholds"]
    missing = object()
    differing = [
        f"{key} ({earlier.get(key, 'not set')} then, {now.get(key, 'not set')} now)"
        for key in [*earlier, *(key for key in now if key not in earlier)]
        if earlier.get(key, missing) != now.get(key, missing)
    ]
    if differing:
        raise UserError(
            f"--resume: {path} is of a run with another {'; another '.join(differing)}: give what "
            "was given then, or choose another --output"
        )
