"""Counts from files: arrays of runs, tables, and what is neither."""

import numpy as np
import pytest

from count_samples import run_array, write
from yogo_jax.counting.files import (
    INSTRUMENT_CLASSES,
    count_run,
    counts_by_confidence,
    read_counts,
    read_run_array,
    reordered,
)
from yogo_jax.errors import UserError


def saved(tmp_path, array):
    np.save(tmp_path / "run.npy", array)
    return tmp_path / "run.npy"


def counted(run, objectness=0.5, confidence=0.0):
    return count_run(run, objectness_threshold=objectness, min_class_confidence=confidence)


def test_boxes_count_for_their_most_probable_class(tmp_path):
    run = read_run_array(saved(tmp_path, run_array([0, 0, 0, 1, 3, 6], frames=4)), None)
    sample = counted(run)
    assert sample.class_names == INSTRUMENT_CLASSES
    assert sample.counts.tolist() == [3, 1, 0, 1, 0, 0, 1]
    assert sample.frames == 4
    assert sample.note == "6 of 6 boxes kept by the thresholds"


@pytest.mark.parametrize(
    ("objectness", "confidence", "kept"),
    [(0.5, 0.0, 3), (0.75, 0.0, 2), (0.875, 0.0, 0), (0.5, 0.95, 2), (0.5, 0.9999, 0)],
)
def test_thresholds_as_the_instrument_has_them(tmp_path, objectness, confidence, kept):
    # A box at the objectness threshold falls out, one at the class confidence stays.
    array = run_array(
        [0] * 4, objectness=[0.5, 0.75, 0.875, 0.875], confidences=[0.99, 0.99, 0.95, 0.6]
    )
    run = read_run_array(saved(tmp_path, array), None)
    assert counted(run, objectness, confidence).counts[0] == kept


def test_many_confidences_in_one_pass_are_as_one_after_the_other(tmp_path):
    generator = np.random.default_rng(0)
    confidences = np.round(generator.uniform(0.5, 1, 400), 2)
    ids = generator.integers(0, 7, 400)
    array = run_array(ids, confidences=confidences, objectness=generator.uniform(0.3, 1, 400))
    run = read_run_array(saved(tmp_path, array), None)
    values = [0.75, 0.8, 0.95, 1.0]
    found = counts_by_confidence(run, objectness_threshold=0.5, confidences=values)
    one_by_one = [counted(run, confidence=value).counts for value in values]
    np.testing.assert_array_equal(found, one_by_one)


def test_an_empty_run(tmp_path):
    run = read_run_array(saved(tmp_path, run_array([])), None)
    assert counted(run).counts.tolist() == [0] * 7
    assert counted(run).frames is None


def test_names_come_from_the_flag_then_the_file_beside_then_the_validation(tmp_path):
    path = saved(tmp_path, run_array([0, 1], classes=2))
    assert read_run_array(path, None, expected=["x", "y"]).class_names == ("x", "y")
    write(tmp_path / "run.json", {"run_name": "run", "class_names": ["b", "c"]})
    assert read_run_array(path, None, expected=["x", "y"]).class_names == ("b", "c")
    assert read_run_array(path, ["d", "e"]).class_names == ("d", "e")
    write(tmp_path / "run.json", {"run_name": "run", "obj_thresh": 0.5})
    with pytest.raises(UserError, match="2 classes, but 7 names"):
        read_run_array(path, None)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(np.zeros(15, np.float32), "found float32", id="flat"),
        pytest.param(np.zeros((8, 3), np.float32), r"\[8, 3\]", id="no-class"),
        pytest.param(np.zeros((15, 3), int), "found int64", id="whole-numbers"),
        pytest.param(run_array([0, 1]).T.copy(), r"\[2, 15\]", id="transposed"),
        pytest.param(run_array([0]) * 5, "must be in", id="no-probabilities"),
        pytest.param(run_array([0]) * np.nan, "must be in", id="nan"),
    ],
)
def test_no_array_of_a_run(tmp_path, array, expected):
    with pytest.raises(UserError, match=expected):
        read_run_array(saved(tmp_path, array), None)


def test_no_file_of_an_array(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read as a \.npy array"):
        read_run_array(write(tmp_path / "run.npy", "no array"), None)


@pytest.mark.parametrize(
    ("name", "values", "frames"),
    [
        ("a.json", {"class_names": ["b", "a"], "total": {"a": 3, "b": 40}, "frames": 7}, 7),
        ("a.json", {"frames": 7, "skipped": 1, "total": 43, "by_class": {"b": 40, "a": 3}}, 7),
        ("a.json", {"total": {"b": 40.0, "a": 3}}, None),
        ("a.csv", "image_id,image,b,a,total\n0,x.png,30,1,31\n1,y.png,10,2,12\n2,z.png,,,\n", 2),
        ("a.csv", "b,a\n40,3\n", 1),
    ],
    ids=["total", "by-class", "bare", "frames", "one-row"],
)
def test_counts_of_tables(tmp_path, name, values, frames):
    sample = read_counts(write(tmp_path / name, values))
    assert sample.class_names == ("b", "a")
    assert sample.counts.tolist() == [40, 3]
    assert sample.frames == frames
    told = "z.png" in str(values) or "skipped" in values
    assert ("1 frame(s) without counts" in sample.note) == told


HEAD = "image_id,image,b,a,total\n"
FRAMES = "0,x.png,30,1,31\n1,y.png,10,2,12\n"
TOTALS = {
    "in_the_first_column": (f"{HEAD}{FRAMES}total,,40,3,43\n", "line 4 is called 'total'"),
    "in_the_second_column": (f"{HEAD}{FRAMES},Sum:,40,3,43\n", "line 4 is called 'Sum:'"),
    "without_a_name": (f"{HEAD}{FRAMES},,40,3,43\n", "line 4 has no frame name"),
    "ids_summed_up": (f"{HEAD}{FRAMES}1,,40,3,43\n", "line 4 has no frame name"),
    "in_another_language": (f"{HEAD}{FRAMES}Summe,-,40,3,\n", "line 4 is called 'Summe'"),
    "names_alone": ("image,b,a\nx,30,1\ny,10,2\ntotal,40,3\n", "line 4 is called 'total'"),
    "of_one_frame": ("image,b,a\nx,40,3\nTOTAL,40,3\n", "line 3 is called 'TOTAL'"),
    "a_frame_below": (f"{HEAD}0,x,30,1,\n,,30,1,\n1,y,10,2,\n", "line 3 has no frame name"),
}


@pytest.mark.parametrize(("text", "note"), TOTALS.values(), ids=TOTALS)
def test_a_row_of_totals_is_left_out_and_said(tmp_path, text, note):
    sample = read_counts(write(tmp_path / "counts.csv", text))
    assert sample.class_names == ("b", "a")
    assert sample.counts.tolist() == [40, 3]
    assert sample.frames == text.count("\n") - 2
    assert note in sample.note
    assert "holds the sums of the lines above: left out" in sample.note


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (f"{HEAD}{FRAMES}total,,41,3,44\n", 4, "is called 'total', but does not hold the sums"),
        (f"{HEAD}{FRAMES},,9,3,\n", 4, "has no frame name, but does not hold the sums"),
        (f"{HEAD}total,,40,3,43\n{FRAMES}", 2, "is called 'total'"),
        ("image,b,a\nx,30,1\ny,10,2\nSumme,40,3\n", 4, "add a column image_id"),
        ("b,a\n30,1\n10,2\n40,3\n", 4, "holds the sums of the lines above"),
    ],
    ids=["other_sums", "no_frame", "above", "in_another_language", "without_names"],
)
def test_a_row_that_may_be_no_frame_is_refused(tmp_path, text, line, expected):
    path = write(tmp_path / "counts.csv", text)
    with pytest.raises(UserError) as error:
        read_counts(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}0,x.png,30,1,31\n1,y.png,10,2,12\n2,z.png,40,3,43\n",
        f"{HEAD}0,x.png,30,1,31\n1,y.png,10,2,12\n2,total,40,3,43\n",
        "image_id,b,a\n0,30,1\n1,10,2\n2,40,3\n",
        "b,a\n40,3\n40,3\n",
        "image,b,a\nx,0,0\ny,0,0\nz,80,6\n",
    ],
    ids=["numbered", "called_total", "ids_alone", "two_alike", "of_nothing"],
)
def test_a_frame_that_happens_to_be_the_sum_of_others_counts(tmp_path, text):
    sample = read_counts(write(tmp_path / "counts.csv", text))
    assert sample.counts.tolist() == [80, 6]
    assert sample.frames == text.count("\n") - 1
    assert sample.note == ""


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", [3], "expected {"),
        ("a.json", {"total": 4}, "found the fields"),
        ("a.json", {"total": {"a": -1}}, "count of a must be a whole number"),
        ("a.json", {"total": {"a": 1.5}}, "found 1.5"),
        ("a.json", {"total": {"a": True}}, "found True"),
        ("a.json", {"total": {"a": "inf"}}, "found 'inf'"),
        ("a.json", {"class_names": ["a", "b"], "total": {"a": 1}}, "the counts are of"),
        ("a.json", {"total": {"a": 1}, "frames": -3}, "frames must be"),
        ("a.csv", "", "found 0 line(s)"),
        ("a.csv", "image,total\nx,3\n", "expected a first line with column names"),
        ("a.csv", "a,b\n1\n", "a.csv:2: expected 2 fields, found 1"),
        ("a.csv", "a,b\n1,x\n", "line 2, b must be a whole number"),
        ("a.csv", "a,b\n1,\n", "line 2, b must be a whole number"),
    ],
)
def test_no_counts(tmp_path, name, values, expected):
    with pytest.raises(UserError) as error:
        read_counts(write(tmp_path / name, values))
    assert expected in str(error.value)


def test_a_folder_is_no_file_of_counts(tmp_path):
    with pytest.raises(UserError, match="is a folder, expected a JSON file"):
        read_counts(tmp_path)
    inside = write(tmp_path / "metrics.json", {})
    with pytest.raises(UserError) as error:
        read_counts(tmp_path)
    assert str(error.value).endswith(f"did you mean {inside}?")


def test_classes_are_put_in_the_order_of_the_validation(tmp_path):
    sample = read_counts(write(tmp_path / "a.json", {"total": {"a": 3, "b": 40}}))
    assert reordered(sample, ["b", "a"]).counts.tolist() == [40, 3]
    with pytest.raises(UserError, match="the counts are of the classes a, b"):
        reordered(sample, ["a", "c"])


def test_a_table_of_a_spreadsheet_may_begin_with_a_mark(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("image_id,healthy,ring\n7,1,2\n8,3,4\n", encoding="utf-8-sig")
    sample = read_counts(path)
    assert sample.class_names == ("healthy", "ring")
    assert sample.counts.tolist() == [4, 6]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("image_id,healthy,healthy\n1,2,3\n")
    with pytest.raises(UserError, match="two columns have one name"):
        read_counts(path)
