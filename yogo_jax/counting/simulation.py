"""Coverage by simulation: the share of samples whose confidence interval holds the known truth.

Everything uncertain is drawn anew for each sample: its cells, the class that each is called, the
validation, and the false boxes on background of both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from yogo_jax.counting.estimate import Roles, find_roles
from yogo_jax.counting.files import INSTRUMENT_CLASSES
from yogo_jax.counting.intervals import Evidence, Interval, count_interval, deskew, response
from yogo_jax.counting.matrix import MAX_CONDITION, Validation, check_invertible, read_pooled
from yogo_jax.errors import UserError
from yogo_jax.reports.tables import align, number


class Detector(NamedTuple):
    """The true error rates of a network, and the size of its validation.

    `calls` [k, k+1]: probabilities, row = true class, last column = missed. `extra` [k]: false
    boxes on background per frame. `cells` [k] and `images`: true cells and frames of the
    validation.
    """

    calls: Float[np.ndarray, "k k_plus_1"]
    extra: Float[np.ndarray, " k"]
    cells: Float[np.ndarray, " k"]
    images: int


def example_detector() -> Detector:
    """Returns a plausible network of the instrument's seven classes; its numbers are made up."""
    called = np.array(
        [
            [0.97, 2e-4, 5e-5, 1e-5, 1e-5, 1e-5, 0.002],
            [0.06, 0.86, 0.03, 0.0, 0.0, 0.0, 0.01],
            [0.02, 0.03, 0.88, 0.03, 0.0, 0.0, 0.01],
            [0.01, 0.0, 0.05, 0.86, 0.01, 0.02, 0.02],
            [0.01, 0.0, 0.01, 0.01, 0.90, 0.0, 0.04],
            [0.0, 0.0, 0.0, 0.02, 0.0, 0.92, 0.04],
            [0.05, 0.01, 0.005, 0.005, 0.005, 0.005, 0.62],
        ]
    )
    return Detector(
        calls=np.concatenate([called, 1.0 - called.sum(1, keepdims=True)], axis=1),
        extra=np.array([1e-3, 1e-4, 5e-5, 1e-5, 0.0, 0.0, 0.02]),
        cells=np.array([20_000.0, 800, 400, 150, 100, 150, 500]),
        images=500,
    )


def detector_like(validation: Validation) -> Detector:
    """Returns a network whose true error rates are those that a validation measured."""
    cells = validation.cells
    known = np.concatenate([np.eye(len(cells)), np.zeros((len(cells), 1))], axis=1)
    shares = validation.matrix / np.maximum(cells, 1.0)[:, None]
    return Detector(
        np.where(cells[:, None] > 0, shares, known),
        validation.extra / validation.images,
        cells,
        validation.images,
    )


def with_validation_times(detector: Detector, times: float) -> Detector:
    """Returns the network with a validation of `times` as many cells and frames."""
    return detector._replace(
        cells=np.ceil(detector.cells * times), images=int(np.ceil(detector.images * times))
    )


def draw(
    detector: Detector, cells: Float[np.ndarray, " k"], *, frames: int, samples: int, seed: int
) -> Evidence:
    """Draws samples with these expected cells, each with a validation of its own."""
    generator = np.random.default_rng(seed)
    classes = len(cells)
    present = generator.poisson(cells, (samples, classes))
    counts = generator.poisson(detector.extra * frames, (samples, classes))
    for index, calls in enumerate(detector.calls):
        counts = counts + generator.multinomial(present[:, index], calls)[:, :classes]
    matrix = [
        generator.multinomial(int(shown), calls, samples)
        for shown, calls in zip(detector.cells, detector.calls, strict=True)
    ]
    return Evidence(
        counts.astype(np.float64),
        np.stack(matrix, axis=1).astype(np.float64),
        generator.poisson(detector.extra * detector.images, (samples, classes)).astype(np.float64),
        frames / detector.images,
    )


def usable(evidence: Evidence) -> Evidence:
    """Returns the samples whose validation has a matrix that can be inverted.

    Raises:
      UserError: there is none.
    """
    kept = np.linalg.cond(response(evidence.matrix)) <= MAX_CONDITION
    if not kept.any():
        raise UserError(
            "no drawn validation has a matrix that can be inverted: it has too few cells of some "
            "class"
        )
    counts, matrix, extra = (part[kept] for part in evidence[:3])
    return Evidence(counts, matrix, extra, evidence.frames_ratio)


def sigma_interval(evidence: Evidence, members: Bool[np.ndarray, " k"], sigmas: float) -> Interval:
    """Returns the interval that the instrument's corrector seems to give, for comparison only.

    Estimates below 0 are set to 0 class by class. The half width is `sigmas` standard deviations
    of the linear expansion, without covariances, or 3 cells if no parasite is left (rule of three).
    """
    corrected = np.maximum(deskew(evidence), 0.0)
    inverse = np.linalg.inv(response(evidence.matrix))
    # Linear expansion of the inverse: dA = -A dP A; the rows of P are independent multinomials.
    shares = evidence.matrix / np.maximum(evidence.cells, 1.0)[..., None]
    padded = np.concatenate([inverse, np.zeros_like(inverse[..., :1, :])], axis=-2)
    rows = shares @ padded**2 - (shares @ padded) ** 2
    rows = rows / np.maximum(evidence.cells, 1.0)[..., None]
    variances = (
        evidence.counts[..., None, :] @ inverse**2
        + evidence.counts[..., None, :] ** 2 @ (inverse**2 @ rows)
    )[..., 0, :]
    total = corrected[..., members].sum(-1)
    width = np.where(total > 0, sigmas * np.sqrt(variances[..., members].sum(-1)), 3.0)
    return Interval(total, np.maximum(total - width, 0.0), total + width)


def expected_cells(
    parasites: float, healthy: float, roles: Roles, detector: Detector
) -> Float[np.ndarray, " k"]:
    """Returns cells by class of a sample with these numbers of parasites and healthy red cells.

    The mix of parasite classes is that of the validation. So is the number of other cells per
    healthy cell.
    """
    members = roles.parasites
    others = detector.cells * healthy / detector.cells[roles.red_cells & ~members].sum()
    mix = np.maximum(detector.cells, 1e-9) * members
    return np.where(members, parasites * mix / mix.sum(), others)


def coverage_table(
    detector: Detector,
    roles: Roles,
    *,
    parasites: Sequence[float],
    healthy: float,
    frames: int,
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Measures the coverage of our intervals and of those of 1.69 and 1.96 standard deviations.

    Args:
      detector: the true error rates of the network.
      roles: classes of parasites and of red cells.
      parasites: expected parasites; one row of the table for each number.
      healthy: expected healthy cells.
      frames: frames of a sample.
      samples: number of samples for each row.
      seed: seed of the draws.

    Raises:
      UserError: no validation of this size has a matrix that can be inverted.
    """
    rows, members = [], roles.parasites
    for true in parasites:
        present = expected_cells(true, healthy, roles, detector)
        evidence = usable(draw(detector, present, frames=frames, samples=samples, seed=seed))
        ours = count_interval(evidence, members)
        rows.append(
            {
                "parasites": true,
                "refused": samples - len(evidence.counts),
                "mean_estimate": float(deskew(evidence)[..., members].sum(-1).mean()),
                "median_lower": float(np.median(ours.lower)),
                "median_upper": float(np.median(ours.upper)),
                "coverage": share_holding(ours, true),
                **{
                    f"coverage_{sigmas}_sigma": share_holding(
                        sigma_interval(evidence, members, sigmas), true
                    )
                    for sigmas in (1.96, 1.69)
                },
            }
        )
    return rows


def share_holding(interval: Interval, truth: float) -> float:
    """Returns the share of intervals that hold the truth."""
    return float(((interval.lower <= truth) & (truth <= interval.upper)).mean())


def print_coverage(
    *,
    validation: Sequence[Path] | None,
    assume_right: Sequence[str],
    validation_times: float,
    parasites: Sequence[float],
    cells: float,
    frames: int,
    samples: int,
    seed: int,
    parasite_classes: Sequence[str],
    red_cell_classes: Sequence[str],
) -> None:
    """Simulates how often the intervals hold the truth, and prints it: `counts coverage`.

    Raises:
      UserError: the validation cannot be used.
    """
    names: Sequence[str] = INSTRUMENT_CLASSES
    detector = example_detector()
    if validation:
        pooled = read_pooled(validation)
        check_invertible(pooled, assume_right=assume_right)
        names, detector = pooled.class_names, detector_like(pooled)
    detector = with_validation_times(detector, validation_times)
    roles = find_roles(names, parasite_classes, red_cell_classes)
    rows = coverage_table(
        detector,
        roles,
        parasites=parasites,
        healthy=cells,
        frames=frames,
        samples=samples,
        seed=seed,
    )
    print(
        f"{samples} samples of {cells:g} healthy cells in {frames} frames, each "
        f"with a validation of {detector.cells.sum():.0f} cells in {detector.images} frames; 95 % "
        "intervals"
    )
    header = ["parasites", "mean estimate", "median limits", "", "coverage"]
    table = [
        [
            *map(number, (row["parasites"], row["mean_estimate"])),
            *map(number, (row["median_lower"], row["median_upper"])),
            *(f"{100 * share:.1f} %" for name, share in row.items() if "coverage" in name),
        ]
        for row in rows
    ]
    print("\n".join(align([*header, "1.96 sigma", "1.69 sigma"], table)))
    refused = sum(row["refused"] for row in rows)
    if refused:
        print(
            f"{refused} sample(s) left out: their validation happened to have a matrix that cannot "
            "be inverted, as is refused in earnest too"
        )
