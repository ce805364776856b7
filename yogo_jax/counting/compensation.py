"""Compensation: a line between counts and a reference, fitted, applied, written and read.

The counts are the parasites per uL of a run; the reference (microscopy, PCR) is of the same blood.
There is one line for each class confidence. Two kinds of line exist, and a file does not say which
it holds (`docs/counts.md`):
`counted`: counted = m * reference + b; the instrument's corrector divides by this m.
`reference`: reference = m * counted + b.
"""

import csv
import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from yogo_jax.counting import thresholds
from yogo_jax.counting.estimate import find_roles
from yogo_jax.counting.files import counts_by_confidence, read_csv_rows, read_run_array
from yogo_jax.counting.intervals import CONFIDENCE, Interval
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, read_given_text, write_atomically
from yogo_jax.reports.tables import align, number


LINES = ("counted", "reference")
FIRST_CONFIDENCE, CONFIDENCE_STEP, CONFIDENCES = 0.75, 0.0025, 101
# Above this leverage one run alone decides the line, and the variances mean nothing.
MAX_LEVERAGE = 0.999
COLUMNS = ("conf_val", "fit_m", "fit_b", "cov_m", "cov_b", "ratiometric_error")
# Published files lack this column.
OPTIONAL = "ratiometric_error"
# Rows that are shown at the terminal.
SHOWN_CONFIDENCES = (0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)


class Line(NamedTuple):
    """A row of the file: slope, intercept (per uL), their variances, the spread of the ratio.

    `ratio_spread` is the standard deviation of compensated / reference over the runs.
    """

    m: float
    b: float
    variance_m: float
    variance_b: float
    ratio_spread: float = math.nan


def confidence_values() -> list[float]:
    """Returns 0.75 to 1 in steps of 0.0025, as the floats nearest to these decimals."""
    return [round(FIRST_CONFIDENCE + CONFIDENCE_STEP * i, 4) for i in range(CONFIDENCES)]


@functools.cache
def spellings(value: float) -> tuple[float, ...]:
    """Returns the floats that a program may have for one of `confidence_values`, sorted.

    Readers look a row up by `==`. The decimal 0.82, the sum 0.75 + 28 * 0.0025 and the element of
    `np.arange(0.75, 1, 0.0025)` are three different floats.
    """
    index = round((value - FIRST_CONFIDENCE) / CONFIDENCE_STEP)
    return tuple(
        sorted(
            {
                value,
                FIRST_CONFIDENCE + CONFIDENCE_STEP * index,
                float(np.arange(FIRST_CONFIDENCE, 2.0, CONFIDENCE_STEP)[index]),
            }
        )
    )


def fit_line(
    counted_per_ul: Float[np.ndarray, " n"], reference_per_ul: Float[np.ndarray, " n"], line: str
) -> Line:
    """Fits the least-squares line of runs.

    The variances are HC3's: they hold also if high counts scatter more than low ones.

    Args:
      counted_per_ul: parasites per uL of each run, by the network.
      reference_per_ul: the same by the reference.
      line: one of `LINES`.

    Raises:
      UserError: there are fewer than 3 runs, or they do not decide a line.

    References:
      MacKinnon and White 1985, Some heteroskedasticity-consistent covariance matrix estimators with
      improved finite sample properties, J. Econometrics 29:305.
    """
    x, y = reference_per_ul, counted_per_ul
    if line == "reference":
        x, y = y, x
    if len(x) < 3:
        raise UserError(f"a line needs 3 runs or more with a reference, got {len(x)}")
    if np.ptp(x) == 0:
        raise UserError(f"all runs have the same {x[0]:g} parasites per uL: no line can be fitted")
    design = np.stack([x, np.ones_like(x)], axis=1)
    scale = np.array([np.abs(x).max(), 1.0])
    pseudo_inverse = np.linalg.pinv(design / scale) / scale[:, None]
    m, b = (pseudo_inverse @ y).tolist()
    leverage = (design * pseudo_inverse.T).sum(1)
    if leverage.max() > MAX_LEVERAGE:
        raise UserError(
            f"the run of {x[leverage.argmax()]:g} parasites per uL alone decides the line: add "
            "runs of other parasitemias"
        )
    residuals = (y - m * x - b) / (1.0 - leverage)
    covariance = (pseudo_inverse * residuals**2) @ pseudo_inverse.T
    compensated = (
        m * x + b if line == "reference" else (y - b) / m if m else np.full_like(x, np.nan)
    )
    some = reference_per_ul > 0
    ratios = compensated[some] / reference_per_ul[some]
    spread = float(ratios.std(ddof=1)) if len(ratios) > 1 else float("nan")
    return Line(m, b, float(covariance[0, 0]), float(covariance[1, 1]), spread)


def compensate(line: Line, kind: str, counted: tuple[float, float, float]) -> Interval:
    """Converts parasites per uL to the scale of the reference.

    The file has no covariance of slope and intercept, so they are taken as independent. For
    positive references the covariance is negative, so the interval is a little too wide, never too
    narrow. The scatter of single runs about the line is not included.

    Args:
      line: the line for the class confidence of the counts.
      kind: one of `LINES`.
      counted: estimate, lower and upper limit of the parasites per uL as counted.

    Raises:
      UserError: the line does not rise, so a count says nothing about the reference.
    """
    if not line.m > 0:
        raise UserError(f"compensation: the slope of the line must be above 0, got {line.m:g}")
    quantile = float(norm.ppf((1.0 + CONFIDENCE) / 2.0))
    estimate, lower, upper = counted
    below, above = (estimate - lower) ** 2, (upper - estimate) ** 2
    slope, shift = quantile**2 * line.variance_m, quantile**2 * line.variance_b
    if kind == "reference":
        value = line.m * estimate + line.b
        own = shift + slope * estimate**2
        limits = (
            value - np.sqrt(line.m**2 * below + own),
            value + np.sqrt(line.m**2 * above + own),
        )
    else:
        # Fieller: the x that solve (estimate - m x - b)^2 = distance^2 + variance of m x + b.
        value = (estimate - line.b) / line.m
        limits = (
            _fieller(estimate - line.b, line.m, below + shift, slope)[0],
            _fieller(estimate - line.b, line.m, above + shift, slope)[1],
        )
    return Interval(*(np.asarray(max(float(each), 0.0)) for each in (value, *limits)))


def _fieller(top: float, m: float, fixed: float, slope: float) -> tuple[float, float]:
    """Roots x of `(top - m x)^2 = fixed + slope x^2`; infinite if m cannot be told from 0."""
    a = m**2 - slope
    if a <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(top**2 * slope + fixed * a, 0.0))
    return (top * m - root) / a, (top * m + root) / a


def fit_lines(
    counted_per_ul: Mapping[float, Float[np.ndarray, " n"]],
    reference_per_ul: Float[np.ndarray, " n"],
    line: str,
) -> tuple[dict[float, Line], dict[float, str]]:
    """Fits the line of each class confidence.

    Args:
      counted_per_ul: for each confidence, parasites per uL of each run; NaN without a red cell.
      reference_per_ul: the reference of each run.
      line: one of `LINES`.

    Returns:
      The line of each confidence, and the reason for each confidence that has no line.
    """
    lines: dict[float, Line] = {}
    left_out: dict[float, str] = {}
    for value, counted in counted_per_ul.items():
        if np.isnan(counted).any():
            left_out[value] = "a run has no red cell at this confidence"
            continue
        try:
            fitted = fit_line(counted, reference_per_ul, line)
        except UserError as error:
            left_out[value] = str(error)
            continue
        if fitted.m > 0:
            lines[value] = fitted
        else:
            left_out[value] = f"counts do not rise with the reference (m = {fitted.m:g})"
    return lines, left_out


def describe_left_out(left_out: Mapping[float, str]) -> list[str]:
    """Returns a line of text for each reason, with the confidences that share it."""
    by_reason: dict[str, list[float]] = {}
    for value, reason in left_out.items():
        by_reason.setdefault(reason, []).append(value)
    return [
        f"no row for {len(values)} confidence(s), {min(values)} to {max(values)}: {reason}"
        for reason, values in by_reason.items()
    ]


def compensation_csv(lines: Mapping[float, Line]) -> str:
    """Returns the instrument's file as text: a row for each of the `spellings` of a confidence."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for value, line in sorted(lines.items()):
        for spelling in spellings(value):
            # repr is the shortest text that gives exactly this float when it is read.
            writer.writerow([repr(float(each)) for each in (spelling, *line)])
    return file.getvalue()


def read_line(path: Path, confidence_value: float) -> Line:
    """Reads the row of a compensation file for a class confidence, looked up by `==`.

    Columns are read by name. Other columns are ignored. `ratiometric_error` may be missing; the
    spread is NaN then.

    Raises:
      UserError: the file is no compensation file, or has no such row.
    """
    try:
        rows = csv.DictReader(io.StringIO(read_given_text(path), newline=""), strict=True)
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        required = [name for name in COLUMNS if name != OPTIONAL]
        missing = [name for name in required if names.count(name) != 1]
        if missing:
            raise ValueError(
                f"expected the columns {', '.join(required)}, each once, in its first line, "
                f"found {', '.join(names) or 'nothing'}"
            )
        table = {}
        for row in rows:
            # In the order of the fields of `Line`.
            cells = [_cell(rows.line_num, name, row[name]) for name in COLUMNS if name in names]
            table[cells[0]] = Line(*cells[1:])
    except UserError:
        raise
    except (OSError, csv.Error, ValueError) as error:
        raise UserError(f"--compensation {path}: cannot be read ({error})") from error
    if confidence_value not in table:
        nearest = sorted(table, key=lambda value: abs(value - confidence_value))[:2]
        raise UserError(
            f"--compensation {path}: no row for conf_val {confidence_value!r}; the nearest are "
            f"{nearest}. Give the confidence at which the counts were made by "
            "--min-class-confidence-threshold"
        )
    return table[confidence_value]


def _cell(line: int, column: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"line {line}: {column} is {text!r}, expected a number") from None


def read_runs(path: Path) -> list[tuple[Path, float]]:
    """Reads runs and their reference counts from a CSV file with `run,reference_per_ul`.

    Paths are relative to the file.

    Raises:
      UserError: a line is wrong; it is named.
    """
    rows = read_csv_rows(path)
    if not rows or [name.strip() for name in rows[0]] != ["run", "reference_per_ul"]:
        raise UserError(f"{path}:1: expected the line run,reference_per_ul, found {rows[:1]}")
    runs = []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            name, reference = row[0].strip(), float(row[1])
        except (IndexError, ValueError):
            name, reference = "", -1.0
        if len(row) != 2 or not name or not 0 <= reference < float("inf"):
            raise UserError(
                f"{path}:{line}: expected a .npy file and its parasites per uL, 0 or more; "
                f"found {row}"
            )
        runs.append((path.parent / name, reference))
    return runs


def write_compensation(
    runs: Path,
    *,
    model: str,
    output: Path,
    kind: str,
    heatmaps: bool,
    line: str | None,
    obj_thresh: float,
    class_names: Sequence[str] | None,
    parasite_classes: Sequence[str],
    red_cell_classes: Sequence[str],
    red_cells_per_ul: float,
) -> None:
    """Fits and writes the compensation file of the instrument: `counts compensation`.

    Raises:
      UserError: the list or a run cannot be read, or no line can be fitted at any confidence.
    """
    folder = make_folder(output / model, "--output")
    references_of = read_runs(runs)
    confidences = confidence_values()
    per_ul = []
    for path, _ in references_of:
        run = read_run_array(path, class_names)
        # Refuses an array that lacks boxes which count at some of the confidences.
        thresholds.of_array(
            thresholds.recorded_by_run(path, run.class_names),
            objectness=obj_thresh,
            min_class_confidence=min(confidences),
        )
        roles = find_roles(run.class_names, parasite_classes, red_cell_classes)
        counts = counts_by_confidence(run, objectness_threshold=obj_thresh, confidences=confidences)
        red_cells = counts[:, roles.red_cells].sum(1)
        share = np.full(len(confidences), np.nan)
        np.divide(counts[:, roles.parasites].sum(1), red_cells, out=share, where=red_cells > 0)
        per_ul.append(share * red_cells_per_ul)
    counted = dict(zip(confidences, np.stack(per_ul, axis=1), strict=True)) if per_ul else {}
    references = np.array([reference for _, reference in references_of])
    line = line or LINES[0]
    fitted, left_out = fit_lines(counted, references, line)
    left_out_lines = describe_left_out(left_out)
    if not fitted:
        raise UserError(f"{runs}: " + "; ".join(left_out_lines or ["no run in it"]))
    cleaned = "with" if heatmaps else "no"
    path = folder / f"{model}-{kind}-compensation-{cleaned}-heatmaps.csv"
    write_atomically(path, compensation_csv(fitted))
    equation = "counted = m * reference + b" if line == "counted" else "reference = m * counted + b"
    shown = [value for value in SHOWN_CONFIDENCES if value in fitted] or list(fitted)[:1]
    rows = []
    for value in shown:
        m, b, variance_m, variance_b, spread = fitted[value]
        numbers = (m, variance_m**0.5, b, variance_b**0.5, spread)
        rows.append([f"{value:g}", *map(number, numbers)])
    header = ["confidence", "m", "+-", "b", "+-", "spread of ratio"]
    title = f"{equation} (per uL), {len(references_of)} runs"
    print("\n".join([title, *align(header, rows), *left_out_lines, f"written {path}"]))
