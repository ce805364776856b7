"""Reads counts from files: the instrument's array of a run, and tables of `infer --count`."""

import csv
import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.counting.thresholds import recorded_by_run
from yogo_jax.detector.detections import decide
from yogo_jax.errors import UserError
from yogo_jax.files import read_given_text, read_json
from yogo_jax.metrics.confusion import name_beside


# The instrument's classes, in its order.
INSTRUMENT_CLASSES = (
    "healthy",
    "ring",
    "trophozoite",
    "schizont",
    "gametocyte",
    "wbc",
    "misc",
)
# Names of a row below a table that holds sums and is no frame.
NAMES_OF_SUMS = {
    *("total", "totals", "sum", "sums", "all", "overall", "grand total", "subtotal"),
    *("mean", "average", "median", "std"),
}
# The instrument's array has so many rows before the class probabilities. Two of them are read here.
ARRAY_HEAD = 8
IMAGE_ROW, OBJECTNESS_ROW = 0, 5


class Sample(NamedTuple):
    """Boxes of each class in a run, float [k]; `frames` is None if the file does not give it."""

    class_names: tuple[str, ...]
    counts: Float[np.ndarray, " k"]
    frames: int | None
    note: str = ""


class RunArray(NamedTuple):
    """The instrument's `15 x N` array of a run, and the class thresholds recorded beside it."""

    class_names: tuple[str, ...]
    array: Float[np.ndarray, "rows n"]
    class_thresholds: tuple[float, ...] = ()

    @property
    def class_probs(self) -> Float[np.ndarray, "k n"]:
        """Probability of each class of each box."""
        return self.array[ARRAY_HEAD:]

    @property
    def class_ids(self) -> Int[np.ndarray, " n"]:
        """The class of each box, decided from its probabilities as `Thresholds` says."""
        objectness, probs = np.asarray(self.array[OBJECTNESS_ROW]), np.asarray(self.class_probs)
        return decide(objectness, probs.T, self.class_thresholds)


def read_run_array(
    path: Path, class_names: Sequence[str] | None, *, expected: Sequence[str] | None = None
) -> RunArray:
    """Reads a run's array.

    Args:
      path: a `.npy` file.
      class_names: names of its last rows, in order; None takes those in `RUN.json` beside it, and
        without such names the expected ones.
      expected: class names of the validation; None expects the instrument's.

    Raises:
      UserError: the file is no such array, the number of names is not the number of classes, or
        the file beside it has thresholds that are none.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a .npy array ({error})") from error
    if array.ndim != 2 or array.shape[0] <= ARRAY_HEAD or array.dtype.kind != "f":
        raise UserError(
            f"{path}: expected floats [{ARRAY_HEAD} + classes, boxes] as `infer --save-npy` writes "
            f"them, found {array.dtype} {list(array.shape)}"
        )
    classes = array.shape[0] - ARRAY_HEAD
    names = tuple(class_names or _recorded_names(path) or expected or INSTRUMENT_CLASSES)
    if len(names) != classes:
        raise UserError(
            f"{path}: {classes} classes, but {len(names)} names ({', '.join(names)}): give all of "
            "them in order by --class-names"
        )
    _check_probabilities(path, array)
    # By place: names may be given for others that are recorded.
    recorded = recorded_by_run(path, names).at.class_thresholds or {}
    return RunArray(names, array, tuple(recorded.values()))


def count_run(run: RunArray, *, objectness_threshold: float, min_class_confidence: float) -> Sample:
    """Counts the boxes of a run by their classes; without class thresholds as the instrument does.

    A box counts if its objectness is above the first threshold and the probability of its class is
    at or above the second.
    """
    class_ids = run.class_ids
    confidences = np.asarray(run.class_probs)[class_ids, np.arange(len(class_ids))]
    kept = (run.array[OBJECTNESS_ROW] > objectness_threshold) & (
        confidences >= min_class_confidence
    )
    counts = np.bincount(class_ids[kept], minlength=len(run.class_names))
    frames = len(np.unique(run.array[IMAGE_ROW]))
    note = f"{kept.sum()} of {run.array.shape[1]} boxes kept by the thresholds"
    return Sample(run.class_names, counts.astype(np.float64), frames or None, note)


def counts_by_confidence(
    run: RunArray, *, objectness_threshold: float, confidences: Sequence[float]
) -> Float[np.ndarray, "n k"]:
    """Returns the counts of `count_run` at many class confidences, in one pass."""
    kept = run.array[OBJECTNESS_ROW] > objectness_threshold
    probs, called = np.asarray(run.class_probs)[:, kept], run.class_ids[kept]
    best = probs[called, np.arange(len(called))]
    # As float32 as the probabilities, which is how `count_run` compares.
    limits = np.asarray(confidences, probs.dtype)
    columns = [np.sort(best[called == index]) for index in range(len(run.class_names))]
    counts = [len(column) - np.searchsorted(column, limits, side="left") for column in columns]
    return np.stack(counts, axis=1).astype(np.float64)


def read_counts(path: Path) -> Sample:
    """Reads counts of classes from a JSON or CSV file.

    JSON: `total` (or `by_class`) maps class names to counts; `frames` is the number of frames, if
    it is known. CSV: a row for each frame, a column for each class. The columns `image_id`, `image`
    and `total` are left out. Rows without counts are left out: these frames could not be read. A
    row of totals is left out, and the note of the sample says so.

    Raises:
      UserError: the file is neither, a value is no count, or a row may be no frame.
    """
    return _read_csv(path) if path.suffix.lower() == ".csv" else _read_counts_json(path)


def reordered(sample: Sample, class_names: Sequence[str]) -> Sample:
    """Returns the sample with its classes in another order.

    Raises:
      UserError: the two have different classes.
    """
    if sorted(class_names) != sorted(sample.class_names):
        raise UserError(
            f"the counts are of the classes {', '.join(sample.class_names)}, the validation of "
            f"{', '.join(class_names)}: use a validation of the network that counted"
        )
    order = [sample.class_names.index(name) for name in class_names]
    return sample._replace(class_names=tuple(class_names), counts=sample.counts[order])


def _read_counts_json(path: Path) -> Sample:
    values = read_json(path)
    values = values if isinstance(values, dict) else {}
    found = next(
        (values[key] for key in ("total", "by_class") if isinstance(values.get(key), dict)), None
    )
    if not found:
        raise UserError(
            f'{path}: expected {{"total": {{"healthy": 123, ...}}}} as `infer --count` writes it, '
            f"found the fields {list(values)}"
        )
    found = {unicodedata.normalize("NFC", name): count for name, count in found.items()}
    names = values.get("class_names") or list(found)
    if isinstance(names, list):
        names = [unicodedata.normalize("NFC", str(name)) for name in names]
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(found):
        raise UserError(f"{path}: class_names are {names}, but the counts are of {list(found)}")
    counts = [_count(path, f"count of {name}", found[name]) for name in names]
    frames = values.get("frames")
    if frames is not None:
        frames = int(_count(path, "frames", frames))
    skipped = int(_count(path, "skipped", values.get("skipped", 0)))
    note = f"{skipped} frame(s) without counts left out" if skipped else ""
    return Sample(tuple(names), np.asarray(counts), frames or None, note)


def read_csv_rows(path: Path) -> list[list[str]]:
    """Returns the fields of each line of a CSV file.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return list(csv.reader(io.StringIO(read_given_text(path), newline="")))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error


def _read_csv(path: Path) -> Sample:
    rows = read_csv_rows(path)
    header = [unicodedata.normalize("NFC", name.strip()) for name in rows[0]] if rows else []
    columns = _class_columns(header)
    named = [header[i] for i in columns]
    if len(set(named)) < len(named):
        raise UserError(f"{path}: two columns have one name ({', '.join(named)}): name each class")
    if not columns or len(rows) < 2:
        raise UserError(
            f"{path}: expected a first line with column names, classes among them, and a row for "
            f"each frame; found {len(rows)} line(s)"
        )
    counts, frames, notes = np.zeros(len(columns)), 0, []
    lines = _counts_of_lines(path, header, columns, rows)
    skipped = len(rows) - 1 - len(lines)
    frame = _FrameNames.of(header, columns, [rows[line - 1] for line in lines])
    last = max(lines, default=0)
    for line, of_line in lines.items():
        doubt = frame.doubt(rows[line - 1])
        is_sum = frames > 0 and bool((of_line == counts).all())
        if doubt and is_sum:
            notes.append(f"line {line} {doubt} and holds the sums of the lines above: left out")
            continue
        if doubt:
            raise UserError(
                f"{path}:{line}: {doubt}, but does not hold the sums of the lines above; expected "
                "a frame: remove the line, or name its frame as the other lines do"
            )
        if line == last and is_sum and frames > 1 and counts.any() and frame.id_column is None:
            raise UserError(
                f"{path}:{line}: holds the sums of the lines above; expected a frame: remove the "
                "line, or, if it is a frame, add a column image_id with the number of each frame"
            )
        counts += of_line
        frames += 1
    if skipped:
        notes.append(f"{skipped} frame(s) without counts left out")
    return Sample(tuple(named), counts, frames or None, "; ".join(notes))


def _counts_of_lines(
    path: Path, header: Sequence[str], columns: Sequence[int], rows: Sequence[Sequence[str]]
) -> dict[int, Float[np.ndarray, " k"]]:
    """Counts by line number; lines without counts are left out."""
    counts = {}
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise UserError(f"{path}:{line}: expected {len(header)} fields, found {len(row)}")
        if any(row[i].strip() for i in columns):
            cells = [_count(path, f"line {line}, {header[i]}", row[i]) for i in columns]
            counts[line] = np.array(cells)
    return counts


class _FrameNames(NamedTuple):
    """Columns in which a table names its frames: those that its first frame fills."""

    id_column: int | None
    name_columns: tuple[int, ...]

    @classmethod
    def of(
        cls, header: Sequence[str], columns: Sequence[int], frames: Sequence[Sequence[str]]
    ) -> "_FrameNames":
        """Finds these columns, given the columns of classes and the rows with counts."""
        first = frames[0] if frames else ()
        # `image*` stands in a table that has a class called `image`.
        names = [i for i, name in enumerate(header) if name.rstrip("*") in ("image_id", "image")]
        filled = [i for i in names if i not in columns and first and first[i].strip()]
        numbered = [i for i in filled if header[i].startswith("image_id") and _is_id(first[i])]
        number = numbered[0] if numbered else None
        return cls(number, tuple(i for i in filled if i != number))

    def doubt(self, row: Sequence[str]) -> str | None:
        """Says why a row may be no frame; None if it is named as the first frame is."""
        number = None if self.id_column is None else row[self.id_column].strip()
        names = [row[i].strip() for i in self.name_columns]
        if number is None or not _is_id(number):
            for text in filter(None, (number, *names)):
                if text.rstrip(":").casefold() in NAMES_OF_SUMS:
                    return f"is called {text!r}"
        if number == "" or not all(names):
            return "has no frame name"
        if number is not None and not _is_id(number):
            return f"is called {number!r}"
        return None


def _is_id(text: str) -> bool:
    return text.strip().isdecimal()


def _class_columns(header: Sequence[str]) -> list[int]:
    """Indices of the columns that hold counts of classes."""
    if list(header) == counts_header(header[2:-1]):
        return [*range(2, len(header) - 1)]
    return [i for i, name in enumerate(header) if name not in ("image_id", "image", "total")]


def _count(path: Path, what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not (number >= 0 and number.is_integer()):
        raise UserError(f"{path}: {what} must be a whole number, 0 or more, found {value!r}")
    return number


def _recorded_names(path: Path) -> list[str] | None:
    """Class names in the JSON file beside an array; None without that file, or without names."""
    sidecar = path.with_suffix(".json")
    values = read_json(sidecar) if sidecar.is_file() else None
    names = values.get("class_names") if isinstance(values, dict) else None
    if not names or not all(isinstance(name, str) for name in names):
        return None
    return [unicodedata.normalize("NFC", name) for name in names]


def _check_probabilities(path: Path, array: np.ndarray) -> None:
    """Refuses an array of another layout: its probabilities are not in [0, 1]."""
    read = array[[OBJECTNESS_ROW, *range(ARRAY_HEAD, array.shape[0])]]
    # The comparison is written so that NaN fails it.
    if read.size and not (read.min() >= 0.0 and read.max() <= 1.001):
        raise UserError(
            f"{path}: row {OBJECTNESS_ROW} (objectness) and rows {ARRAY_HEAD} on (class "
            f"probabilities) must be in [0, 1], found {read.min()} to {read.max()}"
        )


def counts_header(class_names: Sequence[str]) -> list[str]:
    """Column names of a counts table: two for the frame, one for each class, and their total."""
    image_id, image, total = (
        name_beside(class_names, name) for name in ("image_id", "image", "total")
    )
    return [image_id, image, *class_names, total]
