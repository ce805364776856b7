"""The confusion matrix of a validation, by which counts are corrected.

It says which cells of each class are named right, named wrong, missed, or found where there are
none. It is read from the `metrics.json` of `yogo-jax evaluate`, pooled over folds, checked, and
written as the two matrices of the instrument's deskewer.
"""

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from yogo_jax.counting.intervals import response
from yogo_jax.counting.thresholds import Recorded, flags_of, recorded_by_validation
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, read_json, write_atomically
from yogo_jax.metrics.confusion import BACKGROUND, name_beside
from yogo_jax.reports.tables import align


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
    false boxes on background. `images`: number of frames. `recorded`: the file that was read, and
    the thresholds at which its boxes were counted.
    """

    class_names: tuple[str, ...]
    matrix: Float[np.ndarray, "k k_plus_1"]
    extra: Float[np.ndarray, " k"]
    images: int
    recorded: Recorded

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
        found = f"{error} is missing" if isinstance(error, KeyError) else f"found: {error}"
        raise UserError(
            f"{path}: expected `confusion` (class_names, matrix) and `images`, as "
            f"`yogo-jax evaluate` writes them to metrics.json; {found}"
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
    recorded = recorded_by_validation(path, values, names[:-1])
    return Validation(names[:-1], matrix[:-1], matrix[-1, :-1], images, recorded)


def read_pooled(paths: Sequence[Path]) -> Validation:
    """Reads the `metrics.json` of all folds as one validation; raises as `pool` does."""
    return pool([read_validation(path) for path in paths])


def pool(validations: Sequence[Validation]) -> Validation:
    """Adds up folds to one validation: no network trained on the cells that it is validated on.

    Raises:
      UserError: the folds have different classes, or were counted at different thresholds.
    """
    first = validations[0]
    for other in validations[1:]:
        if other.recorded.at != first.recorded.at:
            found = " and ".join(
                f"{flags_of(at) or 'none recorded'} ({file})"
                for file, at in (first.recorded, other.recorded)
            )
            raise UserError(
                f"all validations must have been made at the same thresholds, got {found}: "
                "evaluate again with the same"
            )
        if other.class_names != first.class_names:
            raise UserError(
                "all validations must have the same classes in the same order, got "
                f"{list(first.class_names)} and {list(other.class_names)}"
            )
    return first._replace(
        matrix=np.sum([each.matrix for each in validations], axis=0),
        extra=np.sum([each.extra for each in validations], axis=0),
        images=sum(each.images for each in validations),
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


def validation_summary(validation: Validation) -> dict[str, Any]:
    """Returns the size of the validation as plain values for JSON."""
    names = validation.class_names
    return {
        "images": validation.images,
        "true_cells": dict(zip(names, validation.cells.astype(int).tolist(), strict=True)),
        "missed": dict(zip(names, validation.matrix[:, -1].astype(int).tolist(), strict=True)),
        "extra_boxes": dict(zip(names, validation.extra.astype(int).tolist(), strict=True)),
    }


def write_matrices(
    validation: Sequence[Path],
    *,
    model: str,
    output: Path,
    matched_only: bool,
    assume_right: Sequence[str],
) -> None:
    """Writes the two matrices of the instrument's deskewer, and prints them: `counts matrix`.

    Raises:
      UserError: a validation cannot be used, or its matrix cannot be inverted.
    """
    folder = make_folder(output / model, "--output")
    validations = [read_validation(path) for path in validation]
    pooled = pool(validations)
    check_invertible(pooled, assume_right=assume_right)
    mean, scatter = mean_and_inverse_scatter(
        validations, matched_only=matched_only, assume_right=assume_right
    )
    source = f"{len(validations)} folds" if len(validations) > 1 else "draws of the one validation"
    for title, array in (
        ("P(called column | true row), mean", mean),
        (f"\nstandard deviation of its inverse, from {source}", scatter),
    ):
        rows = [
            [name, *(f"{value:.5f}" for value in row)]
            for name, row in zip(pooled.class_names, array, strict=True)
        ]
        print("\n".join([title, *align(["", *pooled.class_names], rows)]))
    for suffix, array in (("cmatrix-mean", mean), ("inv-cmatrix-std", scatter)):
        path = folder / f"{model}-{suffix}.npy"
        file = io.BytesIO()
        np.save(file, array)
        write_atomically(path, file.getvalue())
        print(f"written {path}")
