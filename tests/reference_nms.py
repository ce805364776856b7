"""Slow, plain oracle of how predictions of one image are kept: threshold, then greedy NMS."""

import numpy as np

from reference import greedy_nms


def format_predictions(rows, *, objectness_threshold=0.5, iou_threshold=0.5):
    """Boxes as xyxy and class probabilities kept of rows `xc yc w h objectness classes`."""
    rows = rows[rows[:, 4] > objectness_threshold]
    centres, sizes, class_probs = rows[:, :2], rows[:, 2:4], rows[:, 5:]
    boxes_xyxy = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    scores = rows[:, 4] * class_probs.max(axis=1)
    kept = np.array(greedy_nms(boxes_xyxy, scores, iou_threshold), int)
    return boxes_xyxy[kept], class_probs[kept]
