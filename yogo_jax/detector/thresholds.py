"""The thresholds that a box passes to count as a detection, and the file of a calibration."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from yogo_jax.errors import UserError
from yogo_jax.files import read_given_text


class Thresholds(NamedTuple):
    """The thresholds that a box passes to count as a detection.

    Attributes:
      objectness: a box lies above it.
      iou: of the NMS.
      min_class_confidence: probability that the most probable class exceeds, if it is above 0.
      min_scores: least score, objectness times that probability, by class; empty is none.
    """

    objectness: float = 0.5
    iou: float = 0.5
    min_class_confidence: float = 0.0
    min_scores: tuple[float, ...] = ()


def read_min_scores(
    path: Path | None, class_names: Sequence[str], at: Thresholds, say: Callable[[str], None]
) -> tuple[float, ...]:
    """The thresholds of a calibration's file, in the order of the classes; empty without a file.

    Of a class for which no score gives the precision every box counts.

    Args:
      path: of the file, with the scores by name under `thresholds`.
      class_names: of the network.
      at: the other thresholds, which must be those that the scores were measured at.
      say: is told of such classes.

    Raises:
      UserError: the file cannot be read, has other classes, was measured at other thresholds, or a
        score is none.
    """
    if path is None:
        return ()
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
            "`python -m yogo_jax.calibrate --output` writes them"
        ) from error
    if sorted(given) != sorted(class_names):
        raise UserError(
            f"{path} has the classes {', '.join(given)}, the network {', '.join(class_names)}: "
            "take the file of its own calibration"
        )
    if measured_at != {"objectness": at.objectness, "iou": at.iou}:
        raise UserError(
            f"{path} was measured at objectness {measured_at['objectness']:g} and IoU "
            f"{measured_at['iou']:g}, this is {at.objectness:g} and {at.iou:g}: its precision "
            f"would not hold. Add --obj-thresh {measured_at['objectness']:g} --iou-thresh "
            f"{measured_at['iou']:g}"
        )
    for name, score in given.items():
        if score is None:
            say(f"{path}: no score makes {name} precise enough; all its boxes count")
        elif not 0 <= score <= 1:
            raise UserError(f"{path}: the score of {name} must be in [0, 1], got {score}")
    return tuple(given[name] or 0.0 for name in class_names)
