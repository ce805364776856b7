import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yogo_jax.data.labels import (
    _Classes,
    _parse_plain,
    _parse_rows,
    label_lines,
    numbers_of_rows,
    read_categories,
    read_label_files,
)
from yogo_jax.errors import UserError


NAMES = ("healthy", "ring", "white cell")
CATEGORIES = {1: "ring", 2: "healthy", 7: "dust"}
ROW = "1 0.5 0.25 0.125 0.0625"
BOX = [0.5, 0.25, 0.125, 0.0625]


def read_labels(path, names, categories, *, on_bad_label):
    (labels,) = read_label_files([path], names, categories, on_bad_label=on_bad_label)
    return labels


def read(tmp_path, content, *, categories=None, on_bad_label="error", name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path, NAMES, categories, on_bad_label=on_bad_label)


GOOD = {
    "empty": ("", []),
    "blank_lines_only": ("\n \n\t\n", []),
    "one_row": (ROW, [1]),
    "one_row_newline": (f"{ROW}\n", [1]),
    "two_rows": (f"{ROW}\n0 {ROW[2:]}\n", [1, 0]),
    "commas": (ROW.replace(" ", ","), [1]),
    "comma_and_blank": (ROW.replace(" ", ", "), [1]),
    "tabs": (ROW.replace(" ", "\t"), [1]),
    "runs_of_blanks": (f"  {ROW.replace(' ', '   ')}  ", [1]),
    "mixed_runs": (ROW.replace(" ", " ,\t "), [1]),
    "separator_by_line": (f"{ROW}\n{ROW.replace(' ', ',')}\n{ROW.replace(' ', chr(9))}", [1, 1, 1]),
    "crlf": (f"{ROW}\r\n{ROW}\r\n", [1, 1]),
    "cr": (f"{ROW}\r{ROW}", [1, 1]),
    "bom": (b"\xef\xbb\xbf" + ROW.encode(), [1]),
    "bom_and_header": (b"\xef\xbb\xbfclass,x,y,w,h\n" + ROW.encode(), [1]),
    "blank_lines_between": (f"\n{ROW}\n\n{ROW}\n\n", [1, 1]),
    "header": (f"class x_center y_center width height\n{ROW}", [1]),
    "header_commas": (f"label,x,y,w,h\n{ROW}", [1]),
    "header_quoted": (f'"label","x","y","w","h"\n"ring",{ROW[2:].replace(" ", ",")}', [1]),
    "header_of_more_words": (f"class x center y center w h\n{ROW}", [1]),
    "header_only": ("class x_center y_center width height\n", []),
    "header_after_blank_line": (f"\nclass x y w h\n{ROW}", [1]),
    "class_float": (f"1.0{ROW[1:]}", [1]),
    "class_name_first_row": (f"ring{ROW[1:]}\nhealthy{ROW[1:]}", [1, 0]),
    "class_name_with_blank": (f"white cell{ROW[1:]}", [2]),
    "class_name_with_blank_commas": (f"white cell{ROW[1:].replace(' ', ',')}", [2]),
    "exponent": ("1 5e-1 2.5E-1 .125 +0.0625", [1]),
    "edges": ("1 0 1 1 1", None),
}


@pytest.mark.parametrize(("content", "class_ids"), GOOD.values(), ids=GOOD)
def test_good_files(tmp_path, content, class_ids):
    labels = read(tmp_path, content)
    if class_ids is None:
        np.testing.assert_array_equal(labels.boxes_cxcywh, [[0, 1, 1, 1]])
        return
    assert labels.class_ids.dtype == np.int32
    assert labels.boxes_cxcywh.dtype == np.float32
    np.testing.assert_array_equal(labels.class_ids, class_ids)
    np.testing.assert_array_equal(labels.boxes_cxcywh, np.reshape([BOX] * len(class_ids), (-1, 4)))
    assert labels.problems == ()


BAD = {
    "four_columns": (
        "1 0.5 0.5 0.1",
        "found 4 columns (1 0.5 0.5 0.1); expected 5: class x_center",
    ),
    "six_columns": ("1 0.5 0.5 0.1 0.1 0.9", "found 6 columns"),
    "score_after_name": ("ring 0.5 0.5 0.1 0.1 0.9", "found 6 columns"),
    "empty_field": ("1,0.5,,0.1,0.1", "y_center is ''"),
    "trailing_comma": ("1,0.5,0.5,0.1,0.1,", "found 6 columns"),
    "one_word": ("ring", "found 1 columns"),
    "text_value": ("0 0.5 abc 0.1 0.1", "y_center is 'abc'; expected a fraction"),
    "nan": ("0 0.5 0.5 nan 0.1", "width is 'nan'"),
    "all_nan": ("0 nan nan nan nan", "x_center is 'nan'"),
    "inf": ("0 inf 0.5 0.1 0.1", "x_center is inf"),
    "x_above": ("0 1.0001 0.5 0.1 0.1", "x_center is 1.0001; expected a fraction"),
    "x_just_above_in_float64": ("0 1.00000000001 0.5 0.1 0.1", "x_center is 1.00000000001"),
    "y_below": ("0 0.5 -0.1 0.1 0.1", "y_center is -0.1"),
    "pixels": ("0 512 300 40 40", "divide pixels by the image's size"),
    "width_above": ("0 0.5 0.5 1.5 0.1", "width is 1.5"),
    "width_zero": ("0 0.5 0.5 0 0.1", "width is 0; expected more than 0"),
    "height_zero": ("0 0.5 0.5 0.1 0.0", "height is 0.0; expected more than 0"),
    "height_negative": ("0 0.5 0.5 0.1 -0.1", "height is -0.1; expected a fraction"),
    "width_zero_in_float32": ("0 0.5 0.5 1e-60 0.1", "width is 1e-60; expected more than 0"),
    "class_above": ("3 0.5 0.5 0.1 0.1", "class is 3; expected 0 to 2 (healthy, ring, white cell)"),
    "class_negative": ("-1 0.5 0.5 0.1 0.1", "class is -1; expected 0 to 2"),
    "class_fraction": ("0.5 0.5 0.5 0.1 0.1", "class is 0.5; expected 0 to 2"),
    "class_nan": ("nan 0.5 0.5 0.1 0.1", "class is nan; expected 0 to 2"),
    "class_empty": (",0.5,0.5,0.1,0.1", "class is ''; expected one of healthy"),
    "class_typo": ("rnig 0.5 0.5 0.1 0.1", "class is 'rnig'; expected one of healthy, ring, white"),
    "underscore": ("0 0_0.5 0.5 0.1 0.1", "x_center is '0_0.5'"),
    "arabic_digits": ("0 0.5 0.5 0.1 0.\u0665", "height is '0.\u0665'"),
    "second_header": (f"class x y w h\nclass x y w h\n{ROW}", "class is 'class'"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_row_is_named(tmp_path, content, message):
    line = 2 if content.startswith("class") else 1
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'a.txt'}:{line}: ")
    assert message in text
    assert "; expected " in text
    assert text.endswith("(--config.data.on_bad_label=skip skips and counts such rows)")


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_row_is_skipped_and_kept_as_problem(tmp_path, content, message):
    bad_line = content.splitlines()[-2 if content.endswith(ROW) else 0]
    content = f"\n{ROW}\r\n{bad_line}\n\n0{ROW[1:]}\n"
    labels = read(tmp_path, content, on_bad_label="skip")
    np.testing.assert_array_equal(labels.class_ids, [1, 0])
    np.testing.assert_array_equal(labels.boxes_cxcywh, [BOX, BOX])
    assert len(labels.problems) == 1
    assert labels.problems[0].startswith(f"{tmp_path / 'a.txt'}:3: ")
    assert message in labels.problems[0]


def test_typo_hint(tmp_path):
    with pytest.raises(UserError, match=r"did you mean ring\?"):
        read(tmp_path, BAD["class_typo"][0])


def test_columns_made_up_by_the_next_row_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.txt:1: found 4 columns"):
        read(tmp_path, "0 0.5 0.5 0.1\n0.1 0 0.5 0.5 0.1 0.1\n")


def test_header_is_only_the_first_row(tmp_path):
    labels = read(tmp_path, f"{ROW}\nclass x y w h\n{ROW}", on_bad_label="skip")
    assert len(labels.class_ids) == 2
    assert ":2: class is 'class'" in labels.problems[0]


BY_NAME = {"c": "1", "x": "0.5", "y": "0.25", "w": "0.125", "h": "0.0625"}
BY_NAME |= {"l": "0.4375", "t": "0.21875", "r": "0.5625", "b": "0.28125"}
# Header, and what its columns are: class, centre, size, left, top, right, bottom.
HEADERS = {
    "usual": ("class x_center y_center width height", "cxywh"),
    "y_first": ("class,y_center,x_center,height,width", "cyxhw"),
    "class_last": ("x_center,y_center,width,height,class_id", "xywhc"),
    "class_between": ("yc xc label h w", "yxchw"),
    "capitals": ("Class,XCenter,YCenter,Width,Height", "cxywh"),
    "british": ("class,x centre,y centre,width,height", "cxywh"),
    "centre_first": ("category_id;center-x;center-y;w;h".replace(";", "\t"), "cxywh"),
    "blanks_between_words": ("height width class y center x center", "hwcyx"),
    "short": ("w h x y cls", "whxyc"),
    "hash": ("# class cx cy w h", "cxywh"),
    "corners": ("class,xmin,ymin,xmax,ymax", "cltrb"),
    "corners_y_first": ("class,ymin,xmin,ymax,xmax", "ctlbr"),
    "corners_by_axis": ("x_min x_max y_min y_max class", "lrtbc"),
    "corners_by_number": ("label x1 y1 x2 y2", "cltrb"),
    "corners_from_zero": ("label,x0,y0,x1,y1", "cltrb"),
    "corners_by_side": ("right,left,class,bottom,top", "rlcbt"),
}


@pytest.mark.parametrize("separator", [" ", ","], ids=["blank", "comma"])
@pytest.mark.parametrize(("header", "columns"), HEADERS.values(), ids=HEADERS)
def test_columns_are_taken_by_name(tmp_path, header, columns, separator):
    row = separator.join(BY_NAME[column] for column in columns)
    labels = read(tmp_path, f"{header}\n{row}\n\n{row}")
    np.testing.assert_array_equal(labels.class_ids, [1, 1])
    np.testing.assert_array_equal(labels.boxes_cxcywh, [BOX, BOX])
    fields = [BY_NAME[column] for column in columns]
    fields[columns.index("c")] = "white cell"
    labels = read(tmp_path, f"{header}\n{separator.join(fields)}")
    np.testing.assert_array_equal(labels.class_ids, [2])
    np.testing.assert_array_equal(labels.boxes_cxcywh, [BOX])
    assert label_lines(tmp_path / "a.txt", NAMES, None) == [2]


REFUSED_HEADERS = {
    "pixels": "class,x_px,y_px,w_px,h_px",
    "corner_and_size": "class,xmin,ymin,width,height",
    "corner_and_corner": "class,x,y,xmax,ymax",
    "two_of_one": "class,x_center,xc,width,height",
    "no_class": "x_center,y_center,width,height",
    "lacks_a_column": "class,x_center,y_center,width",
    "two_columns": "y_center,x_center",
    "one_more": "class,x_center,y_center,width,height,confidence",
    "unknown": "a b c d e",
    "names_of_classes": "ring healthy",
    "a_row_without_numbers": "ring a b c d",
}


@pytest.mark.parametrize("on_bad_label", ["error", "skip"])
@pytest.mark.parametrize("header", REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
def test_other_headers_are_refused(tmp_path, header, on_bad_label):
    """Also where bad rows may be skipped: nothing is known of the rows below."""
    with pytest.raises(UserError) as error:
        read(tmp_path, f"\n{header}\n{ROW}\n", on_bad_label=on_bad_label)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'a.txt'}:2: the header names the columns ")
    assert " ".join(header.split(",")) in text
    assert "class x_center y_center width height or class xmin ymin xmax ymax" in text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.4 0.6", "xmin is 0.5 and xmax is 0.4; expected xmax above xmin"),
        ("0 0.5 0.5 0.6 0.5", "ymin is 0.5 and ymax is 0.5; expected ymax above ymin"),
        ("0 0.5 0.5 1.6 0.6", "xmax is 1.6; expected a fraction"),
        ("9 0.5 0.5 0.6 0.6", "class is 9; expected 0 to 2"),
        ("0 0.5 0.5 0.6", "found 4 columns (0 0.5 0.5 0.6); expected 5: class xmin ymin xmax"),
    ],
    ids=["x", "y", "range", "class", "columns"],
)
def test_bad_corners(tmp_path, row, message):
    with pytest.raises(UserError, match=r"a\.txt:2: ") as error:
        read(tmp_path, f"class x1 y1 x2 y2\n{row}")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("label", "class_id"),
    [("1", 1), ("2", 0), ("2.0", 0), ("ring", 1), ("white cell", 2)],
    ids=["id", "other_id", "float_id", "name", "name_without_id"],
)
def test_categories(tmp_path, label, class_id):
    labels = read(tmp_path, f"{label}{ROW[1:]}", categories=CATEGORIES)
    np.testing.assert_array_equal(labels.class_ids, [class_id])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("0", "class is 0; expected an id of notes.json: 1, 2, 7"),
        ("7", "class is 7, which is 'dust' in notes.json; expected one of healthy, ring"),
        ("dust", "class is 'dust'; expected one of"),
    ],
    ids=["unknown_id", "unknown_name_of_id", "unknown_name"],
)
def test_categories_bad(tmp_path, label, message):
    with pytest.raises(UserError, match=r"a\.txt:1: ") as error:
        read(tmp_path, f"{label}{ROW[1:]}", categories=CATEGORIES)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["\xe9", "e\u0301"], ids=["nfc", "nfd"])
@pytest.mark.parametrize("written", ["\xe9", "e\u0301"], ids=["nfc", "nfd"])
def test_names_of_classes_are_one_text_in_any_unicode_form(tmp_path, name, written):
    path = tmp_path / "labels" / "a.txt"
    folder = write_notes(tmp_path, json.dumps({"categories": [{"id": 5, "name": written}]}))
    path.write_text(f"{written} 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    names = ("ring", name)
    assert read_labels(path, names, None, on_bad_label="error").class_ids.tolist() == [1]
    path.write_text("5 0.5 0.5 0.1 0.1\n")
    categories = read_categories(folder)
    assert read_labels(path, names, categories, on_bad_label="error").class_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe1\x00 \x00", "byte 0 is 0xff"), (b"0 0.5 \xe9", "byte 6 is 0xe9")],
    ids=["utf16", "latin1"],
)
def test_no_text(tmp_path, content, message):
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text") as error:
        read(tmp_path, content, on_bad_label="skip")
    assert message in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"b\.txt: No such file or directory"):
        read_labels(tmp_path / "b.txt", NAMES, None, on_bad_label="error")


def test_unknown_policy(tmp_path):
    with pytest.raises(UserError, match="on_bad_label is 'ignore'; expected one of error, skip"):
        read(tmp_path, ROW, on_bad_label="ignore")


def write_notes(tmp_path, content):
    (tmp_path / "labels").mkdir()
    (tmp_path / "notes.json").write_text(content)
    return tmp_path / "labels"


def test_read_categories(tmp_path):
    rows = [{"id": 3, "name": "ring", "colour": "red"}, {"id": "1", "name": "healthy"}]
    folder = write_notes(tmp_path, json.dumps({"categories": rows, "info": {}}))
    assert read_categories(folder) == {3: "ring", 1: "healthy"}


def test_no_notes(tmp_path):
    assert read_categories(tmp_path / "labels") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found JSONDecodeError"),
        ("[]", "found TypeError"),
        ("{}", "found KeyError: 'categories'"),
        ('{"categories": {"1": "ring"}}', "found TypeError"),
        ('{"categories": [{"id": 1}]}', "found KeyError: 'name'"),
        ('{"categories": [{"id": 1.5, "name": "ring"}]}', "found id 1.5"),
        ('{"categories": [{"id": true, "name": "ring"}]}', "found id True"),
        ('{"categories": [{"id": "one", "name": "ring"}]}', "found id 'one'"),
        ('{"categories": [{"id": 1, "name": 5}]}', "name 5"),
        (
            '{"categories": [{"id": 1, "name": "a"}, {"id": "1", "name": "b"}]}',
            "id 1 stands twice",
        ),
    ],
    ids=[
        "no_json",
        "list",
        "no_categories",
        "mapping",
        "no_name",
        "float_id",
        "bool_id",
        "word_id",
        "number_name",
        "twice",
    ],
)
def test_bad_notes(tmp_path, content, message):
    folder = write_notes(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_categories(folder)
    assert str(error.value).startswith(str(tmp_path / "notes.json"))
    assert message in str(error.value)


def test_lines_of_boxes_are_those_of_good_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("label x y w h\r\n\r\n0 0.5 0.5 0.1 0.1\r\n9 0.5 0.5 0.1 0.1\r\nring 1 1 1 1")
    labels = read_labels(path, NAMES, None, on_bad_label="skip")
    assert len(labels.class_ids) == 2
    assert label_lines(path, NAMES, None) == [3, 5]
    assert label_lines(path, NAMES, {9: "ring"}) == [4, 5]
    path.write_text("")
    assert label_lines(path, NAMES, None) == []


def test_numbers_of_rows_are_those_of_good_and_bad_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("y x h w label\n512 300 40 30 9\n0.25 .5 1 1 ring\n1 2 3\na b c d 1\n")
    np.testing.assert_array_equal(
        numbers_of_rows(path), [[9, 300, 512, 30, 40], [np.nan, 0.5, 0.25, 1, 1]]
    )
    path.write_text("class xmax ymax xmin ymin\n0 30 40 10 20\n")
    np.testing.assert_array_equal(numbers_of_rows(path), [[0, 10, 20, 30, 40]])


# Files in plain form, which are read at once, are read like row by row.
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


def test_unknown_policy_without_files():
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
