"""Limits of detection: false alarms and misses as often as they may be, in draws."""

import numpy as np
import pytest

from count_samples import CONFUSION
from yogo_jax.counting.estimate import Roles, detection_limit
from yogo_jax.counting.intervals import Evidence


ROLES = Roles(np.array([False, True]), np.array([True, True]))


def validated(false_boxes, cells=20_000, right=90, extra=0) -> Evidence:
    matrix = np.array([[cells - false_boxes, false_boxes, 0.0], [100 - right, right, 0.0]])
    return Evidence(np.zeros(2), matrix, np.array([0.0, extra]))


def limit(evidence, cells=20_000, frames_ratio=0.0):
    return detection_limit(evidence, ROLES, cells=cells, frames_ratio=frames_ratio)


def test_a_perfect_detector_needs_three():
    found = limit(Evidence(np.zeros(2), np.zeros((2, 3)), np.zeros(2)))
    assert (found.critical, found.false_boxes) == (1, 0)
    assert found.parasites[1] == pytest.approx(-np.log(0.05))
    assert np.isinf(found.parasites[0])


def test_a_detector_that_finds_half_needs_twice_as_many():
    whole, half = (limit(validated(3, right=right)).parasites[1] for right in (100, 50))
    assert half == pytest.approx(2 * whole)


def test_more_doubt_about_false_boxes_needs_more_parasites():
    small, large = validated(1, cells=2000), validated(100, cells=200_000)
    assert limit(small).false_boxes == limit(large).false_boxes == 10
    assert limit(small).parasites[1] > limit(large).parasites[1] * 1.5


def test_currie_with_a_well_known_background():
    # His formula for counts: 2.71 + 3.29 sqrt(B), where B is known; ours has whole counts.
    found = limit(validated(20_000, cells=4_000_000), cells=80_000)
    assert found.false_boxes == 400
    assert found.parasites[1] * 0.9 == pytest.approx(2.71 + 3.29 * 20, rel=0.05)


def test_false_boxes_on_background_count_by_frames():
    assert limit(validated(2, extra=10), frames_ratio=0.5).false_boxes == 7


def test_false_alarms_and_misses_are_rare_enough():
    generator = np.random.default_rng(0)
    cells, rate, draws = 20_000, 3e-4, 1500
    alarms = 0
    for _ in range(draws):
        validated_now = validated(int(generator.binomial(10_000, rate)), cells=10_000)
        found = limit(validated_now, cells)
        alarms += generator.poisson(cells * rate) >= found.critical
    assert alarms / draws <= 0.05
    # With rates as they were measured, a sample at the limit is seen in 95 of 100.
    found = limit(validated(3, cells=10_000), cells)
    mean = cells * 3e-4 + found.parasites[1] * 0.9
    seen = (generator.poisson(mean, 20_000) >= found.critical).mean()
    assert seen == pytest.approx(0.95, abs=0.006)


def test_each_parasite_class_has_its_own():
    confusion = np.asarray(CONFUSION, float)
    parasites = np.array([0, 1, 1, 1, 0, 0, 0], bool)
    roles = Roles(parasites, np.array([1, 1, 1, 1, 0, 0, 0], bool))
    evidence = Evidence(np.zeros(7), confusion[:-1], confusion[-1, :-1])
    found = detection_limit(evidence, roles, cells=20_000, frames_ratio=0)
    assert np.isfinite(found.parasites).tolist() == parasites.tolist()
    assert found.parasites[1] / found.parasites[2] == pytest.approx((376 / 400) / (712 / 800))
