"""Pairs of predictions and true boxes of one image, on which the metrics are counted."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.detector.boxes import iou


# Up to so many pairs all of them are looked at; beyond, only those of neighbours, which grow with
# the boxes and not with their square.
_MOST_PAIRS_AT_ONCE = 20_000


class Matches(NamedTuple):
    """Predictions and labels of one image, paired one to one; what is left over on either side.

    `prediction_index[i]` is paired with `label_index[i]`; pairs are in order of the prediction.
    """

    prediction_index: Int[np.ndarray, " pairs"]
    label_index: Int[np.ndarray, " pairs"]
    missed: Int[np.ndarray, " missed"]  # labels without a prediction
    extra: Int[np.ndarray, " extra"]  # predictions without a label


def match_boxes(
    prediction_boxes_xyxy: Float[np.ndarray, "n 4"],
    label_boxes_xyxy: Float[np.ndarray, "m 4"],
    *,
    min_iou: float = 0.5,
) -> Matches:
    """The one-to-one pairing of one image that has the largest sum of IoU, classes ignored.

    The Hungarian assignment on `1 - IoU`. A pair under `min_iou` counts for nothing in that sum
    and is not kept: its label is missed and its prediction is extra.

    Args:
      prediction_boxes_xyxy: kept predictions, in any unit that the labels share.
      label_boxes_xyxy: the true boxes.
      min_iou: floor of a pair, which itself is still a pair. 0 keeps all `min(n, m)` pairs, even
        of boxes that do not touch, as the original implementation does.

    References:
      Kuhn 1955, The Hungarian method for the assignment problem.
    """
    predictions = prediction_boxes_xyxy.astype(np.float64)
    labels = label_boxes_xyxy.astype(np.float64)
    if min_iou > 0 and len(predictions) * len(labels) > _MOST_PAIRS_AT_ONCE:
        rows, columns = _assign_neighbours(predictions, labels, min_iou)
    else:
        rows, columns = _assign(iou(predictions[:, None], labels[None]), min_iou)
    return Matches(
        prediction_index=rows,
        label_index=columns,
        missed=np.setdiff1d(np.arange(len(labels)), columns),
        extra=np.setdiff1d(np.arange(len(predictions)), rows),
    )


def _assign(
    overlap: Float[np.ndarray, "n m"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Rows and columns of the kept pairs, from the IoU of all pairs."""
    # Late: a training that has not come to its first evaluation has no need of it.
    from scipy.optimize import linear_sum_assignment

    allowed = overlap >= min_iou
    # Forbidden pairs are priced before the assignment, not struck out after it: else two useless
    # overlaps of 0.4 would be preferred to one good one of 0.7, and then be thrown away.
    rows, columns = linear_sum_assignment(np.where(allowed, 1.0 - overlap, 1.0))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def _assign_neighbours(
    predictions: Float[np.ndarray, "n 4"], labels: Float[np.ndarray, "m 4"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """The same for a floor above 0: group by group of boxes that allowed pairs hold together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = _side_by_side(predictions, labels)
    overlap = iou(predictions[rows], labels[columns])
    allowed = overlap >= min_iou
    rows, columns, overlap = rows[allowed], columns[allowed], overlap[allowed]
    n, m = len(predictions), len(labels)
    graph = coo_array((np.ones(len(rows)), (rows, n + columns)), shape=(n + m, n + m))
    _, group_of = connected_components(graph, directed=False)
    by_group = np.argsort(group_of[rows], kind="stable")
    sizes = np.unique(group_of[rows], return_counts=True)[1]
    chosen = []
    for group in np.split(by_group, np.cumsum(sizes)[:-1]):
        if len(group) > 1:
            own_rows, at_row = np.unique(rows[group], return_inverse=True)
            own_columns, at_column = np.unique(columns[group], return_inverse=True)
            own_overlap = np.zeros((len(own_rows), len(own_columns)))
            own_overlap[at_row, at_column] = overlap[group]
            kept_rows, kept_columns = _assign(own_overlap, min_iou)
            chosen.append((own_rows[kept_rows], own_columns[kept_columns]))
        else:
            chosen.append((rows[group], columns[group]))
    rows, columns = (np.concatenate(each) for each in zip(*chosen, strict=True))
    order = np.argsort(rows)
    return rows[order], columns[order]


def _side_by_side(
    first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """All pairs that share some x, and some that do not: no other can overlap."""
    order = np.argsort(second[:, 0])
    left = second[order, 0]
    widest = max((second[:, 2] - second[:, 0]).max(), 0)
    begin = np.searchsorted(left, first[:, 0] - widest, side="left")
    end = np.maximum(np.searchsorted(left, first[:, 2], side="right"), begin)
    counts = end - begin
    rows = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, order[np.repeat(begin, counts) + within]
