"""Evaluations made by hand or drawn at random: what the evaluator would give, without a network."""

from pathlib import Path

import numpy as np

from yogo_jax.detector.detections import Detections
from yogo_jax.detector.losses import LossTerms
from yogo_jax.metrics.confusion import DetectionMetrics, match_boxes
from yogo_jax.metrics.evaluator import Evaluation, ImageResult
from yogo_jax.metrics.mean_ap import MeanAveragePrecision, OriginalMeanAveragePrecision


OBJECTNESS_THRESHOLD = 0.5


def image_result(boxes, objectness, class_probs, labels, label_ids, *, path="frame.png", loss=1.0):
    """One image, its detections in any order; those over 0.5 are found, all are ranked."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    objectness = np.asarray(objectness, np.float32)
    class_probs = np.asarray(class_probs, np.float32)
    labels = np.asarray(labels, np.float32).reshape(-1, 4)
    kept = objectness > OBJECTNESS_THRESHOLD
    ranked = Detections(
        boxes_xyxy=boxes,
        objectness=objectness,
        class_probs=class_probs,
        class_names=tuple(f"class {i}" for i in range(class_probs.shape[1])),
        image_hw=(100, 200),
    )
    return ImageResult(
        path=str(path),
        found=ranked[kept],
        ranked=ranked,
        label_boxes_xyxy=labels,
        label_class_ids=np.asarray(label_ids, np.int32),
        matches=match_boxes(boxes[kept], labels),
        loss_terms=np.full(len(LossTerms._fields), loss / len(LossTerms._fields)),
    )


def random_image(rng, *, classes, labels=12, false_alarms=3, decimals=7, **options):
    """Most labels are found a little beside their place, some under another name; some twice."""
    corner = rng.uniform(0, 0.85, (labels, 2))
    truth = np.concatenate([corner, corner + rng.uniform(0.06, 0.14, (labels, 2))], 1)
    label_ids = rng.integers(0, classes, labels)
    source = rng.choice(labels, rng.integers(0, labels + 1)) if labels else np.zeros(0, int)
    beside = truth[source] + rng.normal(0, 0.008, (len(source), 4))
    alarm = rng.uniform(0, 0.8, (rng.integers(0, false_alarms + 1), 2))
    boxes = np.concatenate([beside, np.concatenate([alarm, alarm + 0.1], 1)])
    logits = rng.normal(0, 1, (len(boxes), classes))
    logits[np.arange(len(source)), label_ids[source]] += 2
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    objectness = rng.uniform(0.06, 1, len(boxes)).round(decimals)
    return image_result(boxes, objectness, probs, truth, label_ids, **options)


def random_images(seed, count=12, **options):
    rng = np.random.default_rng(seed)
    return [random_image(rng, **options) for _ in range(count)]


def evaluation_of(images, class_names):
    """The images with the metrics that an evaluator counts of them."""
    metrics = DetectionMetrics(class_names)
    mean_aps = MeanAveragePrecision(class_names), OriginalMeanAveragePrecision(class_names)
    for image in images:
        labels = image.label_boxes_xyxy, image.label_class_ids
        metrics.update(image.found.boxes_xyxy, image.found.class_probs, *labels)
        ranked = image.ranked
        for mean_ap in mean_aps:
            mean_ap.update(ranked.boxes_xyxy, ranked.objectness, ranked.class_probs, *labels)
    terms = np.mean([image.loss_terms for image in images], axis=0).tolist()
    values = {
        **mean_aps[0].compute(),
        **mean_aps[1].compute(),
        **metrics.compute(),
        "loss": sum(terms),
        "loss_terms": dict(zip(LossTerms._fields, terms, strict=True)),
    }
    return Evaluation(values, tuple(images))


def labelled_images(definition: Path, seed: int, classes: int):
    """Results for the images of a data set on disk: boxes near the labels of its files."""
    rng = np.random.default_rng(seed)
    images = []
    for path in sorted((definition.parent / "images").rglob("*.png")):
        label_file = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        rows = np.loadtxt(label_file, ndmin=2)
        labels = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1)
        ids = rows[:, 0].astype(np.int32)
        found = np.flatnonzero(rng.uniform(size=len(ids)) < 0.9)
        boxes = labels[found] + rng.normal(0, 0.01, (len(found), 4))
        boxes = np.concatenate([boxes, [[0.02, 0.02, 0.2, 0.3]]])
        logits = rng.normal(0, 0.5, (len(boxes), classes))
        logits[np.arange(len(found)), ids[found]] += 2
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        objectness = rng.uniform(0.3, 1, len(boxes))
        loss = float(rng.uniform(1, 9))
        images.append(image_result(boxes, objectness, probs, labels, ids, path=path, loss=loss))
    return images
