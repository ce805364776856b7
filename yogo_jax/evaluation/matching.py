"""Which prediction belongs to which true box: the assignment that the metrics are counted on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment


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
    first, second = first_xyxy.astype(np.float64), second_xyxy.astype(np.float64)
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0.0, None).prod(axis=-1)
    union = _areas(first)[:, None] + _areas(second)[None, :] - intersection
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
    iou = pairwise_iou(prediction_boxes_xyxy, label_boxes_xyxy)
    allowed = iou >= min_iou
    # Forbidden pairs are priced before the assignment, not struck out after it: else two useless
    # overlaps of 0.4 would be preferred to one good one of 0.7, and then be thrown away.
    rows, columns = linear_sum_assignment(np.where(allowed, 1.0 - iou, 1.0))
    kept = allowed[rows, columns]
    rows, columns = rows[kept], columns[kept]
    return Matches(
        prediction_index=rows,
        label_index=columns,
        missed=np.setdiff1d(np.arange(len(label_boxes_xyxy)), columns),
        extra=np.setdiff1d(np.arange(len(prediction_boxes_xyxy)), rows),
    )


def _areas(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Areas; 0 for a box turned inside out."""
    return np.clip(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0.0, None).prod(axis=-1)
