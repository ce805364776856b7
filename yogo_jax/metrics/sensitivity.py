"""Sensitivity to rare cells, when only so few false alarms among the red cells are allowed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from yogo_jax.metrics.mean_ap import Ranking


# Allowed false positives in 10^6 red cells.
RATES = (1, 10, 100, 1000)
CELLS_OF_RATES = 1_000_000


def sensitivity_at_false_positives(
    ranking: Ranking, class_names: Sequence[str]
) -> dict[str, Any] | None:
    """The share of the true boxes of each class that is found with few false positives.

    The candidates of a class are ranked by their score of that class. One is true if it finds a
    true box of the class with at least the first IoU of the ranking, else it is a false positive.
    Equal scores are taken all together or not at all. Red cells are the most frequent class of the
    labels.

    Args:
      ranking: by COCO's protocol, see `curves.rank`.
      class_names: names in the order of the class ids.

    Returns:
      Plain values for JSON; None without a true box:

      - `red_cell_class`, `red_cells`: the most frequent class, of equal ones the first, and its
        true boxes.
      - `allowed_false_positives`: by rate (the keys "1", "10", "100", "1000", per 10^6 red cells),
        rounded down. At 0 the labels are too few for the rate: values are those without any false
        positive.
      - `by_class`: for every other class the sensitivity by rate, or None without a true box.
    """
    objects = ranking.objects.sum(0)
    if not objects.any():
        return None
    red = int(objects.argmax())
    cells = int(objects[red])
    allowed = {str(rate): rate * cells // CELLS_OF_RATES for rate in RATES}
    by_class: dict[str, dict[str, float] | None] = {}
    for class_id, name in enumerate(class_names):
        if class_id == red:
            continue
        of_class = ranking.of_class(class_id)
        by_class[name] = None
        if objects[class_id]:
            by_class[name] = {rate: _sensitivity(of_class, most) for rate, most in allowed.items()}
    return {
        "red_cell_class": class_names[red],
        "red_cells": cells,
        "allowed_false_positives": allowed,
        "by_class": by_class,
    }


def _sensitivity(ranking: Ranking, allowed: int) -> float:
    """The largest share of the objects of one class with at most so many false positives."""
    found = ranking.is_true[:, 0]
    last_of_equals = np.diff(ranking.scores, append=-np.inf) != 0
    within = last_of_equals & (np.cumsum(~found) <= allowed)
    return float(np.cumsum(found)[within].max(initial=0) / ranking.objects.sum())
