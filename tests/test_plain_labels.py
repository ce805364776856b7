import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_labels import BAD, BOX, CATEGORIES, GOOD, NAMES, ROW
from yogo_jax.data.labels import (
    _Classes,
    _parse_plain,
    _parse_rows,
    read_label_files,
    read_labels,
)
from yogo_jax.errors import UserError


CLASSES = _Classes(NAMES, None)


def parse_plain(contents):
    return [_parse_plain(content, CLASSES) for content in contents]


def assert_same(labels, expected):
    np.testing.assert_array_equal(labels.class_ids, expected.class_ids)
    np.testing.assert_array_equal(labels.boxes_cxcywh, expected.boxes_cxcywh)
    assert labels.class_ids.dtype == np.int32
    assert labels.boxes_cxcywh.dtype == np.float32
    assert labels.problems == expected.problems


def as_bytes(content):
    return content if isinstance(content, bytes) else content.encode()


@pytest.mark.parametrize("categories", [None, CATEGORIES], ids=["index", "ids"])
def test_files_are_read_as_row_by_row(tmp_path, categories):
    paths = []
    for i, content in enumerate(c for cases in (GOOD, BAD) for c, _ in cases.values()):
        paths.append(str(tmp_path / f"{i}.txt"))
        (tmp_path / f"{i}.txt").write_bytes(as_bytes(content))
    many = read_label_files(paths, NAMES, categories, on_bad_label="skip")
    assert len(many) == len(paths)
    classes = _Classes(NAMES, categories)
    for path, labels in zip(paths, many, strict=True):
        assert_same(labels, read_labels(path, NAMES, categories, on_bad_label="skip"))
        with open(path, "rb") as file:
            assert_same(labels, _parse_rows(path, file.read(), classes, on_bad_label="skip"))


@pytest.mark.parametrize("content", [content for content, _ in BAD.values()], ids=BAD)
def test_bad_files_are_not_plain(content):
    good = as_bytes(ROW)
    before, bad, after = parse_plain([good, as_bytes(content), good])
    assert bad is None
    for labels in (before, after):
        np.testing.assert_array_equal(labels.boxes_cxcywh, [BOX])


def test_first_bad_row_is_raised(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, content in zip(paths, (ROW, f"{ROW}\n9{ROW[1:]}", "x"), strict=True):
        path.write_text(content)
    with pytest.raises(UserError, match=r"b\.txt:2: class is 9"):
        read_label_files(list(map(str, paths)), NAMES, None, on_bad_label="error")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"b\.txt: No such file"):
        read_label_files([str(tmp_path / "b.txt")], NAMES, None, on_bad_label="error")


def test_header_of_the_usual_order_is_plain():
    for head, name in (
        ("class,x,y,w,h", "comma"),
        ("class\tx\ty\tw\th", "tab"),
        ("# cls x_center y_center width height", "blank"),
    ):
        for end in ("\n", "\r\n"):
            (labels,) = parse_plain([f"{head}{end}{ROW}{end}".encode()])
            np.testing.assert_array_equal(labels.boxes_cxcywh, [BOX], err_msg=name)
    (labels,) = parse_plain([b"class x y w h"])
    assert len(labels.class_ids) == 0
    for head in ("class x y 0.5 h", "0\rclass x y w h", "", "a b c d e", "x y w h class"):
        assert parse_plain([f"{head}\n{ROW}".encode()]) == [None]


def test_unknown_policy():
    with pytest.raises(UserError, match="on_bad_label is 'ignore'"):
        read_label_files([], NAMES, None, on_bad_label="ignore")


def test_no_files():
    assert read_label_files([], NAMES, None, on_bad_label="error") == []
    (labels,) = parse_plain([b""])
    assert labels.boxes_cxcywh.shape == (0, 4)


field = st.sampled_from(
    ["0", "1", "2", "3", "-1", "1.0", "0.5", ".5", "1.", "1e-3", "1.5", "nan", "", "ring", "e", "-"]
)
separator = st.sampled_from([" ", " ", " ", ",", "\t", "\n", "\r\n", "\r", "  "])
row = st.tuples(field, *[st.sampled_from(["0.5", "1", "0.125", "1.5", "", "x", "e"])] * 4)
lines = st.lists(
    st.one_of(
        row.map(" ".join), st.just("class x y w h"), st.tuples(field, separator).map("".join)
    ),
    max_size=6,
)


@given(files=st.lists(st.tuples(lines, st.sampled_from(["\n", "\r\n", ","])), max_size=4))
def test_plain_files_agree_with_row_by_row_reading(files):
    contents = [end.join(rows).encode() for rows, end in files]
    for content, labels in zip(contents, parse_plain(contents), strict=True):
        if labels is not None:
            exact = _parse_rows("a", content, CLASSES, on_bad_label="error")
            assert_same(labels, exact)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), *[st.floats(0, 1)] * 2, *[st.floats(1e-6, 1)] * 2), min_size=1
    ),
    style=st.sampled_from(["{!r}", "{:.6f}", "{:.14f}", "{:.15f}", "{:.20f}", "{:.12e}"]),
    separator=st.sampled_from(" ,\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_usual_files_are_plain_and_exact(rows, style, separator, end, last):
    texts = [[str(row[0]), *(style.format(value) for value in row[1:])] for row in rows]
    content = end.join(separator.join(text) for text in texts) + (end if last else "")
    (labels,) = parse_plain([content.encode()])
    assert labels is not None
    np.testing.assert_array_equal(labels.class_ids, [row[0] for row in rows])
    expected = np.float32([[float(value) for value in text[1:]] for text in texts])
    np.testing.assert_array_equal(labels.boxes_cxcywh, expected)
