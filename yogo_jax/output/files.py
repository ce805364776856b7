"""Files that are whole or not there."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yogo_jax.errors import UserError


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
