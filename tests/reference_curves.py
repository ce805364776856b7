"""Slow twins of the curves: at every threshold the boxes are matched anew, in plain loops."""

import numpy as np

from reference import iou


def true_and_false(images, keep, candidates_of, *, class_id=None):
    """(found true boxes, false alarms) of the candidates whose score `keep` keeps.

    `candidates_of` gives (box, class, score) of each candidate of an image, and the true boxes.
    """
    found = false = 0
    for image in images:
        candidates, labels = candidates_of(image)
        free = set(range(len(image.label_class_ids)))
        for box, named, score in sorted(candidates, key=lambda each: -each[2]):
            if not keep(score) or class_id not in (None, named):
                continue
            overlap = [iou(box, label) for label in labels]
            able = [j for j in free if image.label_class_ids[j] == named and overlap[j] >= 0.5]
            if able:
                free.remove(max(able, key=lambda j: overlap[j]))
                found += 1
            else:
                false += 1
    return found, false


def by_class(image):
    """COCO's candidates: each box for every class with a score, cut at the frame."""
    candidates = []
    ranked = image.ranked
    for box, objectness, probs in zip(
        ranked.boxes_xyxy, ranked.objectness, ranked.class_probs, strict=True
    ):
        x1, y1, x2, y2 = np.clip(box, 0, 1)
        for class_id, prob in enumerate(probs):
            if x1 < x2 and y1 < y2 and objectness * prob >= 0.001:
                candidates.append(((x1, y1, x2, y2), class_id, objectness * prob))
    return candidates, np.clip(image.label_boxes_xyxy, 0, 1)


def by_objectness(image):
    """Each box for its most probable class alone, with its objectness."""
    ranked = image.ranked
    named = [int(np.argmax(probs)) for probs in ranked.class_probs]
    candidates = list(zip(ranked.boxes_xyxy, named, ranked.objectness, strict=True))
    return candidates, image.label_boxes_xyxy


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
