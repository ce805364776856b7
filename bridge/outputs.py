"""What the outputs of an exported model say: detections, and mean AP over labelled images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bridge.frames import Strips
from bridge.runtimes import OnnxModel, OpenVinoModel
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import detect
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.evaluator import MEAN_AP_OBJECTNESS, Found, Thresholds, on_host
from yogo_jax.evaluation.mean_ap import MAX_DETECTIONS, MeanAveragePrecision


def detections_of(
    outputs: Float[np.ndarray, "outputs gh gw"], thresholds: Thresholds | None = None
) -> Found:
    """Detections of one image's outputs after NMS."""
    thresholds = thresholds or Thresholds()
    cells = jnp.asarray(outputs.transpose(1, 2, 0))
    # Their softmax is the probabilities that the model gave.
    logits = jnp.log(jnp.maximum(cells[..., 5:], 1e-30))
    found = _detect(
        Predictions(cells[..., :4], cells[..., 4], logits),
        objectness_threshold=thresholds.objectness,
        iou_threshold=thresholds.iou,
        min_class_confidence=thresholds.min_class_confidence,
        max_detections=min(MAX_DETECTIONS, cells.shape[0] * cells.shape[1]),
    )
    return on_host(found)


_detect = jax.jit(
    detect,
    static_argnames=(
        "objectness_threshold",
        "iou_threshold",
        "min_class_confidence",
        "max_detections",
    ),
)


def mean_ap_of(
    spec: ModelSpec, model: OnnxModel | OpenVinoModel, labelled: Strips
) -> dict[str, Any]:
    """Mean AP of a model, as `yogo_jax.evaluate` measures it."""
    mean_ap = MeanAveragePrecision(spec.class_names, spec.image_hw)
    thresholds = Thresholds(objectness=MEAN_AP_OBJECTNESS)
    for start in range(0, len(labelled), model.batch_size):
        indices = range(start, min(start + model.batch_size, len(labelled)))
        outputs = model.run(np.stack([labelled.frame(i) for i in indices]))
        for i, output in zip(indices, outputs, strict=True):
            found = detections_of(output, thresholds)
            labels = labelled.labels_of(i)
            mean_ap.update(found.boxes_xyxy, found.scores, found.class_ids, *labels)
    return mean_ap.compute()
