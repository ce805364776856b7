"""Confidence intervals of true counts and of their ratios, for a detector that makes errors.

The model: the number of cells of class i is Poisson with mean n_i. A cell of class i is called
class j with probability P_ij, or is missed. False boxes on background come at a rate per frame. P
and this rate are known from a validation set of limited size only. `docs/counts.md` has the
derivation and the measured coverage.

First stand the limits of a weighted sum of counts (Poisson, binomial), then the intervals that are
built from them. Every function works on one sample, or on many that share leading axes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import betaincinv, gammaincinv


# Of two-sided limits: half of the rest lies beyond each of them.
CONFIDENCE = 0.95
TAIL = (1.0 - CONFIDENCE) / 2.0
# The limits of a ratio are found by so many halvings of an interval within [0, 1].
HALVINGS = 40

_Scaled = tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]


class Evidence(NamedTuple):
    """The counts of a sample, and the errors of the detector in the validation.

    `matrix[i, j]` counts validation cells of true class i that were called j; its last column
    counts those that were missed. A row without any cell is an assumption: cells of this class are
    always found and named right. `extra` counts false boxes on background in the validation.
    `frames_ratio` is frames of the sample per frame of the validation; 0: such boxes are not
    subtracted.
    """

    counts: Float[np.ndarray, "*b k"]
    matrix: Float[np.ndarray, "*b k k_plus_1"]
    extra: Float[np.ndarray, "*b k"]
    frames_ratio: float = 0.0

    @property
    def cells(self) -> Float[np.ndarray, "*b k"]:
        """True cells of each class in the validation, missed ones included."""
        return self.matrix.sum(-1)


class Interval(NamedTuple):
    """An estimate with its confidence limits."""

    estimate: Float[np.ndarray, "*b"]
    lower: Float[np.ndarray, "*b"]
    upper: Float[np.ndarray, "*b"]


class Ends(NamedTuple):
    """Both limits of an interval, or their squared distances from the estimate."""

    lower: Float[np.ndarray, "*b"]
    upper: Float[np.ndarray, "*b"]


def poisson_limits(weights: Float[np.ndarray, "*b n"], counts: Float[np.ndarray, "*b n"]) -> Ends:
    """Limits of `sum_j weights_j * mean_j`, where the counts are Poisson with these means.

    With one count, or with equal weights, these are Garwood's exact limits: 0 and 3.69 for a count
    of 0.

    Args:
      weights: 0 or more.
      counts: the numbers that were counted.

    References:
      Garwood 1936, Fiducial limits for the Poisson distribution, Biometrika 28:437.
      Fay and Feuer 1997, Confidence intervals for directly standardized rates: a method based on
      the gamma distribution, Statistics in Medicine 16:791, section 3.
    """
    (scale, seen), (upper_scale, one_more) = _effective_counts(weights, counts)
    return Ends(
        lower=scale * gammaincinv(np.where(seen > 0, seen, 1.0), TAIL),
        upper=upper_scale * gammaincinv(np.maximum(one_more, 1.0), 1.0 - TAIL),
    )


def binomial_limits(
    weights: Float[np.ndarray, "*b n"],
    counts: Float[np.ndarray, "*b n"],
    trials: Float[np.ndarray, "*b"],
) -> Ends:
    """Limits of `sum_j weights_j * p_j`, where outcome j was seen `counts_j` times in the trials.

    With one outcome, or with equal weights, these are Clopper and Pearson's exact limits of p.

    Args:
      weights: 0 or more.
      counts: counts of outcomes that exclude each other; their sum is at most `trials`.
      trials: at least 1.

    References:
      Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of
      the binomial, Biometrika 26:404.
    """
    (scale, seen), (upper_scale, one_more) = _effective_counts(weights, counts)
    first, second = np.where(seen > 0, seen, 1.0), np.maximum(one_more, 1.0)
    # If all trials have such an outcome, the second parameter is 0 and the limit is 1. Rounding may
    # leave a number just above 0.
    left = trials - second + 1.0
    upper = betaincinv(second, np.maximum(left, 1e-6), 1.0 - TAIL)
    return Ends(
        lower=scale * betaincinv(first, trials - first + 1.0, TAIL),
        upper=upper_scale * np.where(left > 1e-6, upper, 1.0),
    )


def _effective_counts(
    weights: Float[np.ndarray, "*b n"], counts: Float[np.ndarray, "*b n"]
) -> tuple[_Scaled, _Scaled]:
    """Returns the sum as one scaled count, and the same with one more of the greatest weight.

    An exact upper limit comes from the count plus one. Nobody knows which of the counts the one
    more would be; the one with the greatest weight is the safe choice.
    """
    mean = np.asarray((weights * counts).sum(-1))
    variance = np.asarray((weights**2 * counts).sum(-1))
    greatest = np.asarray(weights.max(-1, initial=0.0))
    return (
        _matched(mean, variance),
        _matched(np.asarray(mean + greatest), np.asarray(variance + greatest**2)),
    )


def _matched(mean: Float[np.ndarray, "*b"], variance: Float[np.ndarray, "*b"]) -> _Scaled:
    """Returns a scale and a count, whose product has this mean and variance."""
    some = mean > 0
    return (
        np.divide(variance, mean, out=np.zeros_like(mean), where=some),
        np.divide(mean**2, variance, out=np.zeros_like(mean), where=some),
    )


def response(matrix: Float[np.ndarray, "*b k k_plus_1"]) -> Float[np.ndarray, "*b k k"]:
    """Returns P: row = true class, column = called class; a row sums to the share that is found.

    Args:
      matrix: as in `Evidence`; a row without cells becomes one of the identity.
    """
    classes = matrix.shape[-2]
    cells = matrix.sum(-1, keepdims=True)
    rows = matrix[..., :classes] / np.maximum(cells, 1.0)
    return np.where(cells > 0, rows, np.eye(classes))


def deskew(evidence: Evidence) -> Float[np.ndarray, "*b k"]:
    """Estimates true counts by class as `(counts - extra boxes) P^-1`.

    The estimate has no bias, so a value may be negative.
    """
    net = evidence.counts - evidence.frames_ratio * evidence.extra
    return np.linalg.solve(np.swapaxes(response(evidence.matrix), -1, -2), net[..., None])[..., 0]


def count_interval(evidence: Evidence, members: Bool[np.ndarray, " k"]) -> Interval:
    """Estimates the expected number of true cells of some classes together in such a sample.

    Args:
      evidence: one sample or many.
      members: mask of the classes that are counted.

    Returns:
      Numbers of cells, 0 or more. The upper limit is infinite if the validation cannot tell the
      share that is found from 0.
    """
    weights = _weights(evidence, members.astype(float))
    true = deskew(evidence)
    total = np.asarray(true[..., members].sum(-1))
    mix = _mix(evidence, true, members)
    others = np.where(members, 0.0, np.maximum(true, 0.0))
    fixed = _spread(evidence, weights, others, counted=True)
    # The spread from the members' own rows grows with the count. So the limit is the solution of
    # |limit - total|^2 = fixed + limit^2 * share, after Fieller.
    share = _spread(evidence, weights, mix, counted=False)
    upper = _upper_root(total, fixed.upper, share.upper)
    floor = _nothing_seen(evidence, weights, members)
    lower = _lower_root(total, fixed.lower, share.lower)
    return Interval(np.asarray(np.maximum(total, 0.0)), lower, np.asarray(np.maximum(upper, floor)))


def ratio_interval(
    evidence: Evidence, members: Bool[np.ndarray, " k"], whole: Bool[np.ndarray, " k"]
) -> Interval:
    """Estimates the ratio of true cells of some classes to those of more classes, in [0, 1].

    `members - r * whole` is a weighted sum of counts. The limits of the ratio are the values r at
    which the interval of this sum just touches 0.

    Args:
      evidence: samples in which the estimate of the whole is above 0.
      members: mask of the classes of the numerator; each is one of `whole`.
      whole: mask of the classes of the denominator.

    References:
      Fieller 1954, Some problems in interval estimation, J. R. Statist. Soc. B 16:175.
    """
    true = deskew(evidence)
    total, denominator = (np.asarray(true[..., part].sum(-1)) for part in (members, whole))
    mix = _mix(evidence, true, members)
    rest = np.where(members, 0.0, np.maximum(true, 0.0))
    rest_of_whole = rest[..., whole].sum(-1)

    def excess(share: Float[np.ndarray, "*b"], side: str) -> Float[np.ndarray, "*b"]:
        """Distance above 0 of the limit of `members - share * whole`, if `share` is the truth."""
        weights = _weights(evidence, members - share[..., None] * whole)
        cells = share / np.maximum(1.0 - share, 1e-12) * rest_of_whole
        rows = rest + cells[..., None] * mix
        spread = _spread(evidence, weights, rows, counted=True)
        distance = np.sqrt(getattr(spread, side))
        gap = total - share * denominator
        return np.asarray(gap + distance if side == "upper" else gap - distance)

    estimate = np.asarray(np.clip(total / denominator, 0.0, 1.0))
    ends = np.zeros_like(estimate), estimate, np.ones_like(estimate)
    lower = _falling_root(lambda share: excess(share, "lower"), ends[0], ends[1])
    upper = _falling_root(lambda share: excess(share, "upper"), ends[1], ends[2])
    # No upper limit lies below the one for a sample in which no member was seen.
    weights = _weights(evidence, members.astype(float))
    floor = _nothing_seen(evidence, weights, members) / denominator
    return Interval(estimate, lower, np.asarray(np.minimum(np.maximum(upper, floor), 1.0)))


def _weights(evidence: Evidence, target: Float[np.ndarray, "*#b k"]) -> Float[np.ndarray, "*b k"]:
    """Returns `w = P^-1 target`, the weight of each counted box in the sum over true classes."""
    matrix = response(evidence.matrix)
    column = np.broadcast_to(target[..., None], (*matrix.shape[:-1], 1))
    return np.linalg.solve(matrix, column)[..., 0]


def _mix(
    evidence: Evidence, true: Float[np.ndarray, "*b k"], members: Bool[np.ndarray, " k"]
) -> Float[np.ndarray, "*b k"]:
    """Shares of the member classes: as estimated, with one more cell spread as in the validation.

    The additional cell matters if almost nothing was counted: without it a class that was not seen
    would have the share 0.
    """
    cells = np.where(members, np.maximum(evidence.cells, 1e-9), 0.0)
    mixed = np.where(members, np.maximum(true, 0.0), 0.0) + cells / cells.sum(-1, keepdims=True)
    return mixed / mixed.sum(-1, keepdims=True)


def _spread(
    evidence: Evidence,
    weights: Float[np.ndarray, "*b k"],
    rows: Float[np.ndarray, "*b k"],
    *,
    counted: bool,
) -> Ends:
    """Squared distances of `weights . (counts - extra)` from its limits.

    Squared distances of independent parts are added; each part has its own limits (MOVER: Zou and
    Donner 2008, Construction of confidence limits about effect measures: a general approach,
    Statistics in Medicine 27:1693). One part is the share of errors on `rows`, true cells of each
    class. If `counted`, the Poisson noise of counts and of extra boxes is added.
    """
    classes = weights.shape[-1]
    cells = evidence.cells
    # Row i adds -rows_i * sum_j (w_j - w_i) * error of P_ij. Its own column is the rest of the
    # others, so only the errors of the detector have noise of their own. A miss has weight 0.
    padded = np.concatenate([weights, np.zeros((*weights.shape[:-1], 1))], axis=-1)
    steps = -rows[..., :, None] * (padded[..., None, :] - weights[..., :, None])
    seen = evidence.matrix * (1.0 - np.eye(classes, classes + 1))
    shown = np.maximum(cells, 1.0)
    noise = _both_signs(
        steps, seen / shown[..., None], lambda part: binomial_limits(part, seen, shown)
    )
    # A row without cells is an assumption and has no noise.
    known = cells > 0
    parts = [Ends((noise.lower * known).sum(-1), (noise.upper * known).sum(-1))]
    if counted:
        for factors, values in (
            (weights, evidence.counts),
            (-evidence.frames_ratio * weights, evidence.extra),
        ):
            limits = functools.partial(poisson_limits, counts=values)
            parts.append(_both_signs(factors, values, limits))
    return Ends(
        np.asarray(sum(part.lower for part in parts)), np.asarray(sum(part.upper for part in parts))
    )


def _both_signs(
    factors: Float[np.ndarray, "*b n"],
    values: Float[np.ndarray, "*b n"],
    limits: Callable[[Float[np.ndarray, "*b n"]], Ends],
) -> Ends:
    """Squared distances of `factors . values` from its limits, for factors of both signs.

    `limits` returns the limits of `part . values` for a part that is 0 or more.
    """
    positive, negative = np.maximum(factors, 0.0), np.maximum(-factors, 0.0)
    gain, loss = limits(positive), limits(negative)
    gained, lost = (positive * values).sum(-1), (negative * values).sum(-1)
    return Ends(
        lower=(gained - gain.lower) ** 2 + (loss.upper - lost) ** 2,
        upper=(gain.upper - gained) ** 2 + (lost - loss.lower) ** 2,
    )


def _nothing_seen(
    evidence: Evidence, weights: Float[np.ndarray, "*b k"], members: Bool[np.ndarray, " k"]
) -> Float[np.ndarray, "*b"]:
    """Upper limit of the members if no box at all had been called one of them.

    No upper limit may be lower. A lower limit would come from subtracting more false boxes than
    there are, and would exclude numbers of parasites that so small a sample cannot exclude.
    """
    heaviest = np.maximum(weights, 0.0) * members
    nothing = np.zeros_like(evidence.counts)
    return np.asarray(poisson_limits(heaviest, nothing).upper)


def _upper_root(
    total: Float[np.ndarray, "*b"], fixed: Float[np.ndarray, "*b"], share: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b"]:
    """Upper root x of `(x - total)^2 = fixed + share * x^2`; infinite if share is 1 or more."""
    root = np.sqrt(np.maximum(fixed * (1.0 - share) + share * total**2, 0.0))
    return np.asarray(
        np.where(share < 1.0, (total + root) / np.maximum(1.0 - share, 1e-12), np.inf)
    )


def _lower_root(
    total: Float[np.ndarray, "*b"], fixed: Float[np.ndarray, "*b"], share: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b"]:
    """Lower root x of the same equation, in the form without a division by 1 - share."""
    root = np.sqrt(np.maximum(fixed * (1.0 - share) + share * total**2, 0.0))
    above = (total > 0) & (total**2 > fixed)
    return np.asarray(np.where(above, total**2 - fixed, 0.0) / np.where(above, total + root, 1.0))


def _falling_root(
    function: Callable[[Float[np.ndarray, "*b"]], Float[np.ndarray, "*b"]],
    low: Float[np.ndarray, "*b"],
    high: Float[np.ndarray, "*b"],
) -> Float[np.ndarray, "*b"]:
    """Root of a falling function between `low` and `high`; `low` if the function is below 0."""
    for _ in range(HALVINGS):
        middle = np.asarray((low + high) / 2.0)
        above = function(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(low)
