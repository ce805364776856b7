"""Detections of one image on the host, in NumPy, from the outputs of any engine.

Outputs are what exported models give: [5+k gh gw] = xc, yc, w, h as fractions of the image,
objectness, class probabilities. A checkpoint's predictions are brought into this form too. The
results are those of `nms.select` on the device.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou
from yogo_jax.detector.detections import (
    WHOLE_IMAGE,
    Detections,
    Thresholds,
    check_numbers,
    passes,
)


# Rows of the outputs before the class probabilities, and the one of the objectness.
_BOX_ROWS, _OBJECTNESS_ROW = 5, 4
# Pairs of boxes that are compared at once, at most: all of some 1,400 boxes.
_MOST_PAIRS = 1 << 21
# Neighbouring boxes are searched for in bins of the largest box, widened so that rounding of a
# quotient loses none.
_WIDENED = 1 + 1e-6
# More bins than this along an axis hold less than a box each anyway.
_MOST_BINS = 1 << 20


class Selected(NamedTuple):
    """The boxes that are left of the cells of one image, best first; see `nms.PaddedDetections`."""

    boxes_xyxy: Float[np.ndarray, "n 4"]
    objectness: Float[np.ndarray, " n"]
    class_probs: Float[np.ndarray, "n k"]
    unusable: int


def detections_of(
    outputs: Float[np.ndarray, "outputs gh gw"],
    thresholds: Thresholds,
    *,
    class_names: tuple[str, ...],
    image_hw: tuple[int, int],
    window_xyxy: tuple[float, float, float, float] = WHOLE_IMAGE,
    image: np.ndarray | None = None,
    name: str = "the image",
) -> Detections:
    """Detections of one image's outputs, by descending score of the NMS.

    Args:
      outputs: of the network for the image.
      thresholds: that boxes pass.
      class_names: of the classes.
      image_hw: rows and columns of the image.
      window_xyxy: the part of the image that the network saw, as fractions of the image.
      image: its pixels, to be kept with the detections.
      name: of the image, for the message.

    Raises:
      NotNumbersError: cells where an object may be hold NaN or infinite values.
    """
    selected = select_cells(outputs, thresholds)
    check_numbers(selected.unusable, name)
    return Detections(
        boxes_xyxy=selected.boxes_xyxy,
        objectness=selected.objectness,
        class_probs=selected.class_probs,
        class_names=class_names,
        image_hw=image_hw,
        window_xyxy=window_xyxy,
        image=image,
        class_thresholds=thresholds.class_thresholds,
    )


def select_cells(outputs: Float[np.ndarray, "outputs gh gw"], thresholds: Thresholds) -> Selected:
    """The boxes of one image that pass all thresholds and the NMS, by descending score of the NMS.

    Objectness and NMS come first, over all classes together; classes are decided afterwards, so
    that a box which does not count by its class still suppresses others.
    """
    cells = np.asarray(outputs, np.float32).reshape(len(outputs), -1)
    # A NaN is not below a threshold: it might have been an object.
    rows = cells[:, ~(cells[_OBJECTNESS_ROW] <= thresholds.objectness)].T
    with np.errstate(over="ignore", invalid="ignore"):
        boxes_xyxy = cxcywh_to_xyxy(rows[:, :4])
        objectness, class_probs = rows[:, _OBJECTNESS_ROW], rows[:, _BOX_ROWS:]
        scores = objectness * class_probs.max(-1, initial=-np.inf)
        finite = np.isfinite(boxes_xyxy).all(-1) & np.isfinite(rows[:, _OBJECTNESS_ROW:]).all(-1)
        usable = np.flatnonzero(finite)
        kept = usable[nms(boxes_xyxy[usable], scores[usable], iou_threshold=thresholds.iou)]
    kept = kept[passes(objectness[kept], class_probs[kept], thresholds)]
    return Selected(
        boxes_xyxy[kept], objectness[kept], class_probs[kept], len(finite) - len(usable)
    )


def nms(
    boxes_xyxy: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    *,
    iou_threshold: float,
) -> Int[np.ndarray, " m"]:
    """Rows that survive greedy non-maximum suppression, by descending score.

    Of equal scores the first row leads. A box is suppressed when its IoU with a better surviving
    box is above `iou_threshold`; at exactly the threshold it stays. Only neighbours are compared.
    """
    # A score that is no number, or minus infinity, takes no part.
    rows = np.flatnonzero(scores > -np.inf)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    survivors = []
    while len(rows):
        block = max(_MOST_PAIRS // len(rows), 1)
        alive = _not_suppressed(boxes_xyxy[rows], block, iou_threshold)
        survivors.append(rows[:block][alive[:block]])
        rows = rows[block:][alive[block:]]
    return np.concatenate(survivors) if survivors else rows


def _not_suppressed(
    boxes_xyxy: Float[np.ndarray, "n 4"], block: int, iou_threshold: float
) -> Bool[np.ndarray, " n"]:
    """True for each box that no surviving one of the first `block` suppresses; best first."""
    better, worse = _neighbours(boxes_xyxy, block)
    suppresses = iou(boxes_xyxy[better], boxes_xyxy[worse]) > iou_threshold
    better, worse = better[suppresses], worse[suppresses]
    alive = np.ones(len(boxes_xyxy), bool)
    # What nothing better may still suppress survives, and suppresses: a few rounds settle all.
    while len(better):
        open_ = np.zeros(len(boxes_xyxy), bool)
        open_[worse] = True
        survives = ~open_[better]
        alive[worse[survives]] = False
        left = ~survives & alive[better] & alive[worse]
        better, worse = better[left], worse[left]
    return alive


def _neighbours(
    boxes_xyxy: Float[np.ndarray, "n 4"], block: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """All pairs (i, j), i < j and i < block, of boxes that may overlap.

    Boxes that overlap have centres less than the largest width and height apart, so they lie in the
    same bin of a grid of that pitch or in neighbouring ones, which in row-major order are three
    stretches.
    """
    none = np.zeros(0, np.intp)
    corners = boxes_xyxy.astype(np.float64)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    pitch = (corners[:, 2:] - corners[:, :2]).max(0) * _WIDENED
    if not (pitch > 0).all():
        return none, none  # a box without area overlaps nothing
    bins = np.minimum((centres - centres.min(0)) / pitch, _MOST_BINS).astype(np.int64)
    stride = int(bins[:, 0].max()) + 3
    keys = (bins[:, 1] + 1) * stride + bins[:, 0] + 1
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    around = (keys[:block, None] + np.asarray((-stride, 0, stride))).ravel()
    first = np.searchsorted(ordered, around - 1, side="left")
    counts = np.searchsorted(ordered, around + 1, side="right") - first
    # Places of each stretch, one after the other.
    ends = np.cumsum(counts)
    places = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
    i = np.repeat(np.repeat(np.arange(len(around) // 3), 3), counts)
    j = order[places]
    later = j > i
    return i[later], j[later]
