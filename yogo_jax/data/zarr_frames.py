"""Frames of a zarr store, as the instrument writes them, read chunk by chunk."""

import functools
import threading
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt8

from yogo_jax.data.frame_sources import FrameError
from yogo_jax.errors import UserError


LAYOUTS = ("hwn", "nhw")


class ZarrFrames:
    """One array of gray frames in a folder or zip store.

    Args:
      path: of the store.
      rgb: three channels instead of one, all alike.
      layout: "hwn" (rows, columns, frames: the instrument's) or "nhw"; None is decided by the
        shape, or else by the chunks, which then hold whole frames.
      frame_hw: sizes that frames are expected in, for the former.

    Raises:
      UserError: it is no such store, or its layout cannot be told.
    """

    in_order = False

    def __init__(
        self,
        path: Path,
        *,
        rgb: bool,
        layout: str | None = None,
        frame_hw: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self._path = path
        self._rgb = rgb
        self._store: Any = None
        self._array = self._open()
        if self._array.ndim != 3 or self._array.dtype != np.uint8:
            raise UserError(
                f"--zarr {path}: expected an array of gray frames, three axes of uint8, found "
                f"{self._array.shape} of {self._array.dtype}"
            )
        shape, chunks = self._array.shape, self._array.chunks
        self.layout = layout or _layout(path, shape, chunks, frame_hw)
        self._axis = 2 if self.layout == "hwn" else 0
        self._frames_a_chunk = chunks[self._axis]
        self.title = path.absolute().stem if path.name else path.resolve().stem or "frames"
        self.count: int | None = shape[self._axis]
        self.identity = {
            "zarr": str(path.absolute()),
            "array": f"{shape} in {chunks} as {self.layout}",
        }
        # Chunks of several frames are read once for all of them, and not by several threads at
        # once, which would each hold a copy. Of chunks of one frame nothing need be shared.
        self._chunk: Callable[[int], UInt8[np.ndarray, "a b c"]] = self._read_chunk
        self._shared = self._frames_a_chunk > 1
        if self._shared:
            self._chunk = functools.lru_cache(maxsize=2)(self._read_chunk)
        self._lock = threading.Lock()

    def _open(self) -> Any:
        if not self._path.exists():
            raise UserError(f"--zarr {self._path}: does not exist")
        try:
            if self._path.is_file():
                zipfile.ZipFile(self._path).close()  # BadZipFile: it is none, or was cut short
                self._store = zarr.storage.ZipStore(self._path, mode="r")
            node = zarr.open(self._store or str(self._path), mode="r")
            arrays = [node] if isinstance(node, zarr.Array) else [a for _, a in node.arrays()]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self.close()
            raise UserError(
                f"--zarr {self._path}: expected a zarr store, a folder or a zip ({error})"
            ) from None
        if len(arrays) != 1:
            self.close()
            raise UserError(
                f"--zarr {self._path}: expected one array, found {len(arrays)}: give the folder of "
                "one of them"
            )
        return arrays[0]

    def name(self, index: int) -> str:
        """The number of a frame."""
        return f"{index:06d}"

    def stem(self, index: int) -> str:
        """The number of a frame."""
        return self.name(index)

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of a frame.

        Raises:
          FrameError: its chunk cannot be read, or was never written.
        """
        try:
            with self._lock if self._shared else nullcontext():
                chunk = self._chunk(index // self._frames_a_chunk)
        except Exception as error:  # stores and codecs raise nearly anything
            raise FrameError(f"{self._path}, frame {index}: cannot be read ({error})") from None
        frame = chunk.take(index % self._frames_a_chunk, self._axis)
        if not frame.any():
            # A store reads as its fill value where nothing was written; no camera is so dark.
            raise FrameError(f"{self._path}, frame {index}: all pixels are 0, it was not written")
        return np.repeat(frame[:, :, None], 3 if self._rgb else 1, axis=2)

    def _read_chunk(self, number: int) -> UInt8[np.ndarray, "a b c"]:
        frames = slice(number * self._frames_a_chunk, (number + 1) * self._frames_a_chunk)
        return np.asarray(self._array[(slice(None),) * self._axis + (frames,)])

    def close(self) -> None:
        """Closes the store."""
        if self._store is not None:
            self._store.close()
            self._store = None


def _layout(
    path: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    frame_hw: tuple[tuple[int, int], ...],
) -> str:
    """Which axis counts the frames: the one beside a known size, or else the one that chunks cut.

    Sizes come first: stores are also cut across their frames, for example row by row.
    """
    by_chunks = [
        layout
        for layout, cut, whole in (("hwn", 2, (0, 1)), ("nhw", 0, (1, 2)))
        if chunks[cut] < shape[cut] and all(chunks[axis] >= shape[axis] for axis in whole)
    ]
    by_shape = [
        layout
        for layout, image_hw in (("hwn", shape[:2]), ("nhw", shape[1:]))
        if image_hw in frame_hw
    ]
    for found in (by_shape, by_chunks):
        if len(found) == 1:
            return found[0]
    raise UserError(
        f"--zarr {path}: an array of {shape} in chunks of {chunks} may be rows, columns, frames or "
        "frames, rows, columns: say --zarr-layout hwn or --zarr-layout nhw"
    )
