"""Which prediction belongs to which true box: the assignment that the metrics are counted on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


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


def pairwise_iou(
    first_xyxy: Float[np.ndarray, "n 4"], second_xyxy: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every box of one set with every box of the other.

    A box without area overlaps nothing, not even itself: its IoU is 0, never NaN.
    """
    return _iou(first_xyxy[:, None], second_xyxy[None])


def _iou(
    first_xyxy: Float[np.ndarray, "*#s 4"], second_xyxy: Float[np.ndarray, "*#s 4"]
) -> Float[np.ndarray, "*s"]:
    """Of boxes that broadcast against each other."""
    first, second = first_xyxy.astype(np.float64), second_xyxy.astype(np.float64)
    top_left = np.maximum(first[..., :2], second[..., :2])
    bottom_right = np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.clip(bottom_right - top_left, 0.0, None).prod(axis=-1)
    union = _areas(first) + _areas(second) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


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
    pairs = len(prediction_boxes_xyxy) * len(label_boxes_xyxy)
    assign = _assign_neighbours if min_iou > 0 and pairs > _MOST_PAIRS_AT_ONCE else _assign_all
    rows, columns = assign(prediction_boxes_xyxy, label_boxes_xyxy, min_iou)
    return Matches(
        prediction_index=rows,
        label_index=columns,
        missed=np.setdiff1d(np.arange(len(label_boxes_xyxy)), columns),
        extra=np.setdiff1d(np.arange(len(prediction_boxes_xyxy)), rows),
    )


def _assign_all(
    predictions: Float[np.ndarray, "n 4"], labels: Float[np.ndarray, "m 4"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Rows and columns of the kept pairs, from all pairs at once."""
    return _assign(pairwise_iou(predictions, labels), min_iou)


def _assign(
    iou: Float[np.ndarray, "n m"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    # Late: a training that has not come to its first evaluation has no need of it.
    from scipy.optimize import linear_sum_assignment

    allowed = iou >= min_iou
    # Forbidden pairs are priced before the assignment, not struck out after it: else two useless
    # overlaps of 0.4 would be preferred to one good one of 0.7, and then be thrown away.
    rows, columns = linear_sum_assignment(np.where(allowed, 1.0 - iou, 1.0))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def _assign_neighbours(
    predictions: Float[np.ndarray, "n 4"], labels: Float[np.ndarray, "m 4"], min_iou: float
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """The same for a floor above 0: group by group of boxes that allowed pairs hold together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = _side_by_side(predictions, labels)
    iou = _iou(predictions[rows], labels[columns])
    allowed = iou >= min_iou
    rows, columns, iou = rows[allowed], columns[allowed], iou[allowed]
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
            overlap = np.zeros((len(own_rows), len(own_columns)))
            overlap[at_row, at_column] = iou[group]
            kept_rows, kept_columns = _assign(overlap, min_iou)
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


def _areas(boxes_xyxy: Float[np.ndarray, "*s 4"]) -> Float[np.ndarray, "*s"]:
    """Areas; 0 for a box turned inside out."""
    return np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0.0, None).prod(axis=-1)
