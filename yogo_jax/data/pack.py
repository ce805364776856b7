"""Packs: all images of some records decoded once into one array in a file, which processes map.

    CACHE/packs/KEY/images.npy    uint8 [n h w c], in the order of the records

The key is a digest of the contents of the image files, their order, and all that their pixels
depend on. So a pack is never out of date, and runs that read the same images share it.
"""

import concurrent.futures
import errno
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import numpy as np
import PIL
import simplejpeg

from yogo_jax.data.images import read_image
from yogo_jax.data.pipeline import (
    PackedImages,
    leave_with_parent,
    signals_held_back,
    start_resource_tracker,
)
from yogo_jax.errors import UserError
from yogo_jax.files import reserve_space, write_atomically
from yogo_jax.startup import cache_folder


# Raised whenever the same file would be decoded to other pixels.
_VERSION = 2
# Images that a worker decodes at a time: enough to be worth the way, few enough to see it move.
_CHUNK = 16
_READERS = 8
# An unfinished pack that nobody has written to for so long is that of a process that was killed.
_SECONDS_UNTIL_LEFT = 3600

# Told how many images of how many are done; what it raises ends the packing.
Tell = Callable[[int, int], None]
Decode = Callable[[str], np.ndarray]


def pack_bytes(count: int, image_hw: tuple[int, int], *, rgb: bool) -> int:
    """Size of a pack."""
    return count * image_hw[0] * image_hw[1] * (3 if rgb else 1)


def room_for_packs() -> int:
    """Free bytes where packs are kept."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class CannotPackError(UserError):
    """Images cannot be packed here: no room, or no folder to write to. They can be decoded."""


def find_pack(
    paths: Sequence[str],
    *,
    image_hw: tuple[int, int],
    rgb: bool,
    apply_orientation: bool = True,
) -> PackedImages:
    """The pack of these images as `read_image` gives them, made or not.

    Args:
      paths: of the image files.
      image_hw: that they are resized to.
      rgb: three channels instead of one.
      apply_orientation: turn them as their EXIF or TIFF tag says.

    Raises:
      UserError: an image cannot be read.
      CannotPackError: the cache folder cannot be written.
    """
    with _as_cannot_pack(cache_folder()):
        key = _content_key(paths, image_hw, rgb, apply_orientation)
    return PackedImages(cache_folder() / "packs" / key / "images.npy")


def make_pack(
    packed: PackedImages,
    paths: Sequence[str],
    *,
    image_hw: tuple[int, int],
    rgb: bool,
    workers: int,
    tell: Tell,
    apply_orientation: bool = True,
) -> None:
    """Decodes the images into their pack, unless another process has done so meanwhile.

    Of several processes that want a pack one makes it, and the others wait. One that is killed
    while it packs leaves nothing that is read.

    Args:
      packed: where, from `find_pack` of the same images.
      paths, image_hw, rgb, apply_orientation: as for `find_pack`.
      workers: processes that decode; 0 decodes in threads of this one.
      tell: called every few images.

    Raises:
      UserError: an image cannot be read.
      CannotPackError: the pack does not fit on the disk, or cannot be written.
    """
    folder = packed.path.parent
    with _as_cannot_pack(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
    with lock:
        _wait_for_own(lock, folder, functools.partial(tell, 0, len(paths)))
        if not packed.made:
            decode = functools.partial(
                read_image, image_hw=image_hw, rgb=rgb, apply_orientation=apply_orientation
            )
            shape = (len(paths), *image_hw, 3 if rgb else 1)
            _build(packed.path, shape, lambda partial: _fill(partial, paths, decode, workers, tell))


@contextmanager
def _as_cannot_pack(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "make room, or set" if full else "set"
        raise CannotPackError(
            f"images cannot be packed in {folder}: {error.strerror or error}; {fix} YOGO_JAX_CACHE "
            "to another folder, or --config.data.cache=none"
        ) from error


def _wait_for_own(lock: TextIO, folder: Path, waiting: Callable[[], None]) -> None:
    """Takes the lock, which goes with the process that holds it, however that ends.

    On a file system without locks several may pack the same, each in a file of its own.
    """
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            waiting()
            time.sleep(0.2)
        except OSError:
            return
    _remove_left_by_kills(folder)


def _remove_left_by_kills(folder: Path) -> None:
    # Some locks hold on one node only: what another one is filling must stay.
    own = f"{socket.gethostname()}-"
    for partial in folder.glob("*.partial"):
        with suppress(FileNotFoundError):
            age = time.time() - partial.stat().st_mtime
            if partial.name.startswith(own) or age > _SECONDS_UNTIL_LEFT:
                partial.unlink()


def _build(path: Path, shape: tuple[int, ...], fill: Callable[[Path], None]) -> None:
    partial = path.with_name(f"{socket.gethostname()}-{secrets.token_hex(4)}.partial")
    try:
        with _as_cannot_pack(path.parent):
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            reserve_space(partial)
        fill(partial)
        with _as_cannot_pack(path.parent):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fill(partial: Path, paths: Sequence[str], decode: Decode, workers: int, tell: Tell) -> None:
    chunks = [range(at, min(at + _CHUNK, len(paths))) for at in range(0, len(paths), _CHUNK)]
    done = 0
    with _pool(workers, len(chunks)) as pool:
        fill = functools.partial(_fill_chunk, partial, decode)
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


def _pool(workers: int, chunks: int) -> concurrent.futures.Executor:
    if workers == 0 or chunks < 2:
        return concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, max(chunks, 1)))
    start_resource_tracker()
    # Not forked, which neither JAX nor the threads of this process would survive.
    return concurrent.futures.ProcessPoolExecutor(
        min(workers, chunks),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=leave_with_parent,
    )


def _fill_chunk(partial: Path, decode: Decode, start: int, paths: list[str]) -> int:
    """Decodes some images to their places; returns how many."""
    array = np.lib.format.open_memmap(partial, mode="r+")
    for index, path in enumerate(paths, start):
        array[index] = decode(path)
    return len(paths)


def _content_key(
    paths: Sequence[str], image_hw: tuple[int, int], rgb: bool, apply_orientation: bool
) -> str:
    """The digest that names a pack; contents are read again only of files that have changed."""
    decoders = [PIL.__version__, simplejpeg.__version__]
    settings = json.dumps([_VERSION, *decoders, *image_hw, rgb, apply_orientation])
    stats = hashlib.sha256(settings.encode())
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; expected an image file") from None
        told = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        stats.update(repr(told).encode("utf-8", "surrogateescape"))
    known = cache_folder() / "packs" / "keys" / stats.hexdigest()
    if known.exists() and (key := known.read_text(encoding="utf-8")):
        return key
    contents = hashlib.sha256(settings.encode())
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for digest in pool.map(_digest, paths):
            contents.update(digest)
    write_atomically(known, contents.hexdigest())
    return contents.hexdigest()


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a readable image") from None
