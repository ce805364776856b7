"""How few parasites a count can tell from none, and how many it needs to be sure to see some."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import gammaincinv
from scipy.stats import nbinom

from yogo_jax.counting.estimate import Roles
from yogo_jax.counting.intervals import Evidence, response, validation_cells


class DetectionLimit(NamedTuple):
    """Limits for a sample of a number of red cells.

    `false_boxes`: boxes called a parasite that are expected of blood without any. `critical`: the
    count of such boxes from which on parasites are called present. `parasites` [k]: true ones
    needed of each class, for a count that reaches it as often as wanted; infinite of a class that
    is no parasite or never called one.
    """

    cells: float
    false_boxes: float
    critical: int
    parasites: Float[np.ndarray, " k"]


def detection_limit(
    evidence: Evidence,
    roles: Roles,
    *,
    cells: float,
    frames_ratio: float,
    error: float = 0.05,
) -> DetectionLimit:
    """Currie's critical level and detection limit, with exact distributions of small counts.

    The critical level allows for how badly the rate of false boxes is known: of blood without
    parasites, in validation and sample together, at most `error` are called positive. The limit
    itself takes rates and sensitivities as they were measured.

    Args:
      evidence: the validation; its counts are not looked at.
      roles: which classes are parasites, and which red cells.
      cells: red cells of the sample.
      frames_ratio: frames that hold so many cells, per frame of the validation; 0 if not known.
      error: share of false alarms, and of misses at the limit.

    References:
      Currie 1968, Limits for qualitative detection and quantitative determination, Analytical
      Chemistry 40:586. Przyborowski and Wilenski 1940, Homogeneity of results in testing samples
      from Poisson series, Biometrika 31:313 (the test that the critical level is of).
    """
    parasites, healthy = roles.parasites, roles.red_cells & ~roles.parasites
    shares = response(evidence)
    seen = evidence.matrix[healthy][:, :-1][:, parasites].sum()
    shown = validation_cells(evidence)[healthy].sum()
    # Two counts of the validation, each with its weight in the sample, as one count.
    weights = np.array([cells / shown if shown else 0.0, frames_ratio])
    counts = np.array([seen, evidence.extra[parasites].sum()])
    false_boxes = float(weights @ counts)
    heaviest = weights.max()
    critical = 1
    if heaviest:
        mean, variance = false_boxes + heaviest, weights**2 @ counts + heaviest**2
        scale = variance / mean
        # P(count > c) <= error, of a Poisson count whose mean has the upper gamma distribution.
        critical = int(nbinom.ppf(1.0 - error, mean / scale, 1.0 / (1.0 + scale))) + 1
    needed = float(gammaincinv(critical, 1.0 - error))
    sensitivity = np.where(parasites, shares[:, parasites].sum(1), 0.0)
    missing = max(needed - false_boxes, 0.0)
    return DetectionLimit(
        cells,
        false_boxes,
        critical,
        np.where(sensitivity > 0, missing / np.maximum(sensitivity, 1e-300), np.inf),
    )
