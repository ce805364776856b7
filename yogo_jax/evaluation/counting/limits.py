"""Confidence limits of weighted sums of counts, right for small counts and for large ones.

One count alone gets its exact limits: Garwood's of a Poisson mean, Clopper and Pearson's of a
proportion. Of a weighted sum the moments are matched, see `docs/counts.md`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, gammaincinv


class Limits(NamedTuple):
    """Lower and upper confidence limits, in the unit of what they are of."""

    lower: Float[np.ndarray, "*b"]
    upper: Float[np.ndarray, "*b"]


class _Effective(NamedTuple):
    """A sum of weighted counts as one count: `scale * number` has its mean and its variance."""

    scale: Float[np.ndarray, "*b"]
    number: Float[np.ndarray, "*b"]


def poisson_limits(
    weights: Float[np.ndarray, "*b n"],
    counts: Float[np.ndarray, "*b n"],
    *,
    confidence: float = 0.95,
) -> Limits:
    """Limits of `sum_j weights_j * mean_j`, where counts are Poisson with these means.

    With one count, or equal weights, these are Garwood's exact limits: 0 and 3.69 of a count of 0.

    Args:
      weights: 0 or more.
      counts: what was counted.
      confidence: two-sided; half of the rest lies beyond each limit.

    References:
      Garwood 1936, Fiducial limits for the Poisson distribution, Biometrika 28:437.
      Fay and Feuer 1997, Confidence intervals for directly standardized rates: a method based on
      the gamma distribution, Statistics in Medicine 16:791, section 3.
    """
    tail = (1.0 - confidence) / 2.0
    seen, one_more = _effective_counts(weights, counts)
    return Limits(
        lower=seen.scale * gammaincinv(np.where(seen.number > 0, seen.number, 1.0), tail),
        upper=one_more.scale * gammaincinv(np.maximum(one_more.number, 1.0), 1.0 - tail),
    )


def binomial_limits(
    weights: Float[np.ndarray, "*b n"],
    counts: Float[np.ndarray, "*b n"],
    trials: Float[np.ndarray, "*b"],
    *,
    confidence: float = 0.95,
) -> Limits:
    """Limits of `sum_j weights_j * p_j`, where counts are how often j was seen in the trials.

    With one outcome, or equal weights, these are Clopper and Pearson's exact limits of p.

    Args:
      weights: 0 or more.
      counts: of exclusive outcomes; their sum is at most `trials`.
      trials: at least 1.
      confidence: two-sided.

    References:
      Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of
      the binomial, Biometrika 26:404.
    """
    tail = (1.0 - confidence) / 2.0
    seen, one_more = _effective_counts(weights, counts)
    first = np.where(seen.number > 0, seen.number, 1.0)
    second = np.maximum(one_more.number, 1.0)
    # All of them seen: nothing is left for the second parameter, and the limit is 1. Rounding may
    # leave a little.
    left = trials - second + 1.0
    upper = betaincinv(second, np.maximum(left, 1e-6), 1.0 - tail)
    return Limits(
        lower=seen.scale * betaincinv(first, trials - first + 1.0, tail),
        upper=one_more.scale * np.where(left > 1e-6, upper, 1.0),
    )


def _effective_counts(
    weights: Float[np.ndarray, "*b n"], counts: Float[np.ndarray, "*b n"]
) -> tuple[_Effective, _Effective]:
    """The sum as one count, and the same with one more count of the greatest weight.

    Exact limits above come from the count plus one; which of the counts would have been it is not
    known, and the one that weighs most is the safe choice.
    """
    mean = np.asarray((weights * counts).sum(-1))
    variance = np.asarray((weights**2 * counts).sum(-1))
    greatest = np.asarray(weights.max(-1, initial=0.0))
    return (
        _matched(mean, variance),
        _matched(np.asarray(mean + greatest), np.asarray(variance + greatest**2)),
    )


def _matched(mean: Float[np.ndarray, "*b"], variance: Float[np.ndarray, "*b"]) -> _Effective:
    some = mean > 0
    return _Effective(
        scale=np.divide(variance, mean, out=np.zeros_like(mean), where=some),
        number=np.divide(mean**2, variance, out=np.zeros_like(mean), where=some),
    )
