"""Slow NumPy twins of the device code, written from the definitions and not from the code."""

import math

import numpy as np


def bin_targets(boxes_cxcywh, class_ids, valid, grid_hw):
    """Targets by a loop over the labels: a later label overwrites an earlier one."""
    rows, columns = grid_hw
    objectness = np.zeros(grid_hw, np.float32)
    boxes_xyxy = np.zeros((*grid_hw, 4), np.float32)
    classes = np.zeros(grid_hw, np.int32)
    for (xc, yc, w, h), class_id, is_valid in zip(boxes_cxcywh, class_ids, valid, strict=True):
        if not is_valid:
            continue
        row = min(math.floor(np.float32(yc) * np.float32(rows)), rows - 1)
        column = min(math.floor(np.float32(xc) * np.float32(columns)), columns - 1)
        objectness[row, column] = 1
        boxes_xyxy[row, column] = (xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2)
        classes[row, column] = class_id
    return objectness, boxes_xyxy, classes


def iou(a, b):
    """IoU of two single boxes as corners."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def ciou_loss(a, b):
    """Complete IoU loss of two single boxes as corners (arXiv:1911.08287), in float64."""
    hull_width = max(a[2], b[2]) - min(a[0], b[0])
    hull_height = max(a[3], b[3]) - min(a[1], b[1])
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    overlap = iou(a, b)
    v = (
        4
        / math.pi**2
        * (math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))) ** 2
    )
    alpha = v / (1 - overlap + v) if v else 0.0
    return 1 - overlap + distance / (hull_width**2 + hull_height**2) + alpha * v


def greedy_nms(boxes_xyxy, scores, iou_threshold):
    """Rows that survive, best first; of equal scores the first row leads."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    kept: list[int] = []
    for row in order:
        if all(iou(boxes_xyxy[row], boxes_xyxy[other]) <= iou_threshold for other in kept):
            kept.append(row)
    return kept


def decided_class(objectness, class_probs, class_thresholds) -> int | None:
    """The class by which a box counts under thresholds of classes, or None; the first of equals."""
    best, best_ratio = 0, -1.0
    scores = [np.float32(objectness) * np.float32(prob) for prob in class_probs]
    for class_id, (score, threshold) in enumerate(zip(scores, class_thresholds, strict=True)):
        ratio = float(score * (np.float32(1) / np.float32(threshold)))
        if ratio > best_ratio:
            best, best_ratio = class_id, ratio
    return best if scores[best] >= np.float32(class_thresholds[best]) else None
