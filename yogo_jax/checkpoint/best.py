"""Which validated checkpoint of a run is its best (`train.keep_best`)."""

from collections.abc import Mapping
from typing import Any


def demerit(validation: Mapping[str, Any], keep_best: str) -> float:
    """What the best checkpoint has the least of: the loss, or one minus a mean AP."""
    if keep_best == "loss":
        return validation["loss"]
    # Without any true box there is no mean AP, and all checkpoints are alike.
    return 1 - (validation[keep_best] or 0.0)


def rank(validation: Mapping[str, Any], keep_best: str, step: int) -> tuple[float, int]:
    """By which validated checkpoints are compared: the least is the best, of equals the first."""
    return demerit(validation, keep_best), step


def ranked_by(validation: Mapping[str, Any], keep_best: str, step: int) -> dict[str, float]:
    """What is recorded beside a checkpoint, to be ranked by."""
    return {"loss": validation["loss"], "demerit": demerit(validation, keep_best), "step": step}


def recorded_rank(recorded: Mapping[str, float]) -> tuple[float, float]:
    """The rank from what `ranked_by` recorded."""
    # Checkpoints from before there was a choice have the loss alone.
    return recorded.get("demerit", recorded["loss"]), recorded.get("step", 0)
