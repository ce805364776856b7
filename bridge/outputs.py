"""Mean AP of an exported model over labelled images."""

from typing import Any

import numpy as np

from bridge.frames import Strips
from bridge.runtime import OnnxModel, OpenVinoModel
from yogo_jax.detector.found import Thresholds, detections_of
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.evaluator import MEAN_AP_OBJECTNESS
from yogo_jax.metrics.mean_ap import MeanAveragePrecision


def mean_ap_of(
    spec: ModelSpec, model: OnnxModel | OpenVinoModel, labelled: Strips
) -> dict[str, Any]:
    """Mean AP of a model, as `yogo_jax.evaluate` measures it."""
    mean_ap = MeanAveragePrecision(spec.class_names)
    thresholds = Thresholds(objectness=MEAN_AP_OBJECTNESS)
    for start in range(0, len(labelled), model.batch_size):
        indices = range(start, min(start + model.batch_size, len(labelled)))
        outputs = model.run(np.stack([labelled.frame(i) for i in indices]))
        for i, output in zip(indices, outputs, strict=True):
            found = detections_of(output, thresholds)
            labels = labelled.labels_of(i)
            mean_ap.update(found.boxes_xyxy, found.scores, found.class_ids, *labels)
    return mean_ap.compute()
