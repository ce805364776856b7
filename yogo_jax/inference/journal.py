"""The journal of an inference: every finished frame, in order, in one file.

It is what an interrupted run continues from, and what the files over all frames are written from at
the end, so that memory does not grow with the frames. It starts with one line of JSON, the settings
of the run; each record is its length, its CRC-32, a JSON head and the detections as float32.
"""

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Float32

from yogo_jax.detector.found import Found
from yogo_jax.errors import UserError


JOURNAL_NAME = "infer.journal"
_LENGTHS = struct.Struct("<III")  # of the head in bytes, of the detections in bytes, and the CRC
_BOX_COLUMNS = 5  # corners and objectness; the class probabilities follow
_LONGEST = 1 << 30


class FrameRecord(NamedTuple):
    """What is known of one frame.

    Attributes:
      image_id: its place in the source.
      name: what the source calls it.
      error: why it was skipped; None if it was looked at.
      frame_hw: its own size in px.
      window_xyxy: the part that the network saw, as fractions of the frame.
      found: detections, with boxes as fractions of that part.
    """

    image_id: int
    name: str
    error: str | None
    frame_hw: tuple[int, int]
    window_xyxy: tuple[float, float, float, float]
    found: Found

    def boxes_in_frame(self) -> Float32[np.ndarray, "n 4"]:
        """Corners as fractions of the whole frame; they may reach over its edges."""
        x1, y1, x2, y2 = self.window_xyxy
        scale = np.asarray((x2 - x1, y2 - y1, x2 - x1, y2 - y1))
        return (self.found.boxes_xyxy * scale + (x1, y1, x1, y1)).astype(np.float32)


def skipped(image_id: int, name: str, error: str, classes: int) -> FrameRecord:
    """The record of a frame that could not be read."""
    nothing = Found(*(np.zeros(shape, np.float32) for shape in ((0, 4), (0,), (0, classes))))
    return FrameRecord(image_id, name, error, (0, 0), (0.0, 0.0, 1.0, 1.0), nothing)


class Journal:
    """A journal that is being written, or gone on with.

    Use as a context manager. Another process cannot write the same journal at the same time.

    Args:
      folder: of the outputs.
      settings: everything that the outputs follow from, as plain values.
      resume: go on with what is there.

    Raises:
      UserError: the journal is of other settings, in use, or none of ours.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], *, resume: bool) -> None:
        self.path = folder / JOURNAL_NAME
        is_new = not (resume and self.path.exists())
        self._file: IO[bytes] = self.path.open("ab" if is_new else "r+b")
        try:
            self._lock()
            if is_new:
                self._file.write(json.dumps(settings).encode() + b"\n")
                self._file.flush()
                self._start = self._file.tell()
                self.count = 0
            else:
                self._continue(settings)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.path}: another process is writing it; wait for it") from None

    def _continue(self, settings: Mapping[str, object]) -> None:
        head = self._file.readline()
        self._start = len(head)
        if not head.endswith(b"\n"):
            # Killed before the first line was whole: there is nothing to lose.
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(settings).encode() + b"\n")
            self._file.flush()
            self._start, self.count = self._file.tell(), 0
            return
        try:
            earlier = json.loads(head)
        except ValueError:
            raise UserError(
                f"{self.path}: its first line is no JSON, so it is none of ours"
            ) from None
        if not isinstance(earlier, dict):
            raise UserError(f"{self.path}: its first line is no settings, so it is none of ours")
        check_same_settings(self.path, earlier, settings)
        self.count, end = 0, self._start
        for pair in self._read():
            self.count, end = self.count + 1, pair[1]
        # What follows is a record that a kill tore, or nothing.
        self._file.truncate(end)
        self._file.seek(end)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, record: FrameRecord) -> None:
        """Adds a finished frame; after that, a kill of the process does not lose it."""
        found = record.found
        head = json.dumps(
            [record.image_id, record.name, record.error, record.frame_hw, record.window_xyxy]
        ).encode()
        rows = np.concatenate(
            [found.boxes_xyxy, found.objectness[:, None], found.class_probs], axis=1
        )
        body = np.asarray([rows.shape[1]], "<u4").tobytes() + rows.astype("<f4").tobytes()
        crc = zlib.crc32(body, zlib.crc32(head))
        self._file.write(_LENGTHS.pack(len(head), len(body), crc) + head + body)
        self._file.flush()
        self.count += 1

    def records(self) -> Iterator[FrameRecord]:
        """All records from the first on; one is in memory at a time."""
        for record, _ in self._read():
            yield record

    def _read(self) -> Iterator[tuple[FrameRecord, int]]:
        """Whole records, and where each ends."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(self._start)
            while len(lengths := file.read(_LENGTHS.size)) == _LENGTHS.size:
                head_size, body_size, crc = _LENGTHS.unpack(lengths)
                if head_size + body_size > min(size - file.tell(), _LONGEST):
                    return
                head, body = file.read(head_size), file.read(body_size)
                if zlib.crc32(body, zlib.crc32(head)) != crc:
                    return
                yield _parse(head, body), file.tell()

    def remove(self) -> None:
        """Deletes the journal, when everything is written from it."""
        self.path.unlink()


def _parse(head: bytes, body: bytes) -> FrameRecord:
    image_id, name, error, frame_hw, window = json.loads(head)
    columns = int(np.frombuffer(body, "<u4", 1)[0])
    rows = np.frombuffer(body, "<f4", offset=4).reshape(-1, columns).astype(np.float32)
    boxes, objectness, class_probs = np.split(rows, (4, _BOX_COLUMNS), axis=1)
    found = Found(boxes, objectness[:, 0], class_probs)
    return FrameRecord(image_id, name, error, tuple(frame_hw), tuple(window), found)


def check_same_settings(
    path: Path, earlier: Mapping[str, object], now: Mapping[str, object]
) -> None:
    """Refuses to go on with a run of other settings.

    Raises:
      UserError: naming each that differs, as it was and as it is.
    """
    now = json.loads(json.dumps(now))
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
