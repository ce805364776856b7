"""The array of frames in a zarr store: a folder or a zip, plain or as OME-Zarr lays it out."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import Bool

from yogo_jax.errors import UserError


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


class OpenedStore:
    """A store, and the one array of frames in it.

    Args:
      path: of a folder or zip, or of a folder within a zip. The store may also lie in a folder
        below; it must be the only one there.

    Attributes:
      found: the array.

    Raises:
      UserError: there is no store, or several arrays, which are then named.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        container, within = _container(path)
        if container is None:
            raise UserError(f"--zarr {path}: does not exist")
        self._container = container
        self._store: Any = None
        try:
            self.found = self._only_array(within)
        except BaseException:
            self.close()
            raise

    def _only_array(self, within: str) -> FoundArray:
        container = self._container
        try:
            self._files = _files_of_zip(container) if container.is_file() else None
            open_store = zarr.storage.LocalStore if self._files is None else zarr.storage.ZipStore
            self._store = open_store(container, read_only=True)
            found = [each for top in self._tops(within) for each in self._arrays_below(top)]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"--zarr {self._path}: expected a zarr store, a folder or a zip ({error})"
            ) from None
        if not found:
            raise UserError(
                f"--zarr {self._path}: expected a zarr store, a folder or a zip, found no array"
            )
        if len(found) > 1:
            paths = sorted(each.path for each in found)
            named = ", ".join(f"{container}/{each}" for each in paths[:_MOST_NAMED])
            more = ", …" if len(found) > _MOST_NAMED else ""
            raise UserError(
                f"--zarr {self._path}: expected one array, found {len(found)}: give one of "
                f"{named}{more}"
            )
        return found[0]

    def _tops(self, within: str) -> list[str]:
        """Paths in the store of its topmost nodes."""
        if within:
            return [within]
        if self._files is None:
            return sorted(_stores_below(self._container))
        folders = {name.rpartition("/")[0] for name in self._files if _name(name) in _MARKERS}
        folders = {each for each in folders if each.count("/") < _DEEPEST}
        return sorted(each for each in folders if not _has_parent(each, folders))

    def _arrays_below(self, path: str) -> Iterator[FoundArray]:
        yield from _arrays_in(zarr.open(self._store, path=path, mode="r"))

    def written(self) -> Bool[np.ndarray, "..."]:
        """For each chunk (or shard of chunks) of the array, in its grid, whether it is there."""
        array = self.found.array
        parts = array.shards or array.chunks
        grid = [-(-size // part) for size, part in zip(array.shape, parts, strict=True)]
        prefix = f"{array.path}/" if array.path else ""
        files = self._files
        if files is None:
            files = set(_files_below(self._container / array.path, prefix))
        keys = (prefix + array.metadata.encode_chunk_key(place) for place in np.ndindex(*grid))
        return np.array([key in files for key in keys], bool).reshape(grid)

    def close(self) -> None:
        """Closes the store."""
        if self._store is not None:
            self._store.close()
            self._store = None


def _container(path: Path) -> tuple[Path | None, str]:
    """The folder or file that is there, and what of the path lies within that file."""
    if path.exists():
        return path, ""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None, ""


def _files_of_zip(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as file:  # BadZipFile: it is none, or was cut short
        return set(file.namelist())


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


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _has_parent(folder: str, folders: set[str]) -> bool:
    return any(
        other != folder and folder.startswith(f"{other}/" if other else "") for other in folders
    )


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
