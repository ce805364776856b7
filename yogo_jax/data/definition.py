"""Data set definitions: YAML files that name the classes, the folders and the splits.

A set is a folder of images with its folder of labels (`image_path`, `label_path`), or another
definition (`defn_path`). Relative paths start at the folder of the file they stand in.
"""

import math
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from yogo_jax.data.definition_sets import (
    PATH_KEYS,
    SINGLE_SET_KEYS,
    SYNONYMS,
    Files,
    Gatherer,
    PathPair,
    refuse_overlap,
)
from yogo_jax.data.images import IMAGE_SUFFIXES, is_image_name
from yogo_jax.data.yaml_section import Section


__all__ = ["DatasetDefinition", "PathPair", "SplitFractions", "load_definition"]


SPLIT_KEYS = ("train", "val", "test")
SPLITTING_KEYS = {"dataset_split_fractions", "val_paths", "test_paths"}


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
        """What is done with the images of a definition that names no split."""
        shares = self.split_fractions
        return (
            f"{self.path} names no split: its images are split at random, {shares.train:g} train, "
            f"{shares.val:g} val, {shares.test:g} test, the same each time "
            "(dataset_split_fractions in it sets others)"
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
    files = Files()
    top = files.read(Path(path))
    keys = [key for key in PATH_KEYS if key in top.values]
    if SINGLE_SET_KEYS & top.values.keys():
        keys.insert(0, "dataset_paths")
    if not keys:
        raise top.error("", "names no data; expected dataset_paths, val_paths or test_paths")

    pool_keys = ["dataset_paths"]
    if "val_paths" not in keys:
        pool_keys += [key for key in ("val_paths", "test_paths") if key not in keys]
    gathered = {key: Gatherer(top, files) for key in PATH_KEYS}
    for key in keys:
        gathered[key].gather(top, pool_keys if key == "dataset_paths" else [key], ())
        if not gathered[key].sets:
            raise top.error(key, f"leads to no data; expected definitions that have {key}")
    refuse_overlap(gathered)

    dataset_paths, val_paths, test_paths = (gathered[key].pairs() for key in PATH_KEYS)
    return DatasetDefinition(
        path=top.file,
        class_names=top.names("class_names"),
        dataset_paths=dataset_paths,
        val_paths=val_paths,
        test_paths=test_paths,
        split_fractions=_read_fractions(top),
        thumbnail_augmentation=_read_thumbnails(top),
        names_split=bool(SPLITTING_KEYS & top.values.keys()),
    )


def _read_fractions(top: Section) -> SplitFractions:
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


def _read_thumbnails(top: Section) -> dict[str, tuple[Path, ...]]:
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
