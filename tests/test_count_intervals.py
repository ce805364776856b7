"""Intervals of counts: exact where they can be, and holding the truth as often as they say."""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from count_samples import CONFUSION
from yogo_jax.counting.estimate import Roles
from yogo_jax.counting.intervals import (
    Evidence,
    binomial_limits,
    count_interval,
    deskew,
    poisson_limits,
    ratio_interval,
    response,
)
from yogo_jax.counting.simulation import (
    coverage_table,
    draw,
    example_detector,
    expected_cells,
    share_holding,
    sigma_interval,
    with_validation_times,
)


PARASITES = np.array([0, 1, 1, 1, 0, 0, 0], bool)
ROLES = Roles(PARASITES, np.array([1, 1, 1, 1, 0, 0, 0], bool))


def garwood(count: int) -> tuple[float, float]:
    lower = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return lower, chi2.ppf(0.975, 2 * count + 2) / 2


def perfect(counts) -> Evidence:
    classes = len(counts)
    return Evidence(np.asarray(counts, float), np.zeros((classes, classes + 1)), np.zeros(classes))


def validated(counts, frames_ratio=0.0) -> Evidence:
    confusion = np.asarray(CONFUSION, float)
    return Evidence(np.asarray(counts, float), confusion[:-1], confusion[-1, :-1], frames_ratio)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 50, 5000, 200_000])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_one_poisson_count_has_garwoods_limits(count, weight):
    found = poisson_limits(np.array([weight]), np.array([float(count)]))
    expected = np.array(garwood(count)) * weight
    np.testing.assert_allclose([found.lower, found.upper], expected, rtol=1e-9)


@pytest.mark.parametrize(("count", "trials"), [(0, 10), (1, 10), (7, 10), (10, 10), (3, 20_000)])
def test_one_proportion_has_clopper_and_pearsons_limits(count, trials):
    found = binomial_limits(np.array([2.0]), np.array([float(count)]), np.array(float(trials)))
    exact = binomtest(count, trials).proportion_ci(method="exact")
    np.testing.assert_allclose([found.lower, found.upper], [2 * exact.low, 2 * exact.high])


def test_counts_of_equal_weight_are_one_count():
    found = poisson_limits(np.array([0.5, 0.5, 0.0]), np.array([3.0, 4.0, 9.0]))
    np.testing.assert_allclose([found.lower, found.upper], np.array(garwood(7)) / 2)


def test_weights_of_nothing_have_limits_of_nothing():
    found = poisson_limits(np.zeros(2), np.array([3.0, 0.0]))
    assert (found.lower, found.upper) == (0.0, 0.0)


def test_deskewed_counts_are_the_true_ones_where_there_is_no_noise():
    true = np.array([20_000.0, 40, 8, 2, 1, 20, 100])
    confusion = np.asarray(CONFUSION, float)
    shares = confusion[:-1, :-1] / confusion[:-1].sum(1, keepdims=True)
    extra = confusion[-1, :-1]
    counts = [sum(true[i] * shares[i, j] for i in range(7)) + 0.5 * extra[j] for j in range(7)]
    np.testing.assert_allclose(deskew(validated(counts, frames_ratio=0.5)), true, rtol=1e-9)


def test_a_perfect_detector_leaves_the_exact_limits():
    found = count_interval(perfect([1000, 0, 3, 4, 0, 0, 0]), PARASITES)
    np.testing.assert_allclose(found, (7, *garwood(7)), rtol=1e-9)


def test_a_share_of_few_in_many_has_the_exact_limits_of_a_proportion():
    found = ratio_interval(perfect([30_000, 5, 0, 0, 0, 0, 0]), PARASITES, ROLES.red_cells)
    exact = binomtest(5, 30_005).proportion_ci(method="exact")
    np.testing.assert_allclose(found, (5 / 30_005, exact.low, exact.high), rtol=2e-3)


def test_nothing_counted_is_two_sided_where_the_rule_of_three_is_not():
    found = ratio_interval(perfect([10_000, 0, 0, 0, 0, 0, 0]), PARASITES, ROLES.red_cells)
    assert (found.estimate, found.lower) == (0.0, 0.0)
    assert found.upper == pytest.approx(-np.log(0.025) / 10_000, rel=1e-3)


def test_one_sample_is_as_one_of_many():
    cells = expected_cells(20, 20_000, ROLES, example_detector())
    many = draw(example_detector(), cells, frames=400, samples=5, seed=3)
    for interval in (
        lambda evidence: count_interval(evidence, PARASITES),
        lambda evidence: ratio_interval(evidence, PARASITES, ROLES.red_cells),
    ):
        together = interval(many)
        for index in range(5):
            one = Evidence(*(part[index] for part in many[:3]), many.frames_ratio)
            alone = interval(one)
            np.testing.assert_allclose(alone, [part[index] for part in together], rtol=1e-6)


def samples_of_every_size() -> Evidence:
    """500 samples, most with counts of 0 among them, before one validation."""
    generator = np.random.default_rng(5)
    most = generator.choice([1, 2, 10, 100], (500, 7))
    counts = generator.integers(0, most).astype(float)
    counts[:, 0] = generator.integers(500, 50_000, 500)
    one = validated(counts[0], frames_ratio=0.3)
    matrix, extra = (np.broadcast_to(part, (500, *part.shape)) for part in one[1:3])
    return Evidence(counts, matrix, extra, one.frames_ratio)


@pytest.mark.parametrize("members", [PARASITES, *np.eye(7, dtype=bool)], ids=str)
def test_limits_enclose_the_estimate_and_are_no_negative_numbers(members):
    found = count_interval(samples_of_every_size(), members)
    assert ((found.lower >= 0) & (found.lower <= found.estimate)).all()
    assert ((found.estimate <= found.upper) & (found.upper > 3)).all()


def test_a_share_lies_between_its_limits():
    found = ratio_interval(samples_of_every_size(), PARASITES, ROLES.red_cells)
    assert ((found.lower >= 0) & (found.lower <= found.estimate)).all()
    assert ((found.estimate <= found.upper) & (found.upper <= 1) & (found.upper > 0)).all()


def test_a_class_that_is_assumed_right_adds_no_doubt():
    evidence = validated([20_000, 40, 8, 2, 0, 20, 100])
    matrix = evidence.matrix.copy()
    matrix[3] = 0
    assumed = evidence._replace(matrix=matrix)
    np.testing.assert_array_equal(response(assumed.matrix)[3], np.eye(7)[3])
    schizont = np.eye(7, dtype=bool)[3]
    assert count_interval(assumed, schizont).upper < count_interval(evidence, schizont).upper


def test_a_smaller_validation_means_a_wider_interval():
    counts = [20_000, 400, 80, 20, 10, 20, 100]
    small = validated(counts)
    large = small._replace(matrix=small.matrix * 100)
    narrow, wide = (count_interval(each, PARASITES) for each in (large, small))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_a_class_found_once_in_ten_has_a_finite_limit():
    matrix = np.zeros((2, 3))
    matrix[0, 0], matrix[1, 1], matrix[1, 2] = 1e7, 1, 9
    members = np.array([False, True])
    found = count_interval(Evidence(np.array([1000.0, 5.0]), matrix, np.zeros(2)), members)
    exact = binomtest(1, 10).proportion_ci(method="exact")
    fewest, most = garwood(5)
    assert 5 / 0.1 < found.upper < most / exact.low
    assert fewest / exact.high < found.lower < 5 / exact.high


# The intervals' promise. Seeded, so either it holds for good or it does not.
@pytest.mark.parametrize(
    ("healthy", "times"), [(20_000, 1), (100_000, 1), (20_000, 20)], ids=["one", "many", "known"]
)
def test_95_percent_intervals_hold_the_truth_in_95_percent(healthy, times):
    detector = with_validation_times(example_detector(), times)
    rows = coverage_table(
        detector,
        ROLES,
        parasites=(0, 5, 50, 5000),
        healthy=healthy,
        frames=400,
        samples=2000,
        seed=0,
    )
    for row in rows:
        assert row["coverage"] >= 0.94, row
        assert row["coverage"] <= 0.98 or row["parasites"] < 50, row
        # The estimate has no bias that intervals would have to make up for.
        assert row["mean_estimate"] == pytest.approx(row["parasites"], rel=0.02, abs=3), row


@pytest.mark.parametrize("parasites", [0, 5, 50, 5000])
def test_intervals_of_parasitemia_hold_the_truth(parasites):
    detector = example_detector()
    cells = expected_cells(parasites, 20_000, ROLES, detector)
    evidence = draw(detector, cells, frames=400, samples=200, seed=1)
    found = ratio_interval(evidence, PARASITES, ROLES.red_cells)
    # 200 samples: 3 standard errors are 4.6 %.
    held = share_holding(found, parasites / cells[ROLES.red_cells].sum())
    assert held >= 0.95 - 0.046


def test_the_width_of_a_large_count_is_that_of_its_scatter():
    detector = example_detector()
    cells = expected_cells(5000, 20_000, ROLES, detector)
    evidence = draw(detector, cells, frames=400, samples=4000, seed=2)
    scatter = deskew(evidence)[:, PARASITES].sum(1).std()
    found = count_interval(evidence, PARASITES)
    assert np.median(found.upper - found.lower) == pytest.approx(2 * 1.96 * scatter, rel=0.04)


def test_169_sigma_holds_one_count_in_91_percent():
    # One class, a detector that never errs: the width alone is judged.
    counts = np.random.default_rng(0).poisson(5000, (2000, 1)).astype(float)
    evidence = Evidence(counts, np.tile([[1e9, 0.0]], (2000, 1, 1)), np.zeros((2000, 1)))
    only = np.array([True])
    narrow, wide = (share_holding(sigma_interval(evidence, only, s), 5000) for s in (1.69, 1.96))
    ours = share_holding(count_interval(evidence, only), 5000)
    print(f"coverage of 1.69 sigma {narrow:.3f}, 1.96 sigma {wide:.3f}, ours {ours:.3f}")
    assert narrow < 0.925
    assert 0.94 < wide < 0.965
    assert 0.94 < ours < 0.965
