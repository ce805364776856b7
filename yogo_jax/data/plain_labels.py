"""Many label files at once: those in plain form are parsed together, by array operations."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from yogo_jax.data.labels import (
    STANDARD,
    Classes,
    Labels,
    check_policy,
    columns_of,
    parse_labels,
    read_bytes,
    split_row,
)
from yogo_jax.errors import UserError


FILES_AT_ONCE = 500
NUMERIC = b"0123456789.+-eE"
TO_BLANKS = bytes.maketrans(b",\t", b"  ")
# Numbers this long, such as 0.12345678901234, have digits that are an exact integer in float64.
MAX_LENGTH = 16
POINT = (ord(".") - ord("0")) % 256


def read_label_files(
    paths: Sequence[str],
    class_names: tuple[str, ...],
    categories: Mapping[int, str] | None,
    *,
    on_bad_label: str,
) -> list[Labels]:
    """`read_labels` of each path: the same results and errors, several times faster."""
    check_policy(on_bad_label)
    classes = Classes(class_names, categories)
    labels = []
    for start in range(0, len(paths), FILES_AT_ONCE):
        some = paths[start : start + FILES_AT_ONCE]
        contents = [read_bytes(path) for path in some]
        parsed = parse_plain(contents, classes.index_of)
        for path, content, found in zip(some, contents, parsed, strict=True):
            if found is None:
                found = parse_labels(path, content, classes, on_bad_label=on_bad_label)
            labels.append(found)
    return labels


def parse_plain(contents: Sequence[bytes], index_of: Mapping[float, int]) -> list[Labels | None]:
    """The labels of files in plain form; None for each other file, which may be good or bad.

    Plain is a file that has just one separator between two fields, after no header or one of the
    usual order, whose classes are numbers, and which has no bad row.

    Args:
      contents: the files.
      index_of: class number -> class index.
    """
    plain = [_as_plain(content) for content in contents]
    data = np.frombuffer(b"".join(text for text in plain if text is not None), np.uint8)
    ends = np.flatnonzero((data == ord(" ")) | (data == ord("\n")))
    starts = np.concatenate([[0], ends + 1])[:-1]
    classes, *columns = _numbers(data, starts, ends).reshape(-1, 5).T

    numbers, which = np.unique(classes, return_inverse=True)
    class_ids = np.array([index_of.get(number, -1) for number in numbers.tolist()], np.int32)[which]
    boxes = np.column_stack(columns).astype(np.float32)
    good = (class_ids >= 0) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    for column in columns:
        good &= (column >= 0) & (column <= 1)

    labels: list[Labels | None] = []
    good_before = np.concatenate([[0], np.cumsum(good)]).tolist()
    row = 0
    for text in plain:
        first, row = row, row + (text.count(b"\n") if text is not None else 0)
        if text is None or good_before[row] - good_before[first] < row - first:
            labels.append(None)
        else:
            labels.append(Labels(class_ids[first:row], boxes[first:row]))
    return labels


def _as_plain(content: bytes) -> bytes | None:
    """The rows with blanks between five fields (maybe empty ones), each row ended by a newline."""
    if content and content[-1:] != b"\n":
        content += b"\n"
    text = content.replace(b"\r\n", b"\n").translate(TO_BLANKS)
    if _has_five_fields(text):
        return text
    head, _, rows = text.partition(b"\n")
    if b"\r" in head or not head.isascii() or not _is_usual_header(head):
        return None
    return rows if _has_five_fields(rows) else None


@lru_cache
def _is_usual_header(row: bytes) -> bool:
    """Whether a row is a header of the usual order."""
    # An unknown header is refused where its file is known.
    with suppress(UserError):
        return columns_of(split_row(row.decode())) == STANDARD
    return False


def _has_five_fields(text: bytes) -> bool:
    skeleton = text.translate(None, NUMERIC)
    return skeleton == b"    \n" * skeleton.count(b"\n")


def _numbers(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int64[np.ndarray, " n"],
    ends: Int64[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    """The numbers in `data[start:end]`, rounded as `float` does; NaN for what is no number."""
    values = np.full(len(starts), np.nan)
    other = np.ones(len(starts), bool)
    lengths = ends - starts
    for length in range(1, MAX_LENGTH + 1):
        tokens = np.flatnonzero(lengths == length)
        if not tokens.size:
            continue
        # Characters of all tokens of one length, the first of each in row 0, and so on.
        table = sliding_window_view(data, length)[starts[tokens]].T.copy()
        simple = np.ones(len(tokens), bool)
        mantissa = np.zeros(len(tokens))
        for place, digits in enumerate(table - np.uint8(ord("0"))):
            if place == 1:
                simple &= digits == POINT
            else:
                simple &= digits <= 9
                mantissa = mantissa * 10 + digits
        # Integers and powers of ten are exact, so this rounds once, as `float` does.
        values[tokens[simple]] = mantissa[simple] / 10 ** max(length - 2, 0)
        other[tokens[simple]] = False
    for i in np.flatnonzero(other):
        with suppress(ValueError):
            values[i] = float(data[starts[i] : ends[i]].tobytes())
    return values
