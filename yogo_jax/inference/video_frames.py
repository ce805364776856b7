"""Frames of a video, decoded in order."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import EndOfFramesError, FrameError


# Formats that say how long they are where they do not say how many frames they have.
_WITH_DURATION = ("matroska,webm", "flv")
# Formats whose count of frames has some that are stored but not shown, or dropped.
_WITH_OTHER_FRAMES = ("mov", "avi")
# Part of a frame by which the end of the last one may be off.
_LEAST_MISSING = 0.75


class VideoFrames:
    """The frames of the first video stream of a file.

    Only decoding tells how many there are. Frames are read in order; to begin at a later one, those
    before it are decoded and passed over. If the file declares more than it has, a last frame that
    cannot be read says so.

    Args:
      path: of the video.
      rgb: three channels instead of one.

    Raises:
      UserError: it cannot be opened, or holds no video.
    """

    in_order = True
    count: int | None = None

    def __init__(self, path: Path, *, rgb: bool) -> None:
        if not path.is_file():
            raise UserError(f"--video {path}: does not exist; expected a video")
        try:
            self._container = av.open(str(path))
        except av.FFmpegError as error:
            raise UserError(f"--video {path}: cannot be opened ({error.strerror})") from None
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"--video {path}: there is no video in it")
        self._path = path
        self._format = "rgb24" if rgb else "gray"
        # What the index of the file lists; read before decoding, which adds to it.
        self._indexed = len(self._container.streams.video[0].index_entries)
        self._frames = self._decode()
        self._next = 0
        self.title = path.stem
        self.identity = {"video": str(path.absolute()), "bytes": str(path.stat().st_size)}

    def name(self, index: int) -> str:
        """The number of a frame."""
        return f"{index:06d}"

    stem = name

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of a frame; indices must not go back.

        Raises:
          FrameError: it cannot be decoded.
          EndOfFramesError: the video has no more frames.
        """
        if index < self._next:
            raise ValueError(f"frame {index} was asked for after frame {self._next - 1}")
        frame: Any = None
        while self._next <= index:
            frame = next(self._frames, None)
            if frame is None:
                raise EndOfFramesError
            self._next += 1
        if isinstance(frame, FrameError):
            raise frame
        if isinstance(frame, Exception):
            raise FrameError(f"{self._path}, frame {index}: cannot be decoded ({frame})")
        if frame.is_corrupt:
            raise FrameError(f"{self._path}, frame {index}: is damaged")
        array = frame.to_ndarray(format=self._format)
        return array if array.ndim == 3 else array[:, :, None]

    def _decode(self) -> Iterator[Any]:
        """Frames, and an error in the place of what cannot be decoded or is missing at the end."""
        found, end = 0, 0.0
        for frame in self._decode_packets():
            found += 1
            if not isinstance(frame, Exception) and frame.time is not None:
                seconds = float((frame.duration or 0) * frame.time_base)
                end = max(end, frame.time + (seconds or self._seconds_a_frame()))
            yield frame
        if missing := self._missing(found, end):
            yield FrameError(f"{self._path}: {missing}; it is cut off: copy it again")

    def _missing(self, found: int, end: float) -> str | None:
        """A line on frames that are declared and missing; the last one found ends at `end` s."""
        stream = self._container.streams.video[0]
        if stream.frames and found >= stream.frames:
            return None
        declared = self._declared_seconds(found)
        ends_early = declared - end > _LEAST_MISSING * self._seconds_a_frame()
        by_time = self._container.format.name.startswith(_WITH_OTHER_FRAMES)
        if stream.frames and (ends_early or not by_time):
            return f"the file declares {stream.frames} frames, {found} are there"
        if ends_early:
            return f"the file declares {declared:.2f} s, its {found} frames end at {end:.2f} s"
        return None

    def _declared_seconds(self, found: int) -> float:
        """The end of the video in seconds as the file declares it; 0 if it declares none.

        Of other formats FFmpeg estimates the duration from what is there.
        """
        stream, name = self._container.streams.video[0], self._container.format.name
        if name.startswith("mov") and stream.duration and stream.time_base:
            # It follows the edit list: frames that are cut away are stored, but not shown.
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        if name == "avi" and found != self._indexed:
            # A dropped frame is an empty chunk: nothing to decode, but it takes its time. If they
            # are the last ones, only the index tells, which a file that is cut off does not have.
            return stream.frames * self._seconds_a_frame()
        if name not in _WITH_DURATION:
            return 0.0
        written = stream.metadata.get("DURATION", "")
        if parts := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", written):
            hours, minutes, seconds = map(float, parts.groups())
            return 3600 * hours + 60 * minutes + seconds
        # With sound, it is the duration of whichever is longer.
        alone = len(self._container.streams) == 1
        return (self._container.duration or 0) / av.time_base if alone else 0.0

    def _seconds_a_frame(self) -> float:
        rate = self._container.streams.video[0].average_rate
        return float(1 / rate) if rate else 0.0

    def _decode_packets(self) -> Iterator[Any]:
        """Frames, and an error in the place of each packet that cannot be decoded."""
        stream = self._container.streams.video[0]
        # Damage is an error where the codec can tell, and no frame patched up from its neighbours.
        stream.codec_context.options = {"err_detect": "explode"}
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                # The file itself is damaged from here on.
                yield error
                return
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                if not isinstance(error, EOFError):
                    yield error

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
