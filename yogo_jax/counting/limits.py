"""The limit of detection: how many parasites a sample must have to be found positive.

Two numbers describe it. The critical level is the count from which on blood is called positive; it
holds false alarms to 5 %. The limit of detection is the number of true parasites for which a count
reaches the critical level in 95 %.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import gammaincinv
from scipy.stats import nbinom

from yogo_jax.counting.estimate import Roles
from yogo_jax.counting.intervals import Evidence, response


class DetectionLimit(NamedTuple):
    """The limit of detection of a sample with a given number of red cells.

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
    evidence: Evidence,
    roles: Roles,
    *,
    cells: float,
    frames_ratio: float,
    error: float = 0.05,
) -> DetectionLimit:
    """Computes Currie's critical level and detection limit with exact distributions.

    The critical level allows for an uncertain rate of false boxes: if both validation and sample
    are drawn again and again from blood without parasites, at most `error` are called positive.
    The limit of detection takes rates and sensitivities as they were measured.

    Args:
      evidence: the validation; the counts of the sample are not used.
      roles: classes of parasites and of red cells.
      cells: red cells of the sample.
      frames_ratio: frames that hold so many cells, per frame of the validation; 0 if not known.
      error: share of false alarms, and share of misses at the limit of detection.

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
        # P(count > c) <= error for a Poisson count whose mean has the upper gamma distribution.
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
