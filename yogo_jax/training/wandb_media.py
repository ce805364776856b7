"""An evaluation as pictures and tables of Weights & Biases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yogo_jax.data.images import read_image
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.curves import Roc
from yogo_jax.evaluation.evaluator import Evaluation, ImageResult


# Frames of an evaluation that are shown: the same ones each time, so that one sees them change.
PICTURES = 4
# Of each class's curve.
MAX_ROC_POINTS = 200


def evaluation_media(
    evaluation: Evaluation, spec: ModelSpec, rocs: Mapping[str, Roc | None] | None = None
) -> dict[str, Any]:
    """What W&B shows of an evaluation besides its numbers, by name.

    Args:
      evaluation: with its images.
      spec: says how images are read, and the class names.
      rocs: by class, if they were measured.

    Returns:
      `pictures` with the boxes found and the true ones as layers, `classes`, a table of counts and
      metrics by class, `confusion` and, if there are curves, `roc`.

    Raises:
      UserError: an image can no longer be read.
    """
    import wandb

    media: dict[str, Any] = {
        "pictures": [_picture(wandb, image, spec) for image in evaluation.images[:PICTURES]],
        "classes": _classes(wandb, evaluation.metrics, spec.class_names),
        "confusion": _confusion(wandb, evaluation.metrics["confusion"]),
    }
    if rocs is not None and any(rocs.values()):
        media["roc"] = _rocs(wandb, rocs)
    return media


def _picture(wandb: Any, image: ImageResult, spec: ModelSpec) -> Any:
    pixels = read_image(
        image.path, image_hw=spec.image_hw, rgb=spec.rgb, apply_orientation=spec.apply_orientation
    )
    found, names = image.found, dict(enumerate(spec.class_names))
    scores = [
        {"objectness": float(objectness), "score": float(score)}
        for objectness, score in zip(found.objectness, found.scores, strict=True)
    ]
    layers = {
        "found": _boxes(found.boxes_xyxy, found.class_ids, spec.class_names, scores),
        "true": _boxes(image.label_boxes_xyxy, image.label_class_ids, spec.class_names),
    }
    return wandb.Image(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
        caption=f"{image.path}: loss {image.loss:.2f}",
        boxes={name: {"box_data": boxes, "class_labels": names} for name, boxes in layers.items()},
    )


def _boxes(
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    corners = ("minX", "minY", "maxX", "maxY")
    return [
        {
            "position": dict(zip(corners, np.clip(box, 0, 1).tolist(), strict=True)),
            "class_id": int(class_id),
            "box_caption": class_names[class_id],
            **({} if scores is None else {"scores": scores[index]}),
        }
        for index, (box, class_id) in enumerate(zip(boxes_xyxy, class_ids, strict=True))
    ]


_BY_CLASS = (
    "AP50_by_class",
    "AP50_95_by_class",
    "precision_by_class",
    "recall_by_class",
    "accuracy_by_class",
    "missed_by_class",
    "extra_by_class",
)


def _classes(wandb: Any, metrics: Mapping[str, Any], class_names: Sequence[str]) -> Any:
    # Rows are true, columns are found; the last of both is the background.
    matrix = np.asarray(metrics["confusion"]["matrix"])
    columns = ["class", "true", "found", *(key.removesuffix("_by_class") for key in _BY_CLASS)]
    rows = [
        [
            name,
            int(matrix[index].sum()),
            int(matrix[:, index].sum()),
            *(metrics[key][name] for key in _BY_CLASS),
        ]
        for index, name in enumerate(class_names)
    ]
    return wandb.Table(columns=columns, data=rows)


def _confusion(wandb: Any, confusion: Mapping[str, Any]) -> Any:
    names = confusion["class_names"]
    rows = [
        [true, found, int(count)]
        for true, counts in zip(names, confusion["matrix"], strict=True)
        for found, count in zip(names, counts, strict=True)
    ]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows),
        {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        {"title": "Confusion, true against found"},
    )


def _rocs(wandb: Any, rocs: Mapping[str, Roc | None]) -> Any:
    rows = [
        [name, x, y]
        for name, curve in rocs.items()
        if curve is not None
        for x, y in zip(*curve.thinned(MAX_ROC_POINTS), strict=True)
    ]
    return wandb.plot_table(
        "wandb/area-under-curve/v0",
        wandb.Table(columns=["class", "fpr", "tpr"], data=rows),
        {"x": "fpr", "y": "tpr", "class": "class"},
        {
            "title": "ROC by class",
            "x-axis-title": "false positive rate",
            "y-axis-title": "true positive rate",
        },
    )
