"""Files that are whole or not there."""

import argparse
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yogo_jax.errors import UserError


def given_path(text: str) -> Path:
    """The path, with `~` and `~USER` replaced as shells do.

    Raises:
      UserError: there is no such user, or no home folder is known.
    """
    # Path.expanduser would take ./~x for ~x.
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise UserError(
            f"{text}: no home folder of {text.split('/')[0]} is known; give the whole path, or "
            f"./{text} for a file of that name"
        )
    return Path(expanded)


def path_flag(text: str) -> Path:
    """`given_path` for argparse."""
    try:
        return given_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_text_flag(text: str) -> str:
    """`path_flag` for flags that also take a pattern, or - for standard input."""
    return str(path_flag(text)) if text.startswith("~") else text


def read_given_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
      UserError: it is in another encoding; the file and its first byte that is not UTF-8 are named.
      OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Counted in the file, with the mark that the decoder leaves out.
        at = len(data) - len(error.object) + error.start
        line = data.count(b"\n", 0, at) + 1
        raise UserError(
            f"{path}:{line}: byte {at}, 0x{data[at]:02x}, is not UTF-8: save the file as UTF-8"
        ) from None


_BLOCK = 1 << 20


def reserve_space(path: Path) -> None:
    """Makes the disk keep room for all of a file that was made with holes.

    Where the disk cannot fill a hole of a mapped file, the process is killed with a bus error; here
    that is an `OSError` beforehand.

    Raises:
      OSError: the disk is full.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        # macOS has no such call: what reads as zeros is written.
        for start in range(0, size, _BLOCK):
            file.seek(start)
            block = file.read(_BLOCK)
            file.seek(start)
            file.write(block)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part.

    Several processes may write one at a time; the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    # Also where somebody interrupts: nobody writes to that name again.
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_free(folder: Path, flag: str) -> None:
    """Refuses to write over something.

    Args:
      folder: of what is to be written.
      flag: what the user set it by, for the message.

    Raises:
      UserError: something is there.
    """
    if folder.exists():
        raise UserError(f"{flag} {folder} exists: choose another, or delete it first")


# The longest name that the usual file systems hold.
MAX_NAME_BYTES = 255


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes that name when the block has ended well.

    The temporary name is always the same, so that what a kill leaves is used again by the run that
    continues: only one process may write a file at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        temporary.replace(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise


def _temporary_name(name: str) -> str:
    """A hidden name for a file to be, also where its own is as long as names can be."""
    temporary = f".{name}.tmp"
    if len(os.fsencode(temporary)) <= MAX_NAME_BYTES:
        return temporary
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.tmp"


def read_json(path: Path) -> Any:
    """Returns the values of a JSON file.

    Raises:
      UserError: the file cannot be read.
    """
    if path.is_dir():
        names = ("metrics.json", "counts.json")
        inside = [str(path / name) for name in names if (path / name).is_file()]
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise UserError(f"{path}: is a folder, expected a JSON file{hint}")
    try:
        return json.loads(read_given_text(path))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes plain values as readable JSON, atomically."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def make_folder(path: Path, flag: str) -> Path:
    """The folder, made if it is not there.

    Args:
      path: where.
      flag: what the user set it by, for the message.

    Raises:
      UserError: a file is in the way, or the place is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag} {path}: cannot be made a folder ({error.strerror}); choose another"
        ) from error
    return path
