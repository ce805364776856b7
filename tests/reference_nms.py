"""Slow, plain oracle of how predictions of one image are kept: threshold, then greedy NMS."""

import numpy as np


def plain_iou(a, b):
    """IoU of two xyxy boxes by the school formula."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0


def greedy_nms(boxes_xyxy, scores, *, iou_threshold):
    """Indices that survive, in descending order of score; equal scores in the order given."""
    kept = []
    for candidate in sorted(range(len(scores)), key=lambda i: -scores[i]):
        overlaps = [plain_iou(boxes_xyxy[candidate], boxes_xyxy[k]) for k in kept]
        if all(overlap <= iou_threshold for overlap in overlaps):
            kept.append(candidate)
    return np.array(kept, int)


def format_predictions(rows, *, objectness_threshold=0.5, iou_threshold=0.5):
    """Boxes as xyxy and class probabilities kept of rows `xc yc w h objectness classes`."""
    rows = rows[rows[:, 4] > objectness_threshold]
    centres, sizes, class_probs = rows[:, :2], rows[:, 2:4], rows[:, 5:]
    boxes_xyxy = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    scores = rows[:, 4] * class_probs.max(axis=1)
    kept = greedy_nms(boxes_xyxy, scores, iou_threshold=iou_threshold)
    return boxes_xyxy[kept], class_probs[kept]
