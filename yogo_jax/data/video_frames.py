"""Frames of a video, decoded in order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from yogo_jax.data.frame_sources import EndOfFramesError, FrameError
from yogo_jax.errors import UserError


class VideoFrames:
    """The frames of the first video stream of a file.

    Only decoding tells how many there are. Frames are read in order; to begin at a later one, those
    before it are decoded and passed over.

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
        self._frames = self._decode()
        self._next = 0
        self.title = path.stem
        self.identity = {"video": str(path.absolute()), "bytes": str(path.stat().st_size)}

    def name(self, index: int) -> str:
        """The number of a frame."""
        return f"{index:06d}"

    def stem(self, index: int) -> str:
        """The number of a frame."""
        return self.name(index)

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
        if isinstance(frame, Exception):
            raise FrameError(f"{self._path}, frame {index}: cannot be decoded ({frame})")
        if frame.is_corrupt:
            raise FrameError(f"{self._path}, frame {index}: is damaged")
        array = frame.to_ndarray(format=self._format)
        return array if array.ndim == 3 else array[:, :, None]

    def _decode(self) -> Iterator[Any]:
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
