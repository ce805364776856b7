"""A mapping in a YAML file that knows its place, so that every error names file, line and key."""

import os
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from yogo_jax.errors import UserError
from yogo_jax.files import given_path, read_given_text


@dataclass(frozen=True, eq=False)
class Section:
    """A mapping of a YAML file.

    Attributes:
      file: resolved path of the file; relative paths in it start at its folder.
      name: dotted key of the mapping, "" for the top level.
      values: what the mapping holds, not checked yet.
    """

    file: Path
    name: str
    values: CommentedMap

    def place(self, key: Any = "") -> str:
        """`file:line: dotted.key`, or as much of it as there is."""
        lines = getattr(self.values.lc, "data", None) or {}  # keys merged by `<<` have no line
        line = f":{lines[key][0] + 1}" if key in lines else ""
        if key == "" and self.name:
            line = f":{self.values.lc.line + 1}"
        dotted = ".".join(part for part in (self.name, str(key)) if part)
        return f"{self.file}{line}: {dotted}" if dotted else f"{self.file}{line}"

    def error(self, key: Any, message: str) -> UserError:
        """The error to raise about `key` ("" for the whole mapping)."""
        return UserError(f"{self.place(key)}: {message}")

    def section(self, key: Any) -> "Section":
        """The mapping under `key`, which must not be empty."""
        value = self.values[key]
        if not isinstance(value, CommentedMap):
            hint = "fill it or remove the key" if value is None else "indent `key: value` lines"
            raise self.error(key, f"is {shown(value)}; expected a mapping; {hint}")
        if not value:
            raise self.error(key, "is an empty mapping; fill it or remove the key")
        return Section(self.file, f"{self.name}.{key}".lstrip("."), value)

    def check_keys(self, known: tuple[str, ...], synonyms: dict[str, str]) -> None:
        """Refuses a key that is not known, with the nearest that is.

        Args:
          known: all keys that may stand here.
          synonyms: unknown key -> the known one it most likely means, where spelling does not tell.
        """
        for key in self.values:
            if key in known or unicodedata.normalize("NFC", str(key)) in known:
                continue
            near = [synonyms.get(str(key)), *get_close_matches(str(key), known, n=1)]
            hint = next((f"did you mean {name}? " for name in near if name in known), "")
            raise self.error(key, f"unknown key; {hint}known keys: {', '.join(known)}")

    def path(self, key: Any, value: Any) -> Path:
        """The path `value` of `key`, not resolved; it need not exist."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is {shown(value)}; expected a path as text")
        try:
            return self.file.parent / given_path(value)
        except UserError:
            raise self.error(key, f"{value!r} names no user with a home folder") from None

    def folder(self, key: Any, value: Any) -> Path:
        """The existing folder `value` of `key`, not resolved."""
        path = self.path(key, value)
        # These functions are False, where Path's methods raise, for a name too long to exist.
        if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
            return path
        found = "does not exist"
        if os.path.exists(path):
            found = "cannot be read" if os.path.isdir(path) else "is not a folder"
        start = f"relative paths start at {self.file.parent}"
        raise self.error(key, f"{path} {found}; expected an existing folder; {start}")

    def fraction(self, key: Any) -> float:
        """The number in [0, 1] under `key`."""
        value = self.values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool | ScalarBoolean)
        if not is_number or not 0 <= value <= 1:
            raise self.error(key, f"is {shown(value)}; expected a number in [0, 1], not quoted")
        return float(value)

    def names(self, key: Any) -> tuple[str, ...]:
        """The list of unique, non-empty texts under `key`, in the NFC form of Unicode."""
        names = self.values[key]
        if not isinstance(names, list) or not names:
            raise self.error(key, f"is {shown(names)}; expected a list of names, such as [a, b]")
        for index, name in enumerate(names):
            if not isinstance(name, str) or not name.strip():
                fix = f'quote it, "{name}"' if isinstance(name, int | float) else "write a name"
                raise self.error(key, f"entry {index} is {shown(name)}; expected text; {fix}")
        # In one form of Unicode: the same text may be written in several.
        texts = tuple(unicodedata.normalize("NFC", str(name)) for name in names)
        for index, text in enumerate(texts):
            if text in texts[:index]:
                raise self.error(key, f"{text!r} stands twice; expected unique names")
        return texts


def read_yaml(path: Path) -> Section:
    """The top-level mapping of a YAML file.

    Raises:
      UserError: naming the file (and line) if it cannot be read or is not a mapping.
    """
    try:
        path = given_path(str(path)).resolve()
        values = YAML(typ="rt", pure=True).load(read_given_text(path))
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: {reason}; expected a data set definition (YAML)") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}; correct this line") from None
    except ValueError as error:  # text that is not UTF-8, an impossible date
        raise UserError(f"{path}: not readable as YAML: {error}; mend or quote it") from None
    if not isinstance(values, CommentedMap):
        raise UserError(f"{path}: is {shown(values)}; expected a mapping, `key: value` lines")
    return Section(path, "", values)


def shown(value: Any) -> str:
    """`value` in the words of a message; containers are only named, not printed."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "empty" if value is None else repr(value)
