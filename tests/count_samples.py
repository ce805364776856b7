"""Inputs of the count tests: a validation, runs with known boxes, files of them."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yogo_jax import counts
from yogo_jax.counting.files import INSTRUMENT_CLASSES


# Row = true class, last column missed; the last row extra boxes. Whole numbers of a plausible
# network.
CONFUSION = [
    [19400, 4, 1, 0, 0, 0, 40, 555],
    [48, 688, 24, 0, 0, 0, 8, 32],
    [8, 12, 352, 12, 0, 0, 4, 12],
    [1, 0, 8, 129, 2, 3, 3, 4],
    [1, 0, 1, 1, 90, 0, 4, 3],
    [0, 0, 0, 3, 0, 138, 6, 3],
    [25, 5, 3, 2, 2, 3, 310, 150],
    [3, 1, 0, 0, 0, 0, 10, 0],
]


def metrics(matrix: Sequence[Sequence[float]] = CONFUSION, **changes: Any) -> dict[str, Any]:
    """The part of `metrics.json` that counts need."""
    names = [*INSTRUMENT_CLASSES, "background"]
    return {"confusion": {"class_names": names, "matrix": matrix}, "images": 500, **changes}


def run(line: str) -> None:
    """Gives a line to the command `counts`."""
    counts.main(shlex.split(line))


def refusal(line: str, capsys) -> str:
    """The message with which the command refuses a line."""
    with pytest.raises(SystemExit) as stopped:
        run(line)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def write(path: Path, values: Any) -> Path:
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def run_array(
    class_ids: Sequence[int],
    *,
    objectness: float | Sequence[float] = 0.9,
    confidences: float | Sequence[float] = 0.97,
    frames: int = 10,
    classes: int = 7,
) -> np.ndarray:
    """The instrument's array of boxes of these classes, spread over frames."""
    ids = np.asarray(class_ids, int)
    boxes = len(ids)
    sure = np.broadcast_to(np.asarray(confidences, np.float32), (boxes,))
    array = np.zeros((8 + classes, boxes), np.float32)
    array[0] = np.arange(boxes) % frames
    array[3:5] = 20
    array[5] = objectness
    array[6] = ids
    array[7] = sure
    array[8:] = (1 - sure) / (classes - 1)
    array[8 + ids, np.arange(boxes)] = sure
    return array
