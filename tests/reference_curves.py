"""Slow twins of the curves: at every threshold the boxes are matched anew, in plain loops."""

import numpy as np

from reference import iou


def true_and_false(images, keep, scores_of, *, class_id=None):
    """(found true boxes, false alarms) of the detections whose score `keep` keeps."""
    found = false = 0
    for image in images:
        scores = scores_of(image.ranked)
        ids = image.ranked.class_probs.argmax(1)
        free = set(range(len(image.label_class_ids)))
        for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
            if not keep(scores[i]) or class_id not in (None, ids[i]):
                continue
            box = image.ranked.boxes_xyxy[i]
            overlap = [iou(box, label) for label in image.label_boxes_xyxy]
            able = [j for j in free if image.label_class_ids[j] == ids[i] and overlap[j] >= 0.5]
            if able:
                free.remove(max(able, key=lambda j: overlap[j]))
                found += 1
            else:
                false += 1
    return found, false


def objects_of(images, class_id=None):
    return sum(
        class_id in (None, label) for image in images for label in image.label_class_ids.tolist()
    )


def area_by_pairs(positive, negative):
    """The area under a ROC curve: how often a positive is above a negative; a tie is half."""
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


def matched_pairs(images):
    """(class probabilities, true class) of every matched pair."""
    return [
        (image.found.class_probs[i], int(image.label_class_ids[j]))
        for image in images
        for i, j in zip(image.matches.prediction_index, image.matches.label_index, strict=True)
    ]


def scores_of(ranked):
    return ranked.objectness * ranked.class_probs.max(1)


def objectness_of(ranked):
    return np.asarray(ranked.objectness)
