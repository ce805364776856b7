"""Frames of a zarr store, as the instrument writes them, read chunk by chunk."""

import functools
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import Bool, UInt8

from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import FrameError


# Each array and group has one of these files.
_MARKERS = (".zarray", ".zgroup", "zarr.json")
# Of OME-Zarr before version 0.3, which did not write them down.
_OLD_AXES = ("t", "c", "z", "y", "x")
_MOST_NAMED = 5
# Levels of folders in which a store is looked for.
_DEEPEST = 8


class FoundArray(NamedTuple):
    """An array of a store.

    Attributes:
      path: what to give by `--zarr` to have this one; of an image of OME-Zarr its group.
      array: the array; of an image in several resolutions that of the highest.
      axes: their names in OME-Zarr; None where nobody says.
    """

    path: str
    array: Any
    axes: tuple[str, ...] | None


def _stores_below(folder: Path) -> Iterator[str]:
    """Paths in a folder of the stores in it; itself, if it is one."""
    for parent, folders, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        if not set(_MARKERS).isdisjoint(names):
            yield "" if below == Path() else below.as_posix()
            folders.clear()
        elif len(below.parts) == _DEEPEST:
            folders.clear()


def _files_below(folder: Path, prefix: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        below = Path(parent).relative_to(folder).as_posix()
        yield from (prefix + (name if below == "." else f"{below}/{name}") for name in names)


def _arrays_in(node: Any) -> Iterator[FoundArray]:
    """Arrays of frames in a node: itself, an image of OME-Zarr, arrays of a group, or below it."""
    if isinstance(node, zarr.Array):
        yield FoundArray(node.path, node, None)
        return
    attributes = dict(node.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if images:
        # The first one is that of the highest resolution.
        array = node[images[0]["datasets"][0]["path"]]
        axes = images[0].get("axes", _OLD_AXES)
        names = tuple(each["name"] if isinstance(each, dict) else each for each in axes)
        if len(names) != array.ndim:
            raise UserError(
                f"--zarr: {array.path} has {array.ndim} axes, its OME-Zarr metadata names "
                f"{len(names)}: mend the metadata, or give the array itself"
            )
        yield FoundArray(node.path, array, names)
        return
    arrays = [FoundArray(each.path, each, None) for _, each in node.arrays()]
    if arrays:
        yield from arrays
        return
    for _, group in node.groups():
        yield from _arrays_in(group)


class ZarrFrames:
    """One array of gray frames in a folder or zip store.

    Frames at the end that were never written are not counted.

    Args:
      path: of a folder or zip, or of a folder within a zip. The store may also lie in a folder
        below; it must be the only one there.
      rgb: three channels instead of one, all alike.
      layout: "hwn" (rows, columns, frames: the instrument's) or "nhw"; None is decided by the
        shape, or else by the chunks, which then hold whole frames. OME-Zarr says it itself.
      frame_hw: sizes that frames are expected in, for the former.

    Attributes:
      unwritten: frames at the end of the array that were never written.

    Raises:
      UserError: it is no such store, its layout cannot be told, or nothing was written.
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
        try:
            self._use(self._open(), layout, frame_hw)
        except BaseException:
            self.close()
            raise

    def _open(self) -> FoundArray:
        """The only array of the store."""
        path, container = self._path, self._path
        if not path.exists():
            # A path may go on within a zip file.
            container = next((parent for parent in path.parents if parent.is_file()), path)
        if not container.exists():
            raise UserError(f"--zarr {path}: does not exist")
        self._container = container
        try:
            self._files: set[str] | None = None
            if container.is_file():
                with zipfile.ZipFile(container) as file:  # BadZipFile: it is none, or was cut short
                    self._files = set(file.namelist())
            open_store = zarr.storage.LocalStore if self._files is None else zarr.storage.ZipStore
            self._store = open_store(container, read_only=True)
            nodes = [zarr.open(self._store, path=top, mode="r") for top in self._tops()]
            found = [each for node in nodes for each in _arrays_in(node)]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"--zarr {path}: expected a zarr store, a folder or a zip ({error})"
            ) from None
        if not found:
            raise UserError(
                f"--zarr {path}: expected a zarr store, a folder or a zip, found no array"
            )
        if len(found) > 1:
            paths = sorted(each.path for each in found)
            named = ", ".join(f"{container}/{each}" for each in paths[:_MOST_NAMED])
            more = ", …" if len(found) > _MOST_NAMED else ""
            raise UserError(
                f"--zarr {path}: expected one array, found {len(found)}: give one of {named}{more}"
            )
        return found[0]

    def _tops(self) -> list[str]:
        """Paths in the store of its topmost nodes."""
        if self._path != self._container:
            return [self._path.relative_to(self._container).as_posix()]
        if self._files is None:
            return sorted(_stores_below(self._container))
        files = map(PurePosixPath, self._files)
        folders = {file.parent for file in files if file.name in _MARKERS}
        folders = {each for each in folders if len(each.parts) <= _DEEPEST}
        topmost = (each for each in folders if folders.isdisjoint(each.parents))
        return sorted("" if each == PurePosixPath() else str(each) for each in topmost)

    def _written_chunks(self) -> Bool[np.ndarray, "..."]:
        """For each chunk (or shard of chunks) of the array, in its grid, whether it is there."""
        array = self._array
        parts = array.shards or array.chunks
        grid = [-(-size // part) for size, part in zip(array.shape, parts, strict=True)]
        prefix = f"{array.path}/" if array.path else ""
        files = self._files
        if files is None:
            files = set(_files_below(self._container / array.path, prefix))
        keys = (prefix + array.metadata.encode_chunk_key(place) for place in np.ndindex(*grid))
        return np.array([key in files for key in keys], bool).reshape(grid)

    def _use(
        self, found: FoundArray, layout: str | None, frame_hw: tuple[tuple[int, int], ...]
    ) -> None:
        path, array = self._path, found.array
        self._array = array
        shape, chunks = array.shape, array.chunks
        self._by_columns = False
        if found.axes is None:
            if array.ndim != 3 or array.dtype != np.uint8:
                raise UserError(
                    f"--zarr {path}: expected an array of gray frames, three axes of uint8, found "
                    f"{shape} of {array.dtype}"
                )
            self.layout = layout or _layout(path, shape, chunks, frame_hw)
            self._axis = 2 if self.layout == "hwn" else 0
            self._frame_hw = shape[:2] if self.layout == "hwn" else shape[1:]
        else:
            if layout is not None:
                raise UserError(
                    f"--zarr-layout: {path} is OME-Zarr, which says its axes: leave it out"
                )
            self.layout = "".join(found.axes)
            self._axis = _frame_axis(path, found)
            y, x = found.axes.index("y"), found.axes.index("x")
            self._frame_hw, self._by_columns = (shape[y], shape[x]), x < y
        self._frames_a_chunk = chunks[self._axis]
        self._fill = array.fill_value or 0
        self.title = path.absolute().stem if path.name else path.resolve().stem or "frames"
        # Chunks of several frames are read once for all of them, and not by several threads at
        # once, which would each hold a copy. Of chunks of one frame nothing need be shared.
        self._chunk: Callable[[int], np.ndarray] = self._read_chunk
        self._shared = self._frames_a_chunk > 1
        if self._shared:
            self._chunk = functools.lru_cache(maxsize=2)(self._read_chunk)
        self._lock = threading.Lock()
        # One row for each block of frames, which have their chunks (or shards) in common.
        self._written = np.moveaxis(self._written_chunks(), self._axis, 0)
        self._written = self._written.reshape(len(self._written), -1)
        self._frames_a_block = (array.shards or chunks)[self._axis]
        self.count: int | None = self._written_frames(shape[self._axis])
        self.unwritten = shape[self._axis] - self.count
        if self.count == 0:
            raise UserError(
                f"--zarr {path}: none of its {shape[self._axis]} frames was ever written; copy the "
                "store again, with its chunks"
            )
        self.identity = {
            "zarr": str(path.absolute()),
            "array": f"{shape} in {chunks} as {self.layout}",
        }

    def _written_frames(self, declared: int) -> int:
        """Frames up to the last one that was written.

        Its pixels decide, not its chunk: one chunk may have several frames, and a program may write
        chunks of zeros before there are frames.
        """
        count = declared
        while count:
            block = (count - 1) // self._frames_a_block
            number, last = divmod(count - 1, self._frames_a_chunk)
            if not self._written[block].any():
                count = block * self._frames_a_block
                continue
            try:
                chunk = self._read_chunk(number)
            except Exception:  # told of when it is read for its frames
                return count
            for place in range(last, -1, -1):
                if not self._is_unwritten(self._frame_of(chunk, place)):
                    return count
                count -= 1
        return 0

    def name(self, index: int) -> str:
        """The number of a frame."""
        return f"{index:06d}"

    stem = name

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of a frame.

        Raises:
          FrameError: its chunk cannot be read, or was never written.
        """
        block = self._written[index // self._frames_a_block]
        if block.any() and not block.all():
            raise FrameError(
                f"{self._path}, frame {index}: {int((~block).sum())} of its {len(block)} chunks "
                "are missing: either the store is not complete: copy it again; or the program that "
                "wrote it leaves out chunks whose pixels all have the fill value: write them, too "
                "(zarr: write_empty_chunks=True)"
            )
        try:
            frame = self._frame(index)
        except Exception as error:  # stores and codecs raise nearly anything
            raise FrameError(f"{self._path}, frame {index}: cannot be read ({error})") from None
        if self._is_unwritten(frame):
            raise FrameError(
                f"{self._path}, frame {index}: all pixels are {frame[0, 0]}, it was not written"
            )
        return np.repeat(frame[:, :, None], 3 if self._rgb else 1, axis=2)

    def _is_unwritten(self, frame: UInt8[np.ndarray, "h w"]) -> bool:
        # A store reads as its fill value where nothing was written; and no camera is so dark.
        return frame[0, 0] in (0, self._fill) and bool((frame == frame[0, 0]).all())

    def _frame(self, index: int) -> UInt8[np.ndarray, "h w"]:
        number, place = divmod(index, self._frames_a_chunk)
        with self._lock if self._shared else nullcontext():
            chunk = self._chunk(number)
        return self._frame_of(chunk, place)

    def _frame_of(self, chunk: UInt8[np.ndarray, "..."], place: int) -> UInt8[np.ndarray, "h w"]:
        # Axes of OME-Zarr besides rows and columns have one entry.
        frame = chunk.take(place, self._axis)
        h, w = self._frame_hw
        return frame.reshape(w, h).T if self._by_columns else frame.reshape(h, w)

    def _read_chunk(self, number: int) -> UInt8[np.ndarray, "..."]:
        frames = slice(number * self._frames_a_chunk, (number + 1) * self._frames_a_chunk)
        return np.asarray(self._array[(slice(None),) * self._axis + (frames,)])

    def close(self) -> None:
        """Closes the store."""
        if self._store is not None:
            self._store.close()


def _frame_axis(path: Path, found: FoundArray) -> int:
    """The axis of OME-Zarr that counts frames.

    Raises:
      UserError: it has several channels or slices, or is not of 8 bits.
    """
    assert found.axes is not None
    array = found.array
    if array.dtype != np.uint8:
        raise UserError(f"--zarr {path}: expected pixels of uint8, found {array.dtype}")
    sizes = dict(zip(found.axes, array.shape, strict=True))
    if not {"t", "y", "x"} <= sizes.keys():
        raise UserError(f"--zarr {path}: expected the axes t, y and x, found {', '.join(sizes)}")
    others = [name for name in sizes if name not in ("t", "y", "x") and sizes[name] > 1]
    if others:
        named = " and ".join(f"{sizes[name]} along {name}" for name in others)
        raise UserError(
            f"--zarr {path}: several images for each frame: {named}; expected frames along t only; "
            "save one of them"
        )
    return found.axes.index("t")


def _layout(
    path: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    frame_hw: tuple[tuple[int, int], ...],
) -> str:
    """The axes of a store: the frame axis is not height or width, or else the one that chunks cut.

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
