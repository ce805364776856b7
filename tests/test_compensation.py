"""Compensation: the line, its inverse and limits, and a file that is found by `==`."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from yogo_jax.counting.compensation import (
    Line,
    compensate,
    compensation_csv,
    confidence_values,
    fit_line,
    fit_lines,
    read_line,
    read_runs,
)
from yogo_jax.counts import main as counts_main
from yogo_jax.errors import UserError


REFERENCES = np.array([0.0, 100, 500, 2000, 10_000, 40_000])
WAYS = {
    "round": [round(0.75 + 0.0025 * i, 4) for i in range(101)],
    "numpy-round": list(np.round(np.arange(0.75, 1.0001, 0.0025), 4)),
    "floats": [0.75 + 0.0025 * i for i in range(101)],
    "arange": list(np.arange(0.75, 1, 0.0025)),
    "arange-with-1": list(np.arange(0.75, 1.0025, 0.0025))[:101],
    "linspace": list(np.linspace(0.75, 1, 101)),
    "literals": [0.75, 0.8, 0.82, 0.85, 0.8825, 0.9, 0.93, 0.95, 0.975, 0.99, 1.0],
}


def lines_of_all_confidences():
    return {value: Line(value, 10 * value, 1e-4, 2.0, 0.1 + value) for value in confidence_values()}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_computing_a_confidence_finds_one_row(tmp_path, way):
    path = tmp_path / "model-clinical-compensation-no-heatmaps.csv"
    path.write_text(compensation_csv(lines_of_all_confidences()))
    with path.open() as file:
        header, *rows = csv.reader(file)
    assert header == ["conf_val", "fit_m", "fit_b", "cov_m", "cov_b", "ratiometric_error"]
    table = np.array(rows, float)
    for value in WAYS[way]:
        (found,) = np.flatnonzero(table[:, 0] == value)
        expected = round(float(value), 4)
        np.testing.assert_array_equal(
            table[found, 1:], [expected, 10 * expected, 1e-4, 2.0, 0.1 + expected]
        )
        assert read_line(path, value).m == expected


def test_rows_are_in_order_and_no_value_is_there_twice():
    rows = compensation_csv(lines_of_all_confidences()).splitlines()[1:]
    values = [float(row.split(",")[0]) for row in rows]
    assert values == sorted(set(values))
    assert (values[0], values[-1]) == (0.75, 1.0)


@pytest.mark.parametrize("kind", ["counted", "reference"])
def test_an_exact_line_is_found_and_undone(kind):
    if kind == "counted":
        counted, references = 0.4 * REFERENCES + 90, REFERENCES
    else:
        counted, references = REFERENCES, 2.5 * REFERENCES + 90
    line = fit_line(counted, references, kind)
    assert (line.m, line.b) == pytest.approx((0.4 if kind == "counted" else 2.5, 90))
    assert line.variance_m == pytest.approx(0, abs=1e-20)
    assert line.ratio_spread == pytest.approx(0, abs=1e-6)
    for count, reference in zip(counted, references, strict=True):
        assert compensate(line, kind, (count, count, count)).estimate == pytest.approx(
            reference, abs=1e-6
        )


@pytest.mark.parametrize("kind", ["counted", "reference"])
def test_variances_are_those_of_repeated_fits(kind):
    # Scatter grows with the count, as counts do: where the usual variances would be too small.
    generator = np.random.default_rng(0)
    references = np.repeat(REFERENCES, 4)
    fits = []
    for _ in range(400):
        noise = generator.normal(size=len(references)) * (20 + 0.1 * references)
        counted = 0.4 * references + 90 + 0.4 * noise
        fits.append(fit_line(counted, references, kind))
    slopes, variances = np.array([(fit.m, fit.variance_m) for fit in fits]).T
    assert np.sqrt(variances.mean()) == pytest.approx(slopes.std(), rel=0.25)


def test_least_squares_of_numpy():
    generator = np.random.default_rng(1)
    counted = 0.3 * REFERENCES + 50 + generator.normal(size=6) * 30
    line = fit_line(counted, REFERENCES, "counted")
    np.testing.assert_allclose([line.m, line.b], np.polyfit(REFERENCES, counted, 1), rtol=1e-9)


def test_compensated_limits_hold_the_reference():
    generator = np.random.default_rng(2)
    true, line, held = 2000.0, (0.4, 90.0), 0
    for _ in range(2000):
        seen = Line(
            generator.normal(line[0], 0.02), generator.normal(line[1], 10), 0.02**2, 100.0, 0.0
        )
        count = generator.normal(line[0] * true + line[1], 40)
        limits = (count, count - 1.96 * 40, count + 1.96 * 40)
        found = compensate(seen, "counted", limits)
        held += found.lower <= true <= found.upper
    assert 0.94 <= held / 2000 <= 0.965


def test_a_slope_that_may_be_0_has_no_upper_limit():
    found = compensate(Line(0.1, 0, 0.01, 1, 0), "counted", (50, 40, 60))
    assert (found.lower, found.upper) == (0, np.inf)
    with pytest.raises(UserError, match="above 0"):
        compensate(Line(-0.1, 0, 0.01, 1, 0), "counted", (50, 40, 60))


def test_the_correctors_compensation_is_not_the_inverse_of_the_line():
    line = Line(0.25, 13.0, 0.0, 0.0, 0.0)
    for reference in (0.0, 1000.0):
        counted = line.m * reference + line.b
        assert compensate(line, "counted", (counted,) * 3).estimate == pytest.approx(reference)
        # The corrector's formula seems to be y / m - b. It is off by b / m - b wherever it is, 39
        # parasites per uL here.
        off = counted / line.m - line.b - reference
        assert off == pytest.approx(line.b / line.m - line.b)


@pytest.mark.parametrize(
    ("counted", "references", "expected"),
    [
        pytest.param([1, 2], [1, 2], "3 runs or more", id="two"),
        pytest.param([1, 2, 3], [5, 5, 5], "all runs have the same", id="one-reference"),
        pytest.param([1, 2, 3, 9], [0, 0, 0, 100], "alone decides", id="one-run-decides"),
    ],
)
def test_no_line_goes_through(counted, references, expected):
    with pytest.raises(UserError, match=expected):
        fit_line(np.array(counted, float), np.array(references, float), "counted")


def test_confidences_without_a_line_are_left_out_and_named():
    counted = {
        0.75: 0.4 * REFERENCES,
        0.9: -0.4 * REFERENCES,
        1.0: np.full(6, np.nan),
    }
    lines, left_out = fit_lines(counted, REFERENCES, "counted")
    assert list(lines) == [0.75]
    assert "do not rise" in left_out[0.9]
    assert "no red cell" in left_out[1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "1: expected the line run,reference_per_ul", id="empty"),
        pytest.param("run,ref\na.npy,3\n", "expected the line", id="header"),
        pytest.param("run,reference_per_ul\na.npy,many\n", "2: expected a .npy", id="no-number"),
        pytest.param("run,reference_per_ul\na.npy,-1\n", "2: expected a .npy", id="negative"),
        pytest.param("run,reference_per_ul\na.npy,nan\n", "2: expected a .npy", id="nan"),
        pytest.param("run,reference_per_ul\na.npy\n", "2: expected a .npy", id="short"),
    ],
)
def test_no_list_of_runs(tmp_path, text, expected):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(UserError, match=r"runs\.csv") as error:
        read_runs(tmp_path / "runs.csv")
    assert expected in str(error.value)


def test_no_compensation_file(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("conf_val,m\n0.95,3\n")
    with pytest.raises(UserError, match="expected the columns conf_val, fit_m"):
        read_line(path, 0.95)
    path.write_text(compensation_csv({0.95: Line(1, 2, 3, 4, 5)}))
    with pytest.raises(UserError, match=r"no row for conf_val 0.9; the nearest"):
        read_line(path, 0.9)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_published_files_are_read_by_column_name(name, capsys, tmp_path):
    cases = Path(__file__).parents[2] / "shared" / "cases" / "compensation-headers"
    for confidence, m, b in ((0.5, 0.5, 100), (0.75, 0.4, 80)):
        line = read_line(cases / f"{name}.csv", confidence)
        assert line[:4] == (m, b, 0.01, 50)
        assert math.isnan(line.ratio_spread)
    arguments = ["--compensation", str(cases / f"{name}.csv"), "--output", str(tmp_path)]
    counts_main(
        ["estimate", str(cases / "run.npy"), *arguments, "--min-class-confidence-threshold", "0.5"]
    )
    values = json.loads((tmp_path / "counts.json").read_text())
    counted = values["raw"]["parasites_per_ul"]["estimate"]
    compensated = values["compensated"]["parasites_per_ul"]["estimate"]
    assert compensated == pytest.approx(max((counted - 100) / 0.5, 0))
    assert values["compensation"]["ratio_spread"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ratiometric_error, fit_b,fit_m,more,cov_b,cov_m,conf_val\n5,2,1,x,4,3,0.95\n", None),
        ("conf_val,fit_m,fit_b,cov_m,cov_b,x\n0.95,1,2,3,4,\n\n", None),
        ("conf_val,fit_m,fit_b,cov_m\n0.95,1,2,3\n", "found conf_val, fit_m, fit_b, cov_m"),
        (
            "conf_val,fit_m,fit_m,fit_b,cov_m,cov_b\n0.95,1,9,2,3,4\n",
            "each once, in its first line",
        ),
        ("conf_val,fit_m,fit_b,cov_m,cov_b\n0.95,1,2,3\n", "line 2: cov_b is None"),
        ("conf_val,fit_m,fit_b,cov_m,cov_b\n0.95,1,2,3,x\n", "line 2: cov_b is 'x'"),
        ("", "found nothing"),
    ],
    ids=["any_order", "other_column", "missing", "twice", "short_row", "no_number", "empty"],
)
def test_columns_of_a_compensation_file(tmp_path, text, expected):
    path = tmp_path / "file.csv"
    path.write_text(text)
    if expected is None:
        assert read_line(path, 0.95)[:4] == (1, 2, 3, 4)
        return
    with pytest.raises(UserError, match=r"--compensation .*file\.csv: ") as error:
        read_line(path, 0.95)
    assert expected in str(error.value)
