"""The thresholds of a model, with those in their place that a user gives: numbers, or a file."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from yogo_jax.detector.detections import Thresholds, check_class_thresholds
from yogo_jax.errors import UserError
from yogo_jax.files import read_given_text


def thresholds_given(
    own: Thresholds,
    class_names: Sequence[str],
    class_thresholds: Path | Sequence[float] | None,
    say: Callable[[str], None],
    **others: float | None,
) -> Thresholds:
    """The thresholds of a model with those of a user in their place, see `Thresholds.changed`.

    Args:
      own: of the model.
      class_names: of the model.
      class_thresholds: numbers, or the file of a calibration, whose objectness then holds.
      say: is told of classes that the file has no score of.
      **others: objectness, iou and min_class_confidence; None where none is given.

    Raises:
      UserError: a value is out of range, the file cannot be used, or it was measured at others.
    """
    if isinstance(class_thresholds, Path):
        path = class_thresholds
        class_thresholds, at = _read_class_thresholds(path, class_names, say)
        now = {"objectness": at["objectness"], "iou": own.iou}
        now |= {name: value for name in at if (value := others.get(name)) is not None}
        if any(abs(now[name] - at[name]) > 1e-6 for name in at):
            raise UserError(
                f"{path} was measured at objectness {at['objectness']:g} and IoU {at['iou']:g}, "
                f"this is {now['objectness']:g} and {now['iou']:g}: it would not hold. Leave out "
                f"--obj-thresh, and add --iou-thresh {at['iou']:g}"
            )
        others |= at
    return own.changed(class_names, class_thresholds=class_thresholds, **others)


def _read_class_thresholds(
    path: Path, class_names: Sequence[str], say: Callable[[str], None]
) -> tuple[tuple[float, ...], dict[str, float]]:
    """Class thresholds of a calibration's file, and the objectness and IoU they were measured at.

    Files of earlier versions have no score of a class that never was precise enough: its threshold
    is then the objectness that they were measured at.
    """
    try:
        values = json.loads(read_given_text(path))
        given = {
            unicodedata.normalize("NFC", name): each and float(each["score"])
            for name, each in values["thresholds"].items()
        }
        measured_at = {name: float(values["measured_at"][name]) for name in ("objectness", "iou")}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; expected a file to read") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected `thresholds` (class name: null or {{score: number}}) and "
            "`measured_at` (objectness, iou), as "
            "`yogo-jax calibrate --output` writes them"
        ) from error
    if sorted(given) != sorted(class_names):
        raise UserError(
            f"{path} has the classes {', '.join(given)}, the network {', '.join(class_names)}: "
            "take the file of its own calibration"
        )
    for name in [name for name, score in given.items() if not score]:
        given[name] = measured_at["objectness"]
        say(f"{path}: no score of {name}; its boxes count from {given[name]:g} on")
    try:
        scores = tuple(given[name] for name in class_names)
        check_class_thresholds(scores, class_names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return scores, measured_at


def class_thresholds_of(decision: str, file: Path | None) -> Path | tuple[float, ...] | None:
    """The class thresholds that flags ask for: a file, none at all, or (None) those of the model.

    Args:
      decision: "stored" or "most_probable".
      file: of a calibration.

    Raises:
      UserError: both are given.
    """
    if decision == "stored":
        return file
    if file is not None:
        raise UserError(
            f"--decision {decision} has no thresholds of classes: leave it out, or leave out "
            f"--score-thresholds {file}"
        )
    return ()
