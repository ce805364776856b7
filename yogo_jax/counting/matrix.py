"""The confusion matrix of a validation, by which counts are corrected.

It says which cells of each class are named right, named wrong, missed, or found where there are
none. It is read from the `metrics.json` of `yogo-jax evaluate`, pooled over folds, checked, and
written as the two matrices of the instrument's deskewer.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from yogo_jax.counting.intervals import response
from yogo_jax.counting.thresholds import CountedAt, flags_of, recorded_by_validation
from yogo_jax.errors import UserError
from yogo_jax.files import read_json
from yogo_jax.metrics.confusion import BACKGROUND, name_beside


# Above this condition number the correction multiplies the noise of the counts too much for any
# sample size.
MAX_CONDITION = 1e4
# Matrices that are drawn for the standard deviation of the inverse of a single validation.
DRAWS = 4000
# With a fixed seed the file is the same each time.
SEED = 0


class Validation(NamedTuple):
    """Counts of one validation, or of several together.

    `matrix` [k, k+1]: row = true class, column = called class, last column = missed. `extra` [k]:
    false boxes on background. `images`: number of frames. `file`: the file that was read.
    """

    class_names: tuple[str, ...]
    matrix: Float[np.ndarray, "k k_plus_1"]
    extra: Float[np.ndarray, " k"]
    images: int
    counted_at: CountedAt = CountedAt()
    file: Path | None = None

    @property
    def cells(self) -> Float[np.ndarray, " k"]:
        """True cells of each class."""
        return self.matrix.sum(1)


def read_validation(path: Path) -> Validation:
    """Reads the confusion matrix of a `metrics.json`.

    Raises:
      UserError: it is no such file, or its matrix does not hold counts with the background.
    """
    values = read_json(path)
    try:
        names = tuple(
            unicodedata.normalize("NFC", name) for name in values["confusion"]["class_names"]
        )
        matrix = np.asarray(values["confusion"]["matrix"], np.float64)
        images = int(values["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected `confusion` (class_names, matrix) and `images`, as "
            f"`yogo-jax evaluate` writes them to metrics.json; {_missing_or_wrong(error)}"
        ) from error
    background = name_beside(names[:-1], BACKGROUND)
    if matrix.shape != (len(names), len(names)) or not names or names[-1] != background:
        raise UserError(
            f"{path}: the confusion matrix must have a row and a column for each of class_names, "
            f"{background!r} last; got {matrix.shape} for {list(names)}. Write metrics.json anew "
            "with `yogo-jax evaluate`"
        )
    if (matrix < 0).any() or (matrix != np.round(matrix)).any() or images < 1:
        raise UserError(
            f"{path}: the confusion matrix must hold counts (whole numbers, not shares) of 1 image "
            "or more. Write metrics.json anew with `yogo-jax evaluate`"
        )
    counted_at = recorded_by_validation(path, values, names[:-1])
    return Validation(names[:-1], matrix[:-1], matrix[-1, :-1], images, counted_at, path)


def pool(validations: Sequence[Validation]) -> Validation:
    """Adds up folds to one validation: no network trained on the cells that it is validated on.

    Raises:
      UserError: the folds have different classes, or were counted at different thresholds.
    """
    first = validations[0]
    for other in validations[1:]:
        if other.counted_at != first.counted_at:
            raise UserError(
                "all validations must have been made at the same thresholds, got "
                f"{flags_of(first.counted_at) or 'none recorded'} ({first.file}) and "
                f"{flags_of(other.counted_at) or 'none recorded'} ({other.file}): evaluate again "
                "with the same"
            )
        if other.class_names != first.class_names:
            raise UserError(
                "all validations must have the same classes in the same order, got "
                f"{list(first.class_names)} and {list(other.class_names)}"
            )
    return Validation(
        first.class_names,
        np.sum([each.matrix for each in validations], axis=0),
        np.sum([each.extra for each in validations], axis=0),
        sum(each.images for each in validations),
        first.counted_at,
        first.file,
    )


def check_invertible(validation: Validation, *, assume_right: Sequence[str] = ()) -> None:
    """Refuses a validation that cannot correct counts.

    Args:
      validation: all folds together.
      assume_right: classes without a true cell that are taken as always found and named right.

    Raises:
      UserError: a class has no true cell, or the matrix is singular or nearly so; the message names
        the classes.
    """
    names = validation.class_names
    for name in assume_right:
        if name not in names:
            raise UserError(f"--assume-right {name}: no such class, choose of {list(names)}")
        cells = validation.cells[names.index(name)]
        if cells:
            raise UserError(
                f"--assume-right {name}: the validation has {cells:.0f} "
                "true cells of this class, so its errors are known; leave the flag out"
            )
    unknown = [
        name
        for name, cells in zip(names, validation.cells, strict=True)
        if not cells and name not in assume_right
    ]
    if unknown:
        raise UserError(
            f"the validation has no true cell of {', '.join(unknown)}, so it does not know the "
            "errors on them. Evaluate on images that have such cells. If none are expected in "
            f"the sample, add --assume-right {' '.join(unknown)}: they are then taken as always "
            "found and named right"
        )
    matrix = response_matrix(validation)
    if not np.linalg.cond(matrix) <= MAX_CONDITION:
        raise UserError(_singular(names, matrix))


def response_matrix(
    validation: Validation, *, matched_only: bool = False
) -> Float[np.ndarray, "k k"]:
    """Returns P(called j | true i), row = true class; a row without true cells is taken as right.

    Args:
      validation: the counts.
      matched_only: True leaves missed cells out, so a row sums to 1; False keeps them, so a row
        sums to the share that is found.
    """
    matrix = validation.matrix.copy()
    if matched_only:
        matrix[:, -1] = 0.0
    return response(matrix)


def mean_and_inverse_scatter(
    validations: Sequence[Validation], *, matched_only: bool, assume_right: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k k"]]:
    """Computes the two matrices of the instrument's deskewer.

    Returns:
      The mean of the folds' matrices, and the standard deviation (of a sample: n - 1) of the folds'
      inverses. For a single validation: its matrix, and the standard deviation of the inverses of
      matrices drawn from the posterior of its counts (rows from Dirichlet distributions, Perks'
      prior: one cell spread evenly over the columns).

    Raises:
      UserError: the matrix of a fold is not known or cannot be inverted.
    """
    for number, each in enumerate(validations, start=1):
        try:
            check_invertible(each, assume_right=assume_right)
        except UserError as error:
            raise UserError(f"fold {number} of {len(validations)}: {error}") from error
    matrices = [response_matrix(each, matched_only=matched_only) for each in validations]
    if len(matrices) > 1:
        inverses = np.linalg.inv(np.stack(matrices))
        return np.mean(matrices, axis=0), inverses.std(axis=0, ddof=1)
    drawn = _drawn_matrices(validations[0], matched_only=matched_only)
    usable = drawn[np.linalg.cond(drawn) <= MAX_CONDITION]
    return matrices[0], np.linalg.inv(usable).std(axis=0, ddof=1)


def _drawn_matrices(validation: Validation, *, matched_only: bool) -> Float[np.ndarray, "n k k"]:
    generator = np.random.default_rng(SEED)
    classes = len(validation.class_names)
    columns = classes if matched_only else classes + 1
    drawn = np.broadcast_to(np.eye(classes), (DRAWS, classes, classes)).copy()
    for index, counts in enumerate(validation.matrix[:, :columns]):
        if counts.sum():
            rows = generator.dirichlet(counts + 1.0 / columns, size=DRAWS)
            drawn[:, index] = rows[:, :classes]
    return drawn


def _singular(names: Sequence[str], matrix: Float[np.ndarray, "k k"]) -> str:
    """Error text with the classes that cannot be told apart, by the smallest singular value."""
    direction = np.abs(np.linalg.svd(matrix.T)[2][-1])
    culprits = [name for name, part in zip(names, direction, strict=True) if part > 0.3]
    subject = (
        f"{culprits[0]} is almost never called {culprits[0]}"
        if len(culprits) == 1
        else f"{' and '.join(culprits)} are called alike"
    )
    return (
        f"the confusion matrix cannot be inverted: {subject}. Train or label these classes better, "
        "validate on more of them, or merge them into one class before training"
    )


def _missing_or_wrong(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else f"found: {error}"


def validation_summary(validation: Validation) -> dict[str, Any]:
    """Returns the size of the validation as plain values for JSON."""
    names = validation.class_names
    return {
        "images": validation.images,
        "true_cells": dict(zip(names, validation.cells.astype(int).tolist(), strict=True)),
        "missed": dict(zip(names, validation.matrix[:, -1].astype(int).tolist(), strict=True)),
        "extra_boxes": dict(zip(names, validation.extra.astype(int).tolist(), strict=True)),
    }
