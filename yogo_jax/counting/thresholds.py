"""The thresholds at which counts and validations were made, as their files record them.

A validation corrects only counts that were made at the same thresholds. So the thresholds of both
are read here and compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yogo_jax.errors import UserError, flag_of
from yogo_jax.files import read_json


# `infer` writes a summary beside these two files.
SUMMARY = "summary.json"
OF_INFER = ("counts.json", "counts.csv")


class CountedAt(NamedTuple):
    """The thresholds that decide which boxes count; None if a file does not record one.

    Attributes:
      objectness: a box counts above it.
      iou: above it the worse of two boxes was suppressed.
      min_class_confidence: least probability of the class of a box.
      min_scores: of earlier versions: least score by class, of the most probable class; empty if
        there was none.
      class_thresholds: by class, see `Thresholds`; empty where a box has its most probable class.
    """

    objectness: float | None = None
    iou: float | None = None
    min_class_confidence: float | None = None
    min_scores: Mapping[str, float] | None = None
    class_thresholds: Mapping[str, float] | None = None


NAMES = {
    "objectness": "objectness threshold",
    "iou": "IoU threshold",
    "min_class_confidence": "minimum class confidence",
    "min_scores": "score thresholds of an earlier version",
    "class_thresholds": "class thresholds",
}
# Names in the files of `infer` (RUN.json, settings in summary.json), which are those of its flags.
_KEYS_OF_RUN = {
    "objectness": "obj_thresh",
    "iou": "iou_thresh",
    "min_class_confidence": "min_class_confidence_threshold",
    "min_scores": "score_thresholds",
    "class_thresholds": "class_thresholds",
}
FLAGS = {
    **{name: flag_of(key) for name, key in _KEYS_OF_RUN.items()},
    "class_thresholds": "--score-thresholds",
}
# Fields that hold a number for each class.
_BY_CLASS = ("min_scores", "class_thresholds")


class Recorded(NamedTuple):
    """The thresholds that a file records, and that file; without one, the file of the counts."""

    file: Path
    at: CountedAt


def recorded_by_run(counts: Path, class_names: Sequence[str]) -> Recorded:
    """Reads the thresholds of a run: beside its array, or in the summary of `infer`.

    If thresholds of classes were used, they are always recorded beside an array.

    Args:
      counts: an array (.npy), or counts of classes (.json, .csv).
      class_names: order of the thresholds of classes, if the file has no class names of its own.

    Raises:
      UserError: the file cannot be read, or a value is no threshold.
    """
    is_array = counts.suffix.lower() == ".npy"
    summary = counts.with_name(SUMMARY) if counts.name in OF_INFER else counts
    file = counts.with_suffix(".json") if is_array else summary
    values = read_json(file) if file.is_file() and file.suffix.lower() == ".json" else None
    if not is_array and isinstance(values, dict):
        values = values.get("settings")
    if not isinstance(values, dict):
        file, values = counts, {}
    at = _counted_at(file, values, _KEYS_OF_RUN, class_names)
    return Recorded(file, _without_other_rules(at) if is_array or values else at)


def recorded_by_validation(
    file: Path, values: Mapping[str, Any], class_names: Sequence[str]
) -> Recorded:
    """Returns the `thresholds` of a `metrics.json`.

    Args:
      file: named in messages.
      values: the content of the file.
      class_names: without the background.

    Raises:
      UserError: a value is no threshold.
    """
    thresholds = values.get("thresholds")
    if not isinstance(thresholds, dict):
        return Recorded(file, CountedAt())
    at = _counted_at(file, thresholds, {name: name for name in NAMES}, class_names)
    return Recorded(file, _without_other_rules(at))


def _without_other_rules(at: CountedAt) -> CountedAt:
    """What is not recorded by class where the rest is: no version leaves out what acted."""
    return at._replace(min_scores=at.min_scores or {}, class_thresholds=at.class_thresholds or {})


def of_array(
    recorded: Recorded, *, objectness: float | None, min_class_confidence: float | None
) -> tuple[float, float]:
    """Chooses the thresholds by which boxes of an array count: the given, else the recorded ones.

    Without either, those of `evaluate` hold: objectness 0.5, and any class confidence.

    Raises:
      UserError: a threshold is below the recorded one: such boxes are not in the array.
    """
    return (
        _chosen("objectness", objectness, recorded, 0.5),
        _chosen("min_class_confidence", min_class_confidence, recorded, 0.0),
    )


def _chosen(name: str, given: float | None, recorded: Recorded, default: float) -> float:
    known = getattr(recorded.at, name)
    if given is None:
        return default if known is None else known
    if known is not None and given < known and not _same(given, known):
        raise UserError(
            f"{FLAGS[name]} {given:g}: {recorded.file} records the {NAMES[name]} {known:g}, so the "
            f"array has no boxes below it: give {known:g} or more, or infer again with "
            f"{FLAGS[name]} {given:g}"
        )
    return given


def of_counts(recorded: Recorded, *, min_class_confidence: float | None) -> CountedAt:
    """Returns the thresholds of boxes that were counted before.

    Args:
      recorded: thresholds that the run recorded.
      min_class_confidence: the class confidence that the user gives; None without one.

    Raises:
      UserError: another class confidence is recorded.
    """
    known = recorded.at.min_class_confidence
    if min_class_confidence is None:
        return recorded.at
    if known is not None and not _same(known, min_class_confidence):
        flag = FLAGS["min_class_confidence"]
        raise UserError(
            f"{flag} {min_class_confidence:g}: {recorded.file} records that the counts were made "
            f"at {known:g}: give that, or infer again with {flag} {min_class_confidence:g}"
        )
    return recorded.at._replace(min_class_confidence=min_class_confidence)


def compare(counts: Recorded, counted_at: CountedAt, validation: Recorded) -> list[str]:
    """Refuses a validation at other thresholds, which describes another detector.

    Args:
      counts: thresholds that the run of the counts recorded.
      counted_at: thresholds at which the boxes were counted.
      validation: thresholds of the validation.

    Returns:
      A note for each side that does not record all of its thresholds.

    Raises:
      UserError: a threshold that both record differs; the message names values, files and the fix.
    """
    differing = [
        f"{NAMES[name]} {_shown(ours)} and {_shown(theirs)}"
        for name, ours, theirs in zip(NAMES, counted_at, validation.at, strict=True)
        if ours is not None and theirs is not None and not _same(ours, theirs)
    ]
    if differing:
        raise UserError(
            f"the counts ({counts.file}) and the validation ({validation.file}) were made at "
            f"different thresholds: {'; '.join(differing)}. A validation corrects only counts that "
            f"were made at its thresholds: evaluate again with {flags_of(counted_at)}, or infer "
            f"and count again with {flags_of(validation.at)}"
        )
    notes = []
    for one, other, whose in ((counts, validation, "validation"), (validation, counts, "counts")):
        missing = [NAMES[name] for name, value in one.at._asdict().items() if value is None]
        if missing:
            there = flags_of(other.at)
            notes.append(
                f"{one.file} does not record: {', '.join(missing)}. The correction is right only "
                f"if these are the same as for the {whose}" + (f" ({there})." if there else ".")
            )
    return notes


def flags_of(at: CountedAt) -> str:
    """Writes the known thresholds as flags of `evaluate` and `infer`."""
    flags = [
        f"{FLAGS[name]} {value:g}"
        for name, value in at._asdict().items()
        if value is not None and name not in _BY_CLASS
    ]
    if at.class_thresholds is not None and not at.class_thresholds:
        flags.insert(0, "--decision most_probable")
    for name in _BY_CLASS:
        if scores := getattr(at, name):
            flags.append(f"{FLAGS[name]} FILE.json (a file with these scores: {_shown(scores)})")
    return " ".join(flags)


def _counted_at(
    file: Path, values: Mapping[str, Any], keys: Mapping[str, str], class_names: Sequence[str]
) -> CountedAt:
    objectness, iou, min_class_confidence = (
        None if (value := values.get(keys[name])) is None else _number(file, keys[name], value)
        for name in ("objectness", "iou", "min_class_confidence")
    )
    names = values.get("class_names") or class_names
    by_class = [_by_class(file, keys[name], values.get(keys[name]), names) for name in _BY_CLASS]
    return CountedAt(objectness, iou, min_class_confidence, *by_class)


def _by_class(
    file: Path, key: str, scores: Any, names: Sequence[str]
) -> Mapping[str, float] | None:
    if scores is None:
        return None
    if not isinstance(scores, list) or len(scores) not in (0, len(names)):
        raise UserError(
            f"{file}: {key} must be a list with a number for each of {len(names)} classes, or "
            f"empty; found {scores!r}"
        )
    # A class whose threshold no score reaches never counts.
    most = 2.0 if key == "class_thresholds" else 1.0
    return {
        str(name): _number(file, key, score, most)
        for name, score in zip(names, scores, strict=False)
    }


def _number(file: Path, key: str, value: Any, most: float = 1.0) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= most or isinstance(value, bool):
        expected = f"a number in [0, {most:g}]"
        raise UserError(f"{file}: {key} must be {expected}, found {value!r}; correct it")
    return number


def _same(one: Any, other: Any) -> bool:
    """Compares two thresholds; they may differ by the float32 rounding of another program."""
    if isinstance(one, Mapping):
        # No score is below 0, so a threshold of 0 is the same as none.
        return all(_same(one.get(name, 0.0), other.get(name, 0.0)) for name in {*one, *other})
    return abs(one - other) < 1e-6


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {score:g}" for name, score in value.items()) or "none"
    return f"{value:g}"
