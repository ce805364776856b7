"""Label files: one box a row, `class x_center y_center width height`, every value checked here.

A file is read in one pass if all its rows are plain numbers, else row by row: then a first row may
be a header, a class may be a name, and a bad row is named or left out.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from yogo_jax.errors import UserError
from yogo_jax.files import read_given_text


LABEL_SUFFIXES = (".txt", ".csv")
ON_BAD_LABEL = ("error", "skip")
# `0, 0.5` and `0 \t 0.5` have one separator between two fields; `0,,0.5` has an empty field.
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,9}\s*")
_NOTES = 'expected {"categories": [{"id": 1, "name": "ring"}, ...]}'
_LINE_END = re.compile(r"\r\n|\r|\n")
_NUMERIC = b"0123456789.+-eE"
_TO_BLANKS = bytes.maketrans(b",\t", b"  ")
CENTRE = ("x_center", "y_center", "width", "height")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
# How a name may be spelled, in lower case, without blanks and signs between its letters.
_CLASS_NAMES = {
    *("class", "classid", "classindex", "classname", "classlabel", "cls", "clsid"),
    *("label", "labelid", "labelname", "category", "categoryid", "categoryname"),
}
_FORMS = (
    {
        "x_center": {"x", "xc", "cx", "xcenter", "xcentre", "centerx", "centrex"},
        "y_center": {"y", "yc", "cy", "ycenter", "ycentre", "centery", "centrey"},
        "width": {"w", "width", "boxwidth", "bboxwidth"},
        "height": {"h", "height", "boxheight", "bboxheight"},
    },
    {
        "xmin": {"xmin", "minx", "x1", "left", "xtl", "tlx"},
        "ymin": {"ymin", "miny", "y1", "top", "ytl", "tly"},
        "xmax": {"xmax", "maxx", "x2", "right", "xbr", "brx"},
        "ymax": {"ymax", "maxy", "y2", "bottom", "ybr", "bry"},
    },
    {"xmin": {"x0"}, "ymin": {"y0"}, "xmax": {"x1"}, "ymax": {"y1"}},
)
# Of each form, the column that a name stands for.
_COLUMN_OF = [
    {name: column for column, names in form.items() for name in names}
    | dict.fromkeys(_CLASS_NAMES, "class")
    for form in _FORMS
]
_KNOWN_NAMES = _CLASS_NAMES.union(*_COLUMN_OF)
_MOST_WORDS = 3
_SIGNS = re.compile(r"[\W_]+")


@dataclass(frozen=True, eq=False)
class Labels:
    """The boxes of one file, in its order; `problems` are the messages of rows left out."""

    class_ids: Int32[np.ndarray, " n"]
    boxes_cxcywh: Float32[np.ndarray, "n 4"]
    problems: tuple[str, ...] = ()


class Columns(NamedTuple):
    """The meaning of the five columns of a label file.

    Attributes:
      names: `class` and four of CENTRE or of CORNERS, in the order of the file.
      class_at: the index of the class among them.
      order: of the four numbers of a row, in the order of CENTRE or CORNERS, the index among them.
      corners: whether the numbers are corners.
    """

    names: tuple[str, ...]
    class_at: int
    order: tuple[int, ...]
    corners: bool

    def __str__(self) -> str:
        return " ".join(self.names)


# Of files without a header, and of most that have one.
STANDARD = Columns(("class", *CENTRE), 0, (0, 1, 2, 3), False)


class _BadRowError(ValueError):
    """A bad row: what is wrong with it, what was expected, and the fix."""


class _Classes:
    """Classes by the first field of a row: `index_of` a number, `by_name` of a name."""

    def __init__(self, names: tuple[str, ...], categories: Mapping[int, str] | None) -> None:
        self.names = names = tuple(unicodedata.normalize("NFC", name) for name in names)
        self.categories = categories
        # Keys are compared with floats: 3.0 finds 3, and 3.5 finds nothing.
        self.index_of: dict[float, int] = dict(enumerate(range(len(names))))
        if categories is not None:
            index = {name: i for i, name in enumerate(names)}
            self.index_of = {n: index[name] for n, name in categories.items() if name in index}

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Index by name, as the name looks after its row has been split into fields."""
        return {" ".join(_SEPARATOR.split(name.strip())): i for i, name in enumerate(self.names)}

    def problem(self, label: str, number: float | None) -> str:
        """The message on a label that is no class."""
        names = ", ".join(self.names)
        if number is None:
            near = get_close_matches(label, self.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "correct it, or add it to class_names"
            return f"class is {label!r}; expected one of {names}; {hint}"
        if self.categories is None:
            expected = f"expected 0 to {len(self.names) - 1} ({names})"
            return f"class is {label}; {expected}; correct it, or complete class_names"
        if number in self.categories:
            found = f"class is {label}, which is {self.categories[int(number)]!r} in notes.json"
            return f"{found}; expected one of {names}; correct notes.json or class_names"
        ids = ", ".join(str(known) for known in self.categories)
        return f"class is {label}; expected an id of notes.json: {ids}; correct it or notes.json"


def read_label_files(
    paths: Sequence[Path | str],
    class_names: tuple[str, ...],
    categories: Mapping[int, str] | None,
    *,
    on_bad_label: str,
) -> list[Labels]:
    """The boxes of each label file, relative to image width and height.

    Fields are separated by blanks, tabs or commas, line by line. A first row without any number is
    a header: columns are then read by name, in any order, and corners become centres and sizes. The
    class is a name, or a number: an index into `class_names`, or with `categories` one of its ids.
    Centres, corners and sizes lie in [0, 1], sizes above 0; a box may overhang the edge of the
    image.

    Args:
      paths: of the files; an empty one has no boxes.
      class_names: names of the classes, in order of their index.
      categories: id -> name, as `read_categories` returns it.
      on_bad_label: "error" to raise at the first bad row, "skip" to leave bad rows out and return
        their messages as `problems`.

    Raises:
      UserError: `file:line: …` at a bad row or an unknown header, or if the file is no text.
    """
    if on_bad_label not in ON_BAD_LABEL:
        raise UserError(
            f"data.on_bad_label is {on_bad_label!r}; expected one of {', '.join(ON_BAD_LABEL)}"
        )
    classes = _Classes(class_names, categories)
    labels = []
    for path in paths:
        data = _read_bytes(path)
        found = _parse_plain(data, classes)
        if found is None:
            found = _parse_rows(path, data, classes, on_bad_label=on_bad_label)
        labels.append(found)
    return labels


def label_lines(
    path: Path | str, class_names: tuple[str, ...], categories: Mapping[int, str] | None
) -> list[int]:
    """Line numbers, from 1, of the boxes that `read_label_files` finds in a file, in their order.

    Raises:
      UserError: as `read_label_files` with on_bad_label="skip".
    """
    rows = _parsed_rows(path, _read_bytes(path), _Classes(class_names, categories))
    return [line for line, row in rows if not isinstance(row, _BadRowError)]


def numbers_of_rows(path: Path | str) -> list[list[float]]:
    """Class and four numbers of each row that has them, good or bad, as the file has them.

    Numbers are in the order of `x_center y_center width height`, or of the corners of a header; the
    class is NaN if it is a name.

    Raises:
      UserError: the file is no text, or has an unknown header.
    """
    found = []
    for _, fields, columns in _rows_with_columns(path, _read_bytes(path)):
        if len(fields) >= 5:
            label, texts = _split_fields(fields, columns)
            numbers = [math.nan if (n := _number(text)) is None else n for text in (label, *texts)]
            if all(map(math.isfinite, numbers[1:])):
                found.append(numbers)
    return found


def read_categories(label_folder: Path | str) -> dict[int, str] | None:
    """Class id -> name from `notes.json` beside a label folder; None if there is no such file.

    The file holds `{"categories": [{"id": 1, "name": "ring"}, …]}`; an id may also be text.

    Raises:
      UserError: if the file is not of that form, or an id stands twice.
    """
    path = Path(label_folder).parent / "notes.json"
    if not path.exists():
        return None
    try:
        notes = json.loads(read_given_text(path))
        rows = [(row["id"], row["name"]) for row in notes["categories"]]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a readable file") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: {_NOTES}; found {found}; mend or remove the file") from None
    categories: dict[int, str] = {}
    for number, name in rows:
        is_id = type(number) is int or (isinstance(number, str) and _INTEGER.fullmatch(number))
        if not is_id or not isinstance(name, str):
            raise UserError(f"{path}: {_NOTES}; found id {number!r}, name {name!r}; mend them")
        if int(number) in categories:
            raise UserError(f"{path}: id {number} stands twice; expected unique ids; mend one")
        categories[int(number)] = unicodedata.normalize("NFC", name)
    return categories


def _read_bytes(path: Path | str) -> bytes:
    """The content of a label file."""
    try:
        # Unbuffered: opening is most of the time of reading small files.
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a label file") from None


def _parse_plain(data: bytes, classes: _Classes) -> Labels | None:
    """The labels of a file in plain form; None for any other, which may be good or bad.

    Plain is a file of five numbers a row with one separator between two, after no header or one in
    the usual order, and without a bad row. Most files are plain; this takes a quarter of the time.
    """
    rows = _plain_rows(data)
    if rows is None:
        return None
    fields = rows.split()
    if len(fields) != 5 * rows.count(b"\n"):
        return None
    try:
        numbers = np.fromiter(map(float, fields), np.float64, len(fields)).reshape(-1, 5)
    except ValueError:
        return None
    class_ids = [classes.index_of.get(number, -1) for number in numbers[:, 0].tolist()]
    boxes = numbers[:, 1:]
    if -1 in class_ids or boxes.min(initial=0) < 0 or boxes.max(initial=0) > 1:
        return None
    boxes_cxcywh = boxes.astype(np.float32)
    if boxes_cxcywh[:, 2:].min(initial=1) <= 0:
        return None
    return Labels(np.array(class_ids, np.int32), boxes_cxcywh)


def _plain_rows(data: bytes) -> bytes | None:
    """The rows with a blank between two of five fields (maybe empty ones), each with a line end."""
    if data and data[-1:] != b"\n":
        data += b"\n"
    text = data.replace(b"\r\n", b"\n").translate(_TO_BLANKS)
    if _has_five_fields(text):
        return text
    head, _, rows = text.partition(b"\n")
    if b"\r" in head or not head.isascii() or not _is_usual_header(head):
        return None
    return rows if _has_five_fields(rows) else None


@lru_cache
def _is_usual_header(row: bytes) -> bool:
    # An unknown header is refused where its file is known.
    with suppress(UserError):
        return _columns_of(_split_row(row.decode())) == STANDARD
    return False


def _has_five_fields(text: bytes) -> bool:
    skeleton = text.translate(None, _NUMERIC)
    return skeleton == b"    \n" * skeleton.count(b"\n")


def _parse_rows(path: Path | str, data: bytes, classes: _Classes, *, on_bad_label: str) -> Labels:
    """The labels of a file of any form, row by row."""
    class_ids, boxes, problems = [], [], []
    for line, row in _parsed_rows(path, data, classes):
        if isinstance(row, _BadRowError):
            message = f"{path}:{line}: {row}"
            if on_bad_label == "error":
                hint = "--config.data.on_bad_label=skip skips and counts such rows"
                raise UserError(f"{message} ({hint})") from None
            problems.append(message)
        else:
            class_ids.append(row[0])
            boxes.append(row[1])
    return Labels(
        np.array(class_ids, np.int32),
        np.array(boxes, np.float32).reshape(-1, 4),
        tuple(problems),
    )


def _parsed_rows(
    path: Path | str, data: bytes, classes: _Classes
) -> Iterator[tuple[int, tuple[int, list[float]] | _BadRowError]]:
    """Line number of each row, with its class index and box or what is wrong with it."""
    for line, fields, columns in _rows_with_columns(path, data):
        try:
            yield line, _parse_row(fields, columns, classes)
        except _BadRowError as error:
            yield line, error


def _rows_with_columns(path: Path | str, data: bytes) -> Iterator[tuple[int, list[str], Columns]]:
    """Line number and fields of each row, without blank lines and the header, and their columns."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x})"
        fix = "save as UTF-8 text"
        raise UserError(f"{path}: {found}; expected rows `{STANDARD}`; {fix}") from None
    columns = None
    for line, row in enumerate(_LINE_END.split(text), start=1):
        if not row.strip():
            continue
        fields = _split_row(row)
        if columns is None:
            try:
                columns = _columns_of(fields)
            except UserError as error:
                raise UserError(f"{path}:{line}: {error}") from None
            if columns is not None:
                continue
            columns = STANDARD
        yield line, fields, columns


def _split_row(row: str) -> list[str]:
    """The fields of a row: a class of one field or more, and four numbers."""
    return [field.strip('"') for field in _SEPARATOR.split(row.strip())]


def _number(text: str) -> float | None:
    """The number in plain notation that `text` is, or None; Python also takes 1_000 and others."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _parse_row(fields: list[str], columns: Columns, classes: _Classes) -> tuple[int, list[float]]:
    """Class index and box (cx, cy, w, h) of one row."""
    label, texts = _split_fields(fields, columns) if len(fields) >= 5 else ("", [])
    if len(fields) < 5 or (len(fields) > 5 and label not in classes.by_name):
        row = " ".join(fields)
        row = f"{row[:60]}..." if len(row) > 60 else row
        expected = f"expected 5: {columns}; complete or remove the row"
        raise _BadRowError(f"found {len(fields)} columns ({row}); {expected}")
    number = _number(label)
    class_id = classes.by_name.get(label) if number is None else classes.index_of.get(number)
    if class_id is None:
        raise _BadRowError(classes.problem(label, number))
    names = CORNERS if columns.corners else CENTRE
    values = [_coordinate(*pair) for pair in zip(names, texts, strict=True)]
    return class_id, _centre_and_size(values) if columns.corners else values


def _split_fields(fields: list[str], columns: Columns) -> tuple[str, list[str]]:
    """The class of a row, and its four numbers in the order of CENTRE or of CORNERS."""
    # A class name may be of several words: numbers are counted from both ends.
    end = len(fields) - 4 + columns.class_at
    texts = [*fields[: columns.class_at], *fields[end:]]
    label = unicodedata.normalize("NFC", " ".join(fields[columns.class_at : end]))
    return label, [texts[i] for i in columns.order]


def _coordinate(column: str, text: str) -> float:
    value = _number(text)
    expected = "expected a fraction of the image's size in [0, 1]"
    if value is None or value != value:
        raise _BadRowError(f"{column} is {text!r}; {expected}; write a number or remove the row")
    if not 0 <= value <= 1:
        fix = "divide pixels by the image's size, or remove the row"
        raise _BadRowError(f"{column} is {text}; {expected}; {fix}")
    if column in ("width", "height") and not np.float32(value) > 0:
        raise _BadRowError(f"{column} is {text}; expected more than 0; remove the row")
    return value


def _centre_and_size(corners: list[float]) -> list[float]:
    x1, y1, x2, y2 = corners
    for low, high, axis in ((x1, x2, "x"), (y1, y2, "y")):
        if not np.float32(high - low) > 0:
            found = f"{axis}min is {low:g} and {axis}max is {high:g}"
            raise _BadRowError(f"{found}; expected {axis}max above {axis}min; remove the row")
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def _columns_of(fields: list[str]) -> Columns | None:
    """The columns that the first row of a file names; None if it is no header but a box.

    A first row of two fields or more without any number is a header. A name of several words may be
    several fields. An error names no file, as it does not know it.
    """
    if len(fields) < 2 or any(_number(field) is not None for field in fields):
        return None
    return _columns_named(tuple(fields))


@lru_cache
def _columns_named(fields: tuple[str, ...]) -> Columns:
    names = _joined(fields)
    for form, column_of in zip(_FORMS, _COLUMN_OF, strict=True):
        columns = tuple(column_of.get(name, "") for name in names)
        if len(set(names)) == 5 and sorted(columns) == sorted(("class", *form)):
            numbers = [column for column in columns if column != "class"]
            order = tuple(numbers.index(column) for column in form)
            return Columns(columns, columns.index("class"), order, "xmin" in form)
    raise UserError(
        f"the header names the columns {' '.join(fields)}; expected, in any order, class "
        f"{' '.join(CENTRE)} or class {' '.join(CORNERS)}, all fractions of the image's size; "
        "rename the columns, or remove those that are not read"
    )


def _joined(fields: tuple[str, ...]) -> list[str]:
    """Names in lower case without signs; fields that are words of one known name are one."""
    # A sign alone, such as # before a header, is no name.
    words = [word for field in fields if (word := _SIGNS.sub("", field.lower()))]
    names: list[str] = []
    start = 0
    while start < len(words):
        ends = range(min(start + _MOST_WORDS, len(words)), start, -1)
        joins = (end for end in ends if "".join(words[start:end]) in _KNOWN_NAMES)
        end = next(joins, start + 1)
        names.append("".join(words[start:end]))
        start = end
    return names
