"""What the folders of a set hold: which label file belongs to which image."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from yogo_jax.data.definition import PathPair
from yogo_jax.data.images import IMAGE_SUFFIXES
from yogo_jax.data.labels import LABEL_SUFFIXES
from yogo_jax.errors import UserError


class FilesOfASet(NamedTuple):
    """Names of the files of one set, sorted.

    Attributes:
      matched: (image name, label name) where there is one of each.
      unlabelled: images without a label file.
      without_image: label files without an image.
      ambiguous: (folder, names) of labelled stems with several label files or several images.
      labels: number of label files.
    """

    matched: list[tuple[str, str]]
    unlabelled: list[str]
    without_image: list[str]
    ambiguous: list[tuple[Path, list[str]]]
    labels: int


def list_files(pair: PathPair) -> FilesOfASet:
    """What the two folders of a set hold, and how it goes together.

    Names that are the same text in another Unicode form go together, too: other systems write
    accents as characters of their own.

    Raises:
      UserError: a folder cannot be read.
    """
    images = _by_stem(pair.image_path, IMAGE_SUFFIXES)
    labels = _by_stem(pair.label_path, LABEL_SUFFIXES)
    _join_unicode_forms(images, labels)
    both = [stem for stem in labels if stem in images]
    ambiguous = [
        (folder, names_of[stem])
        for stem in both
        for folder, names_of in ((pair.label_path, labels), (pair.image_path, images))
        if len(names_of[stem]) > 1
    ]
    return FilesOfASet(
        matched=sorted(
            (images[stem][0], labels[stem][0])
            for stem in both
            if len(images[stem]) == len(labels[stem]) == 1
        ),
        unlabelled=sorted(
            name for stem, names in images.items() if stem not in labels for name in names
        ),
        without_image=[
            name for stem, names in sorted(labels.items()) if stem not in images for name in names
        ],
        ambiguous=ambiguous,
        labels=sum(len(names) for names in labels.values()),
    )


def _join_unicode_forms(images: dict[str, list[str]], labels: dict[str, list[str]]) -> None:
    """Brings labels without an image below the stem of the images of the same text.

    If there are several files of one text on a side, all of them come below one stem, so that they
    are ambiguous.
    """
    without_image = [stem for stem in labels if stem not in images and not stem.isascii()]
    if not without_image:
        return
    forms: dict[str, list[str]] = {}
    for stem in sorted(images):
        if not stem.isascii():
            forms.setdefault(unicodedata.normalize("NFC", stem), []).append(stem)
    for stem in sorted(without_image):
        same = forms.get(unicodedata.normalize("NFC", stem), [])
        # Images with a label file of just their own name are taken, unless nothing else is left.
        free = [other for other in same if other not in labels] or same[:1]
        for other in free[1:]:
            images[free[0]] += images.pop(other)
            same.remove(other)
        if free:
            labels.setdefault(free[0], []).extend(labels.pop(stem))
    # Sorted by name, as all of one stem are.
    for names_of in (images, labels):
        for names in names_of.values():
            names.sort()


def ambiguity(folder: Path, names: Sequence[str]) -> str:
    """The message for files of one folder with the same name but for suffix and Unicode form."""
    differ = "the suffix"
    shown = list(names)
    if len({os.path.splitext(name)[0] for name in names}) > 1:
        differ = "the suffix or the form of Unicode"
        # They look the same when printed.
        shown = [f"{name} ({name!a})" for name in names]
    found = f"{' and '.join(shown)} have the same name but for {differ}"
    return f"{folder}: {found}; expected one of them; remove the other"


def no_labels(pair: PathPair) -> str:
    """The message for a label folder that holds no label file."""
    expected = f"expected {' or '.join(LABEL_SUFFIXES)} files; mend label_path"
    return f"{pair.label_path}: holds no label file; {expected}"


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of the files with these suffixes (in any case), hidden ones left out, by stem."""
    names: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                # A broken link is no folder: it counts as a file, and is reported when read.
                if suffix.lower() in suffixes and stem[0] != "." and not entry.is_dir():
                    names.setdefault(stem, []).append(entry.name)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; expected a readable folder") from None
    return {stem: sorted(found) for stem, found in names.items()}
