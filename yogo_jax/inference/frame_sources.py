"""Frames to look at, one at a time: image files, stacks of them, stores and videos.

A source knows the names of its frames and reads each when asked, so that memory does not grow with
their number. What cannot be read is a `FrameError` of that one frame.
"""

import glob
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.data.headers import find_oriented, orientation_lines
from yogo_jax.data.images import TiffStack, decode_image, is_image_name
from yogo_jax.data.tiff_frames import TiffFrame, tiff_frames
from yogo_jax.drawing import as_frame
from yogo_jax.errors import UserError
from yogo_jax.files import given_path


_STACK_SUFFIXES = (".tif", ".tiff")
_OPEN_STACKS = 2


class FrameError(UserError):
    """One frame that cannot be read; the others are not touched by it."""


class EndOfFramesError(Exception):
    """There is no such frame: the source is at its end, which it did not know before."""


@runtime_checkable
class FrameSource(Protocol):
    """Frames in order.

    Attributes:
      title: a short name, for files that are named after the source.
      identity: tells, as plain values, whether another source has the same frames.
      count: frames, or None if only reading tells.
      in_order: whether frames can only be read one after the other, by one thread.
    """

    title: str
    identity: dict[str, str]
    count: int | None
    in_order: bool

    def name(self, index: int) -> str:
        """The name of a frame in tables."""

    def stem(self, index: int) -> str:
        """A relative path without suffix, for files of one frame."""

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of a frame.

        Raises:
          FrameError: they cannot be read.
          EndOfFramesError: the source has no more frames.
        """

    def close(self) -> None:
        """Closes what is open."""


class _Item(NamedTuple):
    """One image file, or one frame of a TIFF stack, of which `frame` says where it lies."""

    path: str
    name: str
    stem: str
    frame: TiffFrame | None


class ImageFiles:
    """Image files; each frame of a TIFF stack is one.

    Args:
      paths: of the files, in order.
      root: the folder that names are relative to.
      title: see `FrameSource`.
      rgb: three channels instead of one.
      apply_orientation: turn the pixels as their EXIF or TIFF tag says.
    """

    in_order = False

    def __init__(
        self,
        paths: Iterable[str],
        *,
        root: str,
        title: str,
        rgb: bool,
        apply_orientation: bool = True,
    ) -> None:
        self.title = title
        self._as_asked = {"rgb": rgb, "apply_orientation": apply_orientation}
        paths = [*paths]
        # Files that are not stored upright.
        self.oriented = len(find_oriented(paths))
        self._items: list[_Item] = []
        self._stacks: OrderedDict[str, TiffStack] = OrderedDict()
        self._lock = threading.Lock()
        digest = hashlib.sha256()
        for path in paths:
            name = _as_text(Path(os.path.relpath(path, root)).as_posix())
            stem = Path(name).with_suffix("").as_posix()
            stack = _stack_of(path)
            for i, frame in enumerate(stack):
                self._items.append(_Item(path, f"{name}[{i}]", f"{stem}_{i:06d}", frame))
            if not stack:
                self._items.append(_Item(path, name, stem, None))
            size = os.path.getsize(path) if os.path.isfile(path) else -1
            digest.update(f"{name}\0{size}\0{len(stack)}\n".encode())
        self.count: int | None = len(self._items)
        self.identity = {"images": os.path.abspath(root), "files": digest.hexdigest()}
        if self.oriented:
            done = "turned" if apply_orientation else "not turned"
            self.identity["orientation"] = f"{self.oriented} files {done}"

    def name(self, index: int) -> str:
        """The file's path below the root, and the number of the frame if it has several."""
        return self._items[index].name

    def stem(self, index: int) -> str:
        """The same without the suffix."""
        return self._items[index].stem

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of a file, or of one of its frames."""
        item = self._items[index]
        try:
            if item.frame is None:
                return decode_image(item.path, **self._as_asked)
            with self._lock:
                return self._stack(item.path).read(item.frame, **self._as_asked)
        except UserError as error:
            raise FrameError(_as_text(str(error))) from None
        except OSError as error:
            raise FrameError(_as_text(f"{item.path}: {error.strerror or error}")) from None

    def _stack(self, path: str) -> TiffStack:
        if path not in self._stacks:
            while len(self._stacks) >= _OPEN_STACKS:
                self._stacks.popitem(last=False)[1].close()
            self._stacks[path] = TiffStack(path)
        self._stacks.move_to_end(path)
        return self._stacks[path]

    def close(self) -> None:
        """Closes the stacks."""
        while self._stacks:
            self._stacks.popitem()[1].close()


ImageLike = str | os.PathLike[str] | np.ndarray


class GivenImages:
    """Images that a program gives, as paths or as arrays.

    Args:
      images: paths of image files, or uint8 arrays, see `drawing.as_frame`.
      rgb: three channels instead of one.
      apply_orientation: turn the pixels of files as their EXIF or TIFF tag says.

    Raises:
      UserError: there is none, or one of them is no image; the message names it.
    """

    title = "images"
    in_order = False

    def __init__(self, images: Sequence[ImageLike], *, rgb: bool, apply_orientation: bool) -> None:
        if not images:
            raise UserError("expected an image or a list of them, found an empty list")
        self._rgb = rgb
        self._apply_orientation = apply_orientation
        self._images = [self._checked(index, image) for index, image in enumerate(images)]
        self.count: int | None = len(images)
        self.identity: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def _checked(self, index: int, image: object) -> str | np.ndarray:
        if isinstance(image, np.ndarray):
            try:
                return as_frame(image)
            except UserError as error:
                raise UserError(f"image {index}: {error}") from None
        if isinstance(image, (str, os.PathLike)):
            return str(given_path(os.fspath(image)))
        raise UserError(
            f"image {index}: expected a path or a uint8 array, found {type(image).__name__}"
        )

    def name(self, index: int) -> str:
        """The path as it was given, or the number of the image."""
        image = self._images[index]
        return image if isinstance(image, str) else f"image {index}"

    stem = name

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels, gray or RGB as the network takes them.

        Raises:
          FrameError: a file cannot be read.
        """
        image = self._images[index]
        if isinstance(image, str):
            try:
                return decode_image(image, rgb=self._rgb, apply_orientation=self._apply_orientation)
            except UserError as error:
                raise FrameError(str(error)) from None
        if image.shape[2] == (3 if self._rgb else 1):
            return image
        pixels = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
        converted = np.asarray(pixels.convert("RGB" if self._rgb else "L"))
        return converted if self._rgb else converted[:, :, None]

    def picture(self, index: int, frame: UInt8[np.ndarray, "h w c"]) -> np.ndarray:
        """The image to draw on: the array that was given, or of a file the frame that was read."""
        image = self._images[index]
        return frame if isinstance(image, str) else image

    def close(self) -> None:
        """Nothing is open."""


def _as_text(name: str) -> str:
    """A file name that is no UTF-8 in a form that can be written to one."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _stack_of(path: str) -> list[TiffFrame]:
    """Frames of a TIFF stack; none for all else, what cannot be opened too."""
    if not path.lower().endswith(_STACK_SUFFIXES):
        return []
    try:
        frames = tiff_frames(path)
    except Exception:  # reading it as an image says why
        return []
    return frames if len(frames) > 1 else []


def open_images(
    where: str,
    *,
    rgb: bool,
    apply_orientation: bool = True,
    lines: Iterable[str] = (),
    leave_out: Path | None = None,
    say: Callable[[str], None] = print,
) -> ImageFiles:
    """The source that `--images` means.

    Args:
      where: a file, a folder, a pattern with `*`, `?` or `[`, or `-` for a list.
      rgb: three channels instead of one.
      apply_orientation: turn the pixels as their EXIF or TIFF tag says.
      lines: the list, one path a line.
      say: is told what was left out, and what is turned.

    Raises:
      UserError: there is nothing of the kind, or no image in it.
    """
    files, root, title = _files_of(where, lines, leave_out, say)
    source = ImageFiles(files, root=root, title=title, rgb=rgb, apply_orientation=apply_orientation)
    for line in orientation_lines(source.oriented, applied=apply_orientation):
        say(line)
    return source


def _files_of(
    where: str, lines: Iterable[str], leave_out: Path | None, say: Callable[[str], None]
) -> tuple[list[str], str, str]:
    """The files of `open_images`, the folder that names are relative to, and a title."""
    if where == "-":
        paths = [path for line in lines if (path := line.rstrip("\r\n")).strip()]
        if not paths:
            raise UserError("--images -: expected one path a line on standard input, found none")
        return paths, _common_folder(paths), "stdin"
    if os.path.isdir(where):
        entries = sorted(Path(where).iterdir())
        names = [entry.name for entry in entries if entry.is_file()]
        images = [name for name in names if is_image_name(name)]
        if not images:
            below = any(entry.is_dir() for entry in entries)
            hint = f"; for those in its subfolders say --images '{where}/**/*.png'" if below else ""
            raise UserError(f"--images {where}: no image in this folder{hint}")
        _tell_left_out(len(names) - len(images), say)
        paths = [os.path.join(where, name) for name in images]
        return paths, where, _title(where)
    if os.path.isfile(where):
        return [where], os.path.dirname(where), _title(where)
    if not glob.has_magic(where):
        raise UserError(f"--images {where}: does not exist; expected an image, a folder, a pattern")
    found = sorted(
        path
        for path in glob.glob(where, recursive=True)
        if os.path.isfile(path)
        and (leave_out is None or leave_out.absolute() not in Path(os.path.abspath(path)).parents)
    )
    images = [path for path in found if is_image_name(os.path.basename(path))]
    if not images:
        raise UserError(f"--images '{where}': no image matches this pattern")
    _tell_left_out(len(found) - len(images), say)
    root = _common_folder(images)
    return images, root, _title(root)


def _common_folder(paths: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _title(path: str) -> str:
    whole = Path(os.path.abspath(path))
    return (whole.name if whole.is_dir() else whole.stem) or "frames"


def _tell_left_out(count: int, say: Callable[[str], None]) -> None:
    if count:
        say(f"{count} other files there are no images and are left out")


def check_distinct_stems(source: FrameSource) -> None:
    """Refuses sources in which two frames would be written to one file.

    Raises:
      UserError: naming the frames.
    """
    seen: dict[str, int] = {}
    for index in range(source.count or 0):
        other = seen.setdefault(source.stem(index), index)
        if other != index:
            raise UserError(
                f"{source.name(other)} and {source.name(index)} would be written to the same file: "
                "rename one, or run them apart"
            )
