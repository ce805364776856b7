"""Estimates of one sample: counts by class, parasitemia, and the limit of detection.

Counts are raw, or corrected by a validation. Every number has a 95 % interval. `docs/counts.md` has
the assumptions and the derivation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import gammaincinv
from scipy.stats import nbinom

from yogo_jax.counting.files import Sample
from yogo_jax.counting.intervals import (
    CONFIDENCE,
    Evidence,
    Interval,
    count_interval,
    deskew,
    ratio_interval,
    response,
)
from yogo_jax.counting.matrix import Validation, check_invertible
from yogo_jax.errors import UserError


class Roles(NamedTuple):
    """Masks of the parasite classes and of the red cell classes (parasites included), bool [k]."""

    parasites: Bool[np.ndarray, " k"]
    red_cells: Bool[np.ndarray, " k"]


class Estimate(NamedTuple):
    """Counts of a sample and its parasitemia as a fraction of red cells, with confidence limits.

    `classes` has one interval for each class, in order. `linear` has the estimates of the classes
    before values below 0 were set to 0.
    """

    classes: Interval
    linear: Float[np.ndarray, " k"]
    parasites: Interval
    red_cells: Interval
    parasitemia: Interval


def find_roles(
    class_names: Sequence[str], parasite_classes: Sequence[str], red_cell_classes: Sequence[str]
) -> Roles:
    """Turns names of classes into masks.

    Raises:
      UserError: a name is no class, a parasite is no red cell, or all red cells are parasites.
    """
    for flag, names in (
        ("--parasite-classes", parasite_classes),
        ("--red-cell-classes", red_cell_classes),
    ):
        unknown = [name for name in names if name not in class_names]
        if unknown:
            raise UserError(
                f"{flag}: no class {', '.join(unknown)}; choose among the classes "
                f"{', '.join(class_names)}"
            )
    outside = [name for name in parasite_classes if name not in red_cell_classes]
    if outside or set(parasite_classes) == set(red_cell_classes):
        found = f"{', '.join(outside)} is not" if outside else "they are the same"
        raise UserError(
            "--red-cell-classes must have all of --parasite-classes, and healthy cells too: the "
            f"parasitemia is the share of parasites among red cells; {found}"
        )
    return Roles(
        np.isin(class_names, list(parasite_classes)), np.isin(class_names, list(red_cell_classes))
    )


def raw_evidence(sample: Sample) -> Evidence:
    """Takes the counts as they are: no box has a wrong class, and no cell is missed."""
    classes = len(sample.counts)
    return Evidence(sample.counts, np.zeros((classes, classes + 1)), np.zeros(classes))


def corrected_evidence(
    sample: Sample, validation: Validation, *, frames: int | None, assume_right: Sequence[str] = ()
) -> Evidence:
    """Joins the counts with the errors of the network that the validation measured.

    Args:
      sample: its classes are those of the validation, in the same order.
      validation: all folds together.
      frames: number of frames of the sample; None: false boxes on background are not subtracted.
      assume_right: classes without a true cell in the validation.

    Raises:
      UserError: the validation cannot correct counts.
    """
    check_invertible(validation, assume_right=assume_right)
    return Evidence(
        sample.counts,
        validation.matrix,
        validation.extra,
        frames / validation.images if frames else 0.0,
    )


def estimate_counts(evidence: Evidence, roles: Roles) -> Estimate:
    """Estimates counts and parasitemia of one sample.

    Raises:
      UserError: the sample has no red cell.
    """
    if not deskew(evidence)[roles.red_cells].sum() > 0:
        raise UserError(
            "no red cell was counted, so there is no parasitemia: check the thresholds and the "
            "classes of --red-cell-classes"
        )
    each = [count_interval(evidence, member) for member in np.eye(len(evidence.counts), dtype=bool)]
    return Estimate(
        classes=Interval(*(np.stack(values) for values in zip(*each, strict=True))),
        linear=deskew(evidence),
        parasites=count_interval(evidence, roles.parasites),
        red_cells=count_interval(evidence, roles.red_cells),
        parasitemia=ratio_interval(evidence, roles.parasites, roles.red_cells),
    )


class DetectionLimit(NamedTuple):
    """The limit of detection: how many parasites a sample must have to be found positive.

    The critical level is the count from which on blood is called positive; it holds false alarms to
    5 %. The limit of detection is the number of true parasites for which a count reaches the
    critical level in 95 %. Both are for a sample with a given number of red cells.

    `false_boxes`: expected boxes called a parasite in blood without parasites. `critical`: the
    critical level, a number of boxes. `parasites` [k]: for each class the true parasites for which
    a count reaches that level as often as wanted; infinite for a class that is no parasite or is
    never called one.
    """

    cells: float
    false_boxes: float
    critical: int
    parasites: Float[np.ndarray, " k"]


def detection_limit(
    evidence: Evidence, roles: Roles, *, cells: float, frames_ratio: float
) -> DetectionLimit:
    """Computes Currie's critical level and detection limit with exact distributions.

    The critical level allows for an uncertain rate of false boxes: if both validation and sample
    are drawn again and again from blood without parasites, at most 5 % are called positive.
    The limit of detection takes rates and sensitivities as they were measured.

    Args:
      evidence: the validation; the counts of the sample are not used.
      roles: classes of parasites and of red cells.
      cells: red cells of the sample.
      frames_ratio: frames that hold so many cells, per frame of the validation; 0 if not known.

    References:
      Currie 1968, Limits for qualitative detection and quantitative determination, Analytical
      Chemistry 40:586. Przyborowski and Wilenski 1940, Homogeneity of results in testing samples
      from Poisson series, Biometrika 31:313 (the test behind the critical level).
    """
    parasites, healthy = roles.parasites, roles.red_cells & ~roles.parasites
    shares = response(evidence.matrix)
    seen = evidence.matrix[healthy][:, :-1][:, parasites].sum()
    shown = evidence.cells[healthy].sum()
    # Two counts of the validation, each with its weight in the sample, become one count.
    weights = np.array([cells / shown if shown else 0.0, frames_ratio])
    counts = np.array([seen, evidence.extra[parasites].sum()])
    false_boxes = float(weights @ counts)
    heaviest = weights.max()
    critical = 1
    if heaviest:
        mean, variance = false_boxes + heaviest, weights**2 @ counts + heaviest**2
        scale = variance / mean
        # P(count > c) <= 5 % for a Poisson count whose mean has the upper gamma distribution.
        critical = int(nbinom.ppf(CONFIDENCE, mean / scale, 1.0 / (1.0 + scale))) + 1
    needed = float(gammaincinv(critical, CONFIDENCE))
    sensitivity = np.where(parasites, shares[:, parasites].sum(1), 0.0)
    missing = max(needed - false_boxes, 0.0)
    return DetectionLimit(
        cells,
        false_boxes,
        critical,
        np.where(sensitivity > 0, missing / np.maximum(sensitivity, 1e-300), np.inf),
    )
