"""Data set definitions: YAML files that name the classes, the folders and the splits.

A set is a folder of images with its folder of labels (`image_path`, `label_path`), or another
definition (`defn_path`). Relative paths start at the folder of the file they stand in.

`_Section` is a mapping that knows its line, so every error names file, line and key. `_Gatherer`
collects the sets of a tree of definitions.
"""

import functools
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from yogo_jax.data.images import IMAGE_SUFFIXES, is_image_name
from yogo_jax.errors import UserError
from yogo_jax.files import given_path, read_given_text


PATH_KEYS = ("dataset_paths", "val_paths", "test_paths")
SINGLE_SET_KEYS = {"image_path", "label_path"}
SET_KEYS = ("image_path", "label_path", "defn_path", "class_names", "classes")
SPLIT_KEYS = ("train", "val", "test")
SPLITTING_KEYS = {"dataset_split_fractions", "val_paths", "test_paths"}
TOP_KEYS = (
    "class_names",
    *PATH_KEYS,
    "dataset_split_fractions",
    "thumbnail_augmentation",
    "image_path",
    "label_path",
)
# What other versions of this format and similar formats call our keys.
SYNONYMS = {
    "classes": "class_names",
    "names": "class_names",
    "split_fractions": "dataset_split_fractions",
    "test_dataset_paths": "test_paths",
    "train_paths": "dataset_paths",
    "val_dataset_paths": "val_paths",
    "validation": "val",
}


@dataclass(frozen=True)
class PathPair:
    """One set of data: absolute paths of two existing folders.

    `image_path` is resolved. The last part of `label_path` may be a link, because `notes.json` is
    looked for beside the folder that the user named.
    """

    image_path: Path
    label_path: Path


@dataclass(frozen=True)
class SplitFractions:
    """Shares of `dataset_paths` that go to each split, in [0, 1], summing to 1."""

    train: float
    val: float
    test: float


USUAL_SPLIT = SplitFractions(0.8, 0.1, 0.1)


@dataclass(frozen=True)
class DatasetDefinition:
    """A checked definition; nested ones are flattened into the three tuples of pairs.

    `names_split` is False for a definition that names no split, which then gets `USUAL_SPLIT`.
    """

    path: Path
    class_names: tuple[str, ...]
    dataset_paths: tuple[PathPair, ...]
    val_paths: tuple[PathPair, ...]
    test_paths: tuple[PathPair, ...]
    split_fractions: SplitFractions
    thumbnail_augmentation: dict[str, tuple[Path, ...]]
    names_split: bool = True

    def usual_split_line(self) -> str:
        """A line on the images of a definition that names no split."""
        shares = self.split_fractions
        return (
            f"{self.path} names no split: its images are split at random, {shares.train:g} train, "
            f"{shares.val:g} val, {shares.test:g} test, the same each time "
            "(dataset_split_fractions in it sets others)"
        )


@dataclass(frozen=True, eq=False)
class _Section:
    """A mapping of a YAML file, not checked yet."""

    file: Path  # resolved; relative paths in it start at its folder
    name: str  # dotted key of the mapping, "" for the top level
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

    def section(self, key: Any) -> "_Section":
        """The mapping under `key`, which must not be empty."""
        value = self.values[key]
        if not isinstance(value, CommentedMap):
            hint = "fill it or remove the key" if value is None else "indent `key: value` lines"
            raise self.error(key, f"is {_shown(value)}; expected a mapping; {hint}")
        if not value:
            raise self.error(key, "is an empty mapping; fill it or remove the key")
        return _Section(self.file, f"{self.name}.{key}".lstrip("."), value)

    def check_keys(self, known: tuple[str, ...], synonyms: dict[str, str]) -> None:
        """Refuses a key that is not known, with the one that it most likely means."""
        for key in self.values:
            if key in known or unicodedata.normalize("NFC", str(key)) in known:
                continue
            near = [synonyms.get(str(key)), *get_close_matches(str(key), known, n=1)]
            hint = next((f"did you mean {name}? " for name in near if name in known), "")
            raise self.error(key, f"unknown key; {hint}known keys: {', '.join(known)}")

    def path(self, key: Any, value: Any) -> Path:
        """The path `value` of `key`, not resolved; it need not exist."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is {_shown(value)}; expected a path as text")
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
            raise self.error(key, f"is {_shown(value)}; expected a number in [0, 1], not quoted")
        return float(value)

    def names(self, key: Any) -> tuple[str, ...]:
        """The list of unique, non-empty texts under `key`, in the NFC form of Unicode."""
        names = self.values[key]
        if not isinstance(names, list) or not names:
            raise self.error(key, f"is {_shown(names)}; expected a list of names, such as [a, b]")
        for index, name in enumerate(names):
            if not isinstance(name, str) or not name.strip():
                fix = f'quote it, "{name}"' if isinstance(name, int | float) else "write a name"
                raise self.error(key, f"entry {index} is {_shown(name)}; expected text; {fix}")
        # In one form of Unicode: the same text may be written in several.
        texts = tuple(unicodedata.normalize("NFC", str(name)) for name in names)
        for index, text in enumerate(texts):
            if text in texts[:index]:
                raise self.error(key, f"{text!r} stands twice; expected unique names")
        return texts


def _read_definition(path: Path) -> _Section:
    """The top-level mapping of a definition file, its keys and class names checked."""
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
        raise UserError(f"{path}: is {_shown(values)}; expected a mapping, `key: value` lines")
    top = _Section(path, "", values)
    top.check_keys(TOP_KEYS, SYNONYMS)
    if "class_names" not in top.values:
        raise top.error("", "has no class_names; add the list of the classes' names")
    top.names("class_names")
    for key in SINGLE_SET_KEYS & top.values.keys():
        if "dataset_paths" in top.values:
            raise top.error(key, "stands beside dataset_paths; move the set in there")
    return top


def _shown(value: Any) -> str:
    """`value` in the words of a message; containers are only named, not printed."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "empty" if value is None else repr(value)


@dataclass
class _Gatherer:
    """Collects the sets under one key of the outermost file from the tree of definitions."""

    top: _Section
    read: Callable[[Path], _Section]
    # Resolved image and label folder -> the pair, and where it was named.
    sets: dict[tuple[Path, Path], tuple[PathPair, str]] = field(default_factory=dict)
    # (definition, key it was named under) -> where it was named.
    reached: dict[tuple[Path, str], str] = field(default_factory=dict)
    # (definition, key) whose sets have been collected.
    walked: set[tuple[Path, str]] = field(default_factory=set)

    def gather(self, file: _Section, keys: list[str], above: tuple[Path, ...]) -> None:
        """Collects the sets under `keys` of one file; `above` leads to it from the outermost."""
        for key in keys:
            # Walked already where a definition stands under two keys of another one.
            if (file.file, key) in self.walked:
                continue
            self.walked.add((file.file, key))
            for found in _sets_of(file, key):
                for name in ("class_names", "classes"):
                    if name in found.values and found is not file:
                        self._check_classes(found, name)
                if "defn_path" in found.values:
                    below = keys if key == "dataset_paths" else [key]
                    self._add_definition(found, key, below, (*above, file.file))
                else:
                    self._add_pair(found)

    def _add_pair(self, found: _Section) -> None:
        for key in ("image_path", "label_path"):
            if key not in found.values:
                raise found.error("", f"has no {key}; expected image_path and label_path")
        images = found.folder("image_path", found.values["image_path"]).resolve()
        labels = found.folder("label_path", found.values["label_path"])
        named = labels.parent.resolve() / labels.name if labels.name != ".." else labels.resolve()
        folders = (images, labels.resolve())
        if folders in self.sets:
            place = self.sets[folders][1]
            raise found.error("", f"its two folders are those of {place} already; keep one of them")
        self.sets[folders] = (PathPair(images, named), found.place())

    def _add_definition(
        self, found: _Section, key: str, below: list[str], chain: tuple[Path, ...]
    ) -> None:
        for other in SINGLE_SET_KEYS & found.values.keys():
            raise found.error(other, "stands beside defn_path; keep one or the other")
        path = found.path("defn_path", found.values["defn_path"])
        if not os.path.isfile(path):
            start = f"relative paths start at {found.file.parent}"
            raise found.error("defn_path", f"{path} is no file; expected a definition; {start}")
        path = path.resolve()
        if path in chain:
            cycle = " -> ".join(str(file) for file in (*chain[chain.index(path) :], path))
            raise found.error("defn_path", f"the definitions form a cycle: {cycle}; remove one")
        if (path, key) in self.reached:
            place = self.reached[path, key]
            raise found.error("defn_path", f"{path} is named at {place} already; keep one of them")
        self.reached[path, key] = found.place("defn_path")
        nested = self.read(path)
        self._check_classes(nested, "class_names", named_at=found.place("defn_path"))
        self.gather(nested, below, chain)

    def _check_classes(self, section: _Section, key: str, named_at: str = "") -> None:
        names, expected = section.names(key), self.top.names("class_names")
        if names != expected:
            by = f" (named at {named_at})" if named_at else ""
            raise section.error(
                key,
                f"{list(names)}{by} differs from {list(expected)} of {self.top.file}; expected the "
                "same classes in the same order; make the lists equal",
            )


def _sets_of(file: _Section, key: str) -> Iterator[_Section]:
    """The sets that one of PATH_KEYS holds, the single set of a top level included."""
    if key in file.values:
        section = file.section(key)
        for name in section.values:
            found = section.section(name)
            found.check_keys(SET_KEYS, SYNONYMS)
            yield found
    elif key == "dataset_paths" and SINGLE_SET_KEYS & file.values.keys():
        yield file


def _refuse_overlap(gathered: Mapping[str, _Gatherer]) -> None:
    """Refuses a folder that stands in two of the pool, the validation and the test data."""
    for first, second in combinations(PATH_KEYS, 2):
        for part, kind in enumerate(("image_path", "label_path")):
            places = {key[part]: place for key, (_, place) in gathered[first].sets.items()}
            for key, (_, place) in gathered[second].sets.items():
                if key[part] in places:
                    raise UserError(
                        f"{place}: its {kind} {key[part]} is also that of {places[key[part]]}; "
                        f"{first} and {second} must not share data; remove it from one"
                    )


def load_definition(path: Path | str) -> DatasetDefinition:
    """The checked definition in a YAML file.

    A definition nested under `val_paths` contributes its `val_paths`, one under `test_paths` its
    `test_paths`. One under `dataset_paths` contributes its `dataset_paths`, and also
    - its `val_paths` and `test_paths`, if the outermost file has neither key: all is one pool then;
    - its `val_paths`, if the outermost file has `test_paths` only.
    Fractions and thumbnails of nested definitions do not act.

    Raises:
      UserError: naming file, line and key of anything that cannot be used.
    """
    read = functools.cache(_read_definition)
    top = read(Path(path))
    keys = [key for key in PATH_KEYS if key in top.values]
    if SINGLE_SET_KEYS & top.values.keys():
        keys.insert(0, "dataset_paths")
    if not keys:
        raise top.error("", "names no data; expected dataset_paths, val_paths or test_paths")

    pool_keys = ["dataset_paths"]
    if "val_paths" not in keys:
        pool_keys += [key for key in ("val_paths", "test_paths") if key not in keys]
    gathered = {key: _Gatherer(top, read) for key in PATH_KEYS}
    for key in keys:
        gathered[key].gather(top, pool_keys if key == "dataset_paths" else [key], ())
        if not gathered[key].sets:
            raise top.error(key, f"leads to no data; expected definitions that have {key}")
    _refuse_overlap(gathered)

    return DatasetDefinition(
        path=top.file,
        class_names=top.names("class_names"),
        **{key: tuple(pair for pair, _ in gathered[key].sets.values()) for key in PATH_KEYS},
        split_fractions=_read_fractions(top),
        thumbnail_augmentation=_read_thumbnails(top),
        names_split=bool(SPLITTING_KEYS & top.values.keys()),
    )


def _read_fractions(top: _Section) -> SplitFractions:
    key = "dataset_split_fractions"
    if key not in top.values:
        named = SPLITTING_KEYS & top.values.keys()
        return SplitFractions(1.0, 0.0, 0.0) if named else USUAL_SPLIT
    if not {"dataset_paths", *SINGLE_SET_KEYS} & top.values.keys():
        raise top.error(key, "has nothing to split; expected dataset_paths; add them or remove it")
    section = top.section(key)
    section.check_keys(SPLIT_KEYS, SYNONYMS)
    for name in section.values:
        if f"{name}_paths" in top.values:
            message = f"stands beside {name}_paths, which is all the {name} data; remove either"
            raise section.error(name, message)
    fractions = [section.fraction(name) if name in section.values else 0.0 for name in SPLIT_KEYS]
    if abs(math.fsum(fractions) - 1) > 1e-6:
        parts = " + ".join(f"{fraction:g}" for fraction in fractions)
        message = f"train + val + test = {parts} = {math.fsum(fractions):g}; expected a sum of 1"
        raise top.error(key, message)
    return SplitFractions(*fractions)


def _read_thumbnails(top: _Section) -> dict[str, tuple[Path, ...]]:
    key, class_names = "thumbnail_augmentation", top.names("class_names")
    if key not in top.values:
        return {}
    section = top.section(key)
    section.check_keys(class_names, {})
    thumbnails = {}
    for name, value in section.values.items():
        values = value if isinstance(value, list) and value else [value]
        folders = [section.folder(name, part).resolve() for part in values]
        for folder in folders:
            if not any(is_image_name(file) for file in os.listdir(folder)):
                expected = f"expected {', '.join(IMAGE_SUFFIXES)} files"
                raise section.error(name, f"{folder} holds no image; {expected}")
        thumbnails[unicodedata.normalize("NFC", str(name))] = tuple(folders)
    return thumbnails
