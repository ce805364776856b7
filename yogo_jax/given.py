"""What users give by name: paths, in flags and in configs, and text files."""

import argparse
import os
from pathlib import Path

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
