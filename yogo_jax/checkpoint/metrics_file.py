"""The log of a run, `metrics.jsonl`, and the choice of its best validation (`train.keep_best`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a `metrics.jsonl`, one JSON object a line.

    A last line that a kill cut short is left out.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def lower_is_better(validation: Mapping[str, Any], keep_best: str) -> float:
    """The number that validations are compared by: the loss, or one minus a mean AP."""
    if keep_best == "loss":
        return validation["loss"]
    # Without any true box there is no mean AP, and all checkpoints are alike.
    return 1 - (validation[keep_best] or 0.0)


def rank(validation: Mapping[str, Any], keep_best: str, step: int) -> tuple[float, int]:
    """The order of validations: the least is the best, of equals the first."""
    return lower_is_better(validation, keep_best), step
