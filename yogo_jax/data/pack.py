"""All images of some records decoded once: one array in a file, which every process maps.

    CACHE/packs/KEY/images.npy    uint8 [n h w c], in the order of the records

The key is a digest of the contents of the image files, their order, and all that their pixels
depend on. So a pack is never out of date, and runs that read the same images share it.
"""

import concurrent.futures
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import UInt8

from yogo_jax.cache import cache_folder
from yogo_jax.data.images import read_image
from yogo_jax.data.workers import leave_with_parent, signals_held_back
from yogo_jax.errors import UserError


# Raised whenever the same file would be decoded to other pixels.
_VERSION = 1
# Images that a worker decodes at a time: enough to be worth the way, few enough to see it move.
_CHUNK = 16
_READERS = 8

# Told how many images of how many are done; what it raises ends the packing.
Tell = Callable[[int, int], None]


class PackedImages:
    """A pack, mapped into memory when it is first read: in every process by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def array(self) -> UInt8[np.ndarray, "n h w c"]:
        """All images, read-only."""
        return np.load(self.path, mmap_mode="r")

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return np.array(self.array[index])

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}  # the pixels themselves would go through a pipe


def pack_bytes(count: int, image_hw: tuple[int, int], *, rgb: bool) -> int:
    """Size of a pack."""
    return count * image_hw[0] * image_hw[1] * (3 if rgb else 1)


def room_for_packs() -> int:
    """Free bytes where packs are kept."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def pack_images(
    paths: Sequence[str], *, image_hw: tuple[int, int], rgb: bool, workers: int, tell: Tell
) -> PackedImages:
    """The images as `read_image` gives them, packed now if no run has done so before.

    Of several processes that want a pack one makes it, and the others wait. One that is killed
    while it packs leaves nothing that is read.

    Args:
      paths: of the image files.
      image_hw: that they are resized to.
      rgb: three channels instead of one.
      workers: processes that decode; 0 decodes in threads of this one.
      tell: called every few images.

    Raises:
      UserError: an image cannot be read, or the pack does not fit on the disk.
    """
    key = _content_key(paths, image_hw, rgb)
    folder = cache_folder() / "packs" / key
    packed = PackedImages(folder / "images.npy")
    if packed.path.exists():
        return packed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / "lock", functools.partial(tell, 0, len(paths))):
            if not packed.path.exists():
                _build(packed.path, paths, image_hw, rgb, workers, tell)
    except OSError as error:
        needed = pack_bytes(len(paths), image_hw, rgb=rgb) / 2**30
        raise UserError(
            f"data.cache: {folder}: {error.strerror or error}; {needed:.1f} GiB are to go there: "
            "make room, set YOGO_JAX_CACHE to another folder, or --config.data.cache=none"
        ) from error
    return packed


@contextmanager
def _only_one(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however that ends.

    On a file system without locks several may pack the same, each in a file of its own.
    """
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                time.sleep(0.2)
                continue
            except OSError:
                break
            for left_by_a_kill in path.parent.glob("*.partial"):
                left_by_a_kill.unlink()
            break
        yield


def _build(
    path: Path,
    paths: Sequence[str],
    image_hw: tuple[int, int],
    rgb: bool,
    workers: int,
    tell: Tell,
) -> None:
    partial = path.with_name(f"{socket.gethostname()}-{os.getpid()}.partial")
    shape = (len(paths), *image_hw, 3 if rgb else 1)
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    with partial.open("r+b") as file:
        # Else a disk that fills up would kill the process with a bus error.
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(partial))
    del array
    chunks = [range(at, min(at + _CHUNK, len(paths))) for at in range(0, len(paths), _CHUNK)]
    done = 0
    with _pool(workers, len(chunks)) as pool:
        fill = functools.partial(_fill, partial, image_hw, rgb)
        with signals_held_back():
            futures = [
                pool.submit(fill, chunk.start, [str(paths[index]) for index in chunk])
                for chunk in chunks
            ]
        try:
            for future in concurrent.futures.as_completed(futures):
                done += future.result()
                tell(done, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    partial.replace(path)


def _pool(workers: int, chunks: int) -> concurrent.futures.Executor:
    if workers == 0 or chunks < 2:
        return concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, max(chunks, 1)))
    # Not forked, which neither JAX nor the threads of this process would survive.
    return concurrent.futures.ProcessPoolExecutor(
        min(workers, chunks),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=leave_with_parent,
    )


def _fill(partial: Path, image_hw: tuple[int, int], rgb: bool, start: int, paths: list[str]) -> int:
    """Decodes some images to their places; returns how many."""
    array = np.lib.format.open_memmap(partial, mode="r+")
    for index, path in enumerate(paths, start):
        array[index] = read_image(path, image_hw=image_hw, rgb=rgb)
    return len(paths)


def _content_key(paths: Sequence[str], image_hw: tuple[int, int], rgb: bool) -> str:
    """The digest that names a pack; contents are read again only of files that have changed."""
    settings = json.dumps([_VERSION, PIL.__version__, *image_hw, rgb])
    stats = hashlib.sha256(settings.encode())
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; expected an image file") from None
        told = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        stats.update(repr(told).encode("utf-8", "surrogateescape"))
    known = cache_folder() / "packs" / "keys" / stats.hexdigest()
    if known.exists() and (key := known.read_text()):
        return key
    contents = hashlib.sha256(settings.encode())
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for digest in pool.map(_digest, paths):
            contents.update(digest)
    key = contents.hexdigest()
    known.parent.mkdir(parents=True, exist_ok=True)
    temporary = known.with_name(f"{known.name}.{os.getpid()}.tmp")
    temporary.write_text(key)
    temporary.replace(known)
    return key


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a readable image") from None
