"""The compensation file that the instrument's count corrector reads, and the runs it is made of."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from yogo_jax.errors import UserError
from yogo_jax.evaluation.counting.compensation import Line, spellings
from yogo_jax.given import read_given_text


COLUMNS = ("conf_val", "fit_m", "fit_b", "cov_m", "cov_b", "ratiometric_error")
# Published files have no such column, and others that are not read here.
OPTIONAL = "ratiometric_error"


def compensation_csv(lines: Mapping[float, Line]) -> str:
    """The file of the instrument: a row for each spelling of each confidence."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for value, line in sorted(lines.items()):
        for spelling in spellings(value):
            # repr: the shortest text that is read as just this float.
            writer.writerow([repr(float(number)) for number in (spelling, *line)])
    return file.getvalue()


def read_line(path: Path, confidence_value: float) -> Line:
    """The row of a compensation file for a class confidence, looked up by `==`.

    Columns are read by name: `ratiometric_error` may be missing, the spread is NaN then, and others
    may stand beside.

    Raises:
      UserError: it is no such file, or has no such row.
    """
    try:
        rows = csv.DictReader(io.StringIO(read_given_text(path), newline=""), strict=True)
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        required = [name for name in COLUMNS if name != OPTIONAL]
        missing = [name for name in required if names.count(name) != 1]
        if missing:
            raise ValueError(
                f"expected one column of each of {', '.join(required)} in its first line, "
                f"found {', '.join(names) or 'nothing'}"
            )
        table = {}
        for row in rows:
            value, m, b, variance_m, variance_b = (
                _number(rows.line_num, name, row[name]) for name in required
            )
            spread = math.nan
            if OPTIONAL in names:
                spread = _number(rows.line_num, OPTIONAL, row[OPTIONAL])
            table[value] = Line(m, b, variance_m, variance_b, spread)
    except UserError:
        raise
    except (OSError, csv.Error, ValueError) as error:
        raise UserError(f"--compensation {path}: cannot be read ({error})") from error
    if confidence_value not in table:
        nearest = sorted(table, key=lambda value: abs(value - confidence_value))[:2]
        raise UserError(
            f"--compensation {path}: no row for conf_val {confidence_value!r}; the nearest are "
            f"{nearest}. Give the one that the counts were made at by "
            "--min-class-confidence-threshold"
        )
    return table[confidence_value]


def _number(line: int, column: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"line {line}: {column} is {text!r}, expected a number") from None


def read_runs(path: Path) -> list[tuple[Path, float]]:
    """Runs with a reference count, from a CSV with the columns `run,reference_per_ul`.

    Paths are relative to the file.

    Raises:
      UserError: naming the line and what is wrong with it.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_given_text(path), newline="")))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows or [name.strip() for name in rows[0]] != ["run", "reference_per_ul"]:
        raise UserError(f"{path}:1: expected the line run,reference_per_ul, found {rows[:1]}")
    runs = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            name, reference = row[0].strip(), float(row[1])
        except (IndexError, ValueError):
            name, reference = "", -1.0
        if len(row) != 2 or not name or not 0 <= reference < float("inf"):
            raise UserError(
                f"{path}:{number}: expected a .npy file and its parasites per uL, 0 or more; "
                f"found {row}"
            )
        runs.append((path.parent / name, reference))
    return runs
