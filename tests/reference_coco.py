"""AP by pycocotools, the reference implementation of COCO's protocol."""

import contextlib
import io

import numpy as np
import pytest


def pycocotools_ap(images, image_hw, classes, *, max_detections=2000):
    """AP [IoU thresholds, classes] of the reference implementation; -1 where there is no truth."""
    coco = pytest.importorskip("pycocotools.coco").COCO
    evaluator = pytest.importorskip("pycocotools.cocoeval").COCOeval
    rows, columns = image_hw

    def dataset(boxes_of, scores_of, ids_of):
        annotations = []
        for image_id, image in enumerate(images):
            scores = np.ones(len(image[boxes_of])) if scores_of is None else image[scores_of]
            for box, score, class_id in zip(image[boxes_of], scores, image[ids_of], strict=True):
                x1, y1, x2, y2 = box.astype(float) * (columns, rows, columns, rows)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image_id,
                        category_id=int(class_id),
                        bbox=[x1, y1, x2 - x1, y2 - y1],
                        area=(x2 - x1) * (y2 - y1),
                        iscrowd=0,
                        score=float(score),
                    )
                )
        made = coco()
        made.dataset = dict(
            images=[dict(id=i) for i in range(len(images))],
            categories=[dict(id=i) for i in range(classes)],
            annotations=annotations,
        )
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(dataset(3, None, 4), dataset(0, 1, 2), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=1)


def crowded_images(seed, *, images=4, labels=60, predictions=180):
    """More than 100 detections of one class in an image: good, shifted, double and false ones."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        corner = rng.uniform(0, 0.9, (labels, 2))
        truth = np.concatenate([corner, corner + rng.uniform(0.03, 0.1, (labels, 2))], 1)
        source = rng.integers(0, labels, predictions)
        predicted = truth[source] + rng.normal(0, 0.006, (predictions, 4))
        predicted[:, 2:] = np.maximum(predicted[:, 2:], predicted[:, :2] + 0.005)
        # Mostly class 0, so that it alone has more than COCO's 100; class 2 is never true.
        label_ids = rng.choice([0, 1], labels, p=[0.9, 0.1])
        predicted_ids = np.where(rng.uniform(size=predictions) < 0.85, label_ids[source], 2)
        made.append(
            (
                predicted.astype(np.float32),
                # Two digits: many equal scores.
                rng.uniform(size=predictions).round(2).astype(np.float32),
                predicted_ids.astype(np.int32),
                truth.astype(np.float32),
                label_ids.astype(np.int32),
            )
        )
    return made
