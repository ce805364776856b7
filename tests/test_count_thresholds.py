"""Counts are corrected by a validation at the same thresholds only, wherever files record them."""

import json

import numpy as np
import pytest

from count_samples import metrics, refusal, run, run_array, write
from yogo_jax.counting.files import (
    INSTRUMENT_CLASSES,
    count_run,
    counts_by_confidence,
    read_run_array,
)


AT = {"objectness": 0.5, "iou": 0.5, "min_class_confidence": 0.0, "class_thresholds": []}
RUN = {
    "obj_thresh": 0.5,
    "iou_thresh": 0.5,
    "min_class_confidence_threshold": 0.0,
}
SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
SCORES_SAID = ", ".join(map("{} {}".format, INSTRUMENT_CLASSES, SCORES))
NUMBERS = [20_000, 50, 5, 2, 1, 20, 100]
ESTIMATE = "estimate run.npy --validation metrics.json"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A validation that records its thresholds, and an array without a word beside it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "metrics.json", metrics(thresholds=AT))
    np.save("run.npy", run_array(np.repeat(np.arange(7), NUMBERS), frames=400))
    return tmp_path


def write_infer(folder, settings) -> None:
    """The counts that `infer --count` leaves, with its summary."""
    by_class = dict(zip(INSTRUMENT_CLASSES, NUMBERS, strict=True))
    totals = {"frames": 400, "skipped": 0, "total": sum(NUMBERS), "by_class": by_class}
    write(folder / "counts.json", totals)
    head = ",".join(["image_id", "image", *INSTRUMENT_CLASSES, "total"])
    write(folder / "counts.csv", f"{head}\n0,x.png,{','.join(map(str, NUMBERS))},20178\n")
    settings = {"class_names": list(INSTRUMENT_CLASSES), **settings}
    write(folder / "summary.json", {"settings": settings, **totals})


DIFFERENT = {
    "objectness": ({"obj_thresh": 0.7}, "objectness threshold 0.7 and 0.5", "--obj-thresh 0.7"),
    "iou": ({"iou_thresh": 0.45}, "IoU threshold 0.45 and 0.5", "--iou-thresh 0.45"),
    "class confidence": (
        {"min_class_confidence_threshold": 0.9},
        "minimum class confidence 0.9 and 0",
        "--min-class-confidence-threshold 0.9",
    ),
    "scores": (
        {"class_thresholds": SCORES},
        f"class thresholds {SCORES_SAID} and none",
        f"--score-thresholds FILE.json (a file with these scores: {SCORES_SAID})",
    ),
}


@pytest.mark.parametrize("source", ["run.npy", "counts.json", "counts.csv", "summary.json"])
@pytest.mark.parametrize("case", DIFFERENT)
def test_what_the_run_records_is_compared(folder, capsys, case, source):
    change, difference, mend = DIFFERENT[case]
    write_infer(folder, {**RUN, "class_thresholds": [], **change})
    write(folder / "run.json", {**RUN, **change})
    said = refusal(f"estimate {source} --validation metrics.json", capsys)
    assert difference in said
    assert "evaluate again with --" in said
    assert mend in said
    assert "(metrics.json)" in said
    assert {"run.npy": "(run.json)"}.get(source, "(summary.json)") in said
    assert "Traceback" not in said


@pytest.mark.parametrize("source", ["run.npy", "counts.json", "counts.csv", "summary.json"])
def test_the_same_thresholds_need_no_word(folder, capsys, source):
    at = {"objectness": 0.6, "iou": 0.4, "min_class_confidence": 0.9, "class_thresholds": SCORES}
    settings = {
        "obj_thresh": 0.6,
        "iou_thresh": 0.4 + 1e-8,  # of a program with float32
        "min_class_confidence_threshold": 0.9,
        "class_thresholds": SCORES,
    }
    write(folder / "metrics.json", metrics(thresholds=at))
    write_infer(folder, settings)
    write(folder / "run.json", settings)
    run(f"estimate {source} --validation metrics.json")
    shown = capsys.readouterr().out
    assert "does not record" not in shown
    assert "only if" not in shown


def test_scores_are_compared_class_by_class(folder, capsys):
    """The run has its classes in another order than the validation."""
    write(folder / "metrics.json", metrics(thresholds={**AT, "class_thresholds": SCORES}))
    order = list(reversed(range(7)))
    names = [INSTRUMENT_CLASSES[i] for i in order]
    np.save("run.npy", run_array(np.repeat(order, NUMBERS)))
    saved = {**RUN, "class_names": names, "class_thresholds": [SCORES[i] for i in order]}
    write(folder / "run.json", saved)
    run(ESTIMATE)
    write(folder / "run.json", {**saved, "class_thresholds": SCORES})
    assert "class thresholds" in refusal(ESTIMATE, capsys)


ALL = "objectness threshold, IoU threshold, minimum class confidence"
UNKNOWN = {
    "an old run": ({"obj_thresh": 0.5, "iou_thresh": 0.5}, AT, ["run.json", "minimum class conf"]),
    "a run of which nothing is said": (None, AT, ["run.npy", ALL]),
    "an old validation": (RUN, None, ["metrics.json", f"{ALL}, score thresholds"]),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_one_side_does_not_record_is_said(folder, capsys, case):
    beside, thresholds, (file, names) = UNKNOWN[case]
    if beside is not None:
        write(folder / "run.json", beside)
    write(folder / "metrics.json", metrics(thresholds=thresholds))
    run(f"{ESTIMATE} --output out")
    notes = json.loads((folder / "out" / "counts.json").read_text())["notes"]
    (note,) = [note for note in notes if "does not record" in note]
    assert note.startswith(f"{file} does not record: {names}")
    assert "does not record" in capsys.readouterr().out


def test_counts_without_a_record_are_said_to_have_none(folder, capsys):
    write_infer(folder, RUN)
    (folder / "summary.json").unlink()
    run("estimate counts.json --validation metrics.json")
    assert "counts.json does not record" in capsys.readouterr().out


def test_without_a_flag_boxes_count_as_the_run_recorded(folder, capsys):
    np.save("faint.npy", run_array([0, 0, 1], objectness=[0.4, 0.9, 0.4]))
    write(folder / "faint.json", {**RUN, "obj_thresh": 0.3})
    at_03 = metrics(thresholds={**AT, "objectness": 0.3})
    write(folder / "metrics.json", at_03)
    run("estimate faint.npy --validation metrics.json --output out")
    values = json.loads((folder / "out" / "counts.json").read_text())
    assert values["raw_counts"]["red cells"]["estimate"] == 3
    said = refusal("estimate faint.npy --validation metrics.json --obj-thresh 0.5", capsys)
    assert "objectness threshold 0.5 and 0.3" in said


@pytest.mark.parametrize(
    ("flag", "recorded"),
    [("--obj-thresh", "obj_thresh"), ("--min-class-confidence-threshold",) * 2],
)
def test_boxes_that_were_not_kept_cannot_be_counted(folder, capsys, flag, recorded):
    recorded = recorded.strip("-").replace("-", "_")
    write(folder / "run.json", {**RUN, recorded: 0.8})
    run(f"estimate run.npy {flag} 0.85")
    said = refusal(f"estimate run.npy {flag} 0.75", capsys)
    assert f"{flag} 0.75: run.json records the" in said
    assert "give 0.8 or more" in said


@pytest.mark.parametrize(
    ("flag", "recorded"),
    [("--obj-thresh", "obj_thresh"), ("--min-class-confidence-threshold",) * 2],
)
def test_a_threshold_in_float32_is_the_same(folder, capsys, flag, recorded):
    recorded = recorded.strip("-").replace("-", "_")
    write(folder / "run.json", {**RUN, recorded: float(np.float32(0.6))})  # 0.6000000238
    run(f"estimate run.npy {flag} 0.6 --output out")
    assert f"{flag} 0.5999: run.json" in refusal(f"estimate run.npy {flag} 0.5999", capsys)


def test_a_row_of_a_compensation_file_is_that_of_the_counts(folder, capsys):
    write_infer(folder, {**RUN, "min_class_confidence_threshold": 0.9})
    flags = "--compensation none.csv --min-class-confidence-threshold"
    said = refusal(f"estimate counts.json {flags} 0.95", capsys)
    assert "summary.json records that the counts were made at 0.9: give that" in said
    # With the same it goes on, to the file that is not there.
    assert "none.csv" in refusal(f"estimate counts.json {flags} 0.9", capsys)


def test_a_compensation_is_fitted_to_arrays_with_all_boxes(folder, capsys):
    write(folder / "runs.csv", "run,reference_per_ul\nrun.npy,100\n")
    write(folder / "run.json", {**RUN, "min_class_confidence_threshold": 0.9})
    said = refusal("compensation runs.csv --model m --output .", capsys)
    assert "--min-class-confidence-threshold 0.75: run.json records" in said


@pytest.mark.parametrize("command", ["estimate run.npy --validation", "matrix"])
def test_folds_are_named(folder, capsys, command):
    write(folder / "other.json", metrics(thresholds={**AT, "iou": 0.4}))
    more = " --model m --output ." if command == "matrix" else ""
    said = refusal(f"{command} metrics.json other.json{more}", capsys)
    assert "--iou-thresh 0.5" in said
    assert "--iou-thresh 0.4" in said
    assert "(metrics.json)" in said
    assert "(other.json)" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"obj_thresh": "high"}, "obj_thresh must be a number in [0, 1], found 'high'"),
        ({"iou_thresh": 1.5}, "iou_thresh must be a number in [0, 1], found 1.5"),
        ({"iou_thresh": True}, "iou_thresh must be a number in [0, 1], found True"),
        (
            {"score_thresholds": [0.5]},
            "score_thresholds must be a list with a number for each of 7",
        ),
        ({"class_thresholds": 0.5}, "class_thresholds must be a list"),
        ({"class_thresholds": [2.5] * 7}, "class_thresholds must be a number in [0, 2], found 2.5"),
        ({"score_thresholds": ["a"] * 7}, "score_thresholds must be a number in [0, 1], found 'a'"),
    ],
)
def test_what_is_recorded_must_be_thresholds(folder, capsys, change, expected):
    write(folder / "run.json", {**RUN, **change})
    said = refusal(ESTIMATE, capsys)
    assert "run.json: " in said
    assert expected in said


# The same by an earlier version: without scores by class, and with them.
EARLIER = {**AT, "min_scores": []}
del EARLIER["class_thresholds"]


@pytest.mark.parametrize("source", ["run.npy", "counts.json"])
def test_records_of_earlier_versions(folder, capsys, source):
    estimate = f"estimate {source} --validation metrics.json"
    write(folder / "run.json", RUN)
    write_infer(folder, {**RUN, "score_thresholds": []})
    for at in (EARLIER, AT):
        write(folder / "metrics.json", metrics(thresholds=at))
        run(estimate)
        assert "does not record" not in capsys.readouterr().out
    # A least score of the most probable class is another rule than a class threshold.
    write(folder / "run.json", {**RUN, "class_thresholds": SCORES})
    write_infer(folder, {**RUN, "class_thresholds": SCORES})
    write(folder / "metrics.json", metrics(thresholds={**EARLIER, "min_scores": SCORES}))
    said = refusal(estimate, capsys)
    assert f"score thresholds of an earlier version none and {SCORES_SAID}" in said
    assert f"class thresholds {SCORES_SAID} and none" in said
    write(folder / "run.json", {**RUN, "score_thresholds": SCORES})
    write_infer(folder, {**RUN, "score_thresholds": SCORES})
    run(estimate)


def test_an_array_counts_by_the_class_thresholds_beside_it(folder, capsys):
    """Healthy is the most probable class of both boxes, ring the decided one of the second."""
    array = run_array([0, 0], confidences=[0.9, 0.6])
    array[9, 1] = 0.3
    np.save("two.npy", array)
    low = [0.5, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5]
    write(folder / "metrics.json", metrics(thresholds={**AT, "class_thresholds": low}))
    write(folder / "two.json", {**RUN, "class_thresholds": low})
    counted = read_run_array(folder / "two.npy", None)
    counts = count_run(counted, objectness_threshold=0.1, min_class_confidence=0.0).counts
    assert counts.tolist() == [1, 1, 0, 0, 0, 0, 0]
    at_confidences = counts_by_confidence(
        counted, objectness_threshold=0.1, confidences=[0.25, 0.5, 0.95]
    )
    assert at_confidences[:, :2].tolist() == [[1, 1], [1, 0], [0, 0]]
    run("estimate two.npy --validation metrics.json --output out")
    shown = json.loads((folder / "out" / "counts.json").read_text())["raw_counts"]
    assert shown["red cells"]["estimate"] == 2
    assert shown["parasites"]["estimate"] == 1
