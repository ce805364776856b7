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
