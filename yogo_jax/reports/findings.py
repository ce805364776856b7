"""Findings of an evaluation: faults that the reader has to know first, and what to try."""

from collections.abc import Mapping
from typing import Any

from yogo_jax.detector.detections import Thresholds
from yogo_jax.reports.tables import objects_by_class


_USUAL = Thresholds()
# A class whose AP50 is lower is as good as never found.
LEAST_AP50 = 0.01


def findings_of(metrics: Mapping[str, Any], thresholds: Thresholds) -> list[str]:
    """Sentences on what is wrong, most important first; empty if nothing is.

    Args:
      metrics: values of an evaluation.
      thresholds: of its predictions.
    """
    found = (advice_on_nothing_found(metrics, thresholds), _advice_on_classes(metrics))
    return [each for each in found if each is not None]


def advice_on_nothing_found(
    metrics: Mapping[str, Any], thresholds: Thresholds = _USUAL
) -> str | None:
    """Explains why there may be no prediction and says what to change; None if there are some.

    Args:
      metrics: values with `predictions`, `objects` and `images`.
      thresholds: of the predictions.
    """
    if metrics["predictions"] or not metrics["objects"]:
        return None
    found = (
        f"nothing is found: no prediction in {metrics['images']} images with {metrics['objects']} "
        "boxes. "
    )
    if (metrics.get("mAP50") or 0.0) >= LEAST_AP50:
        lower = "try a lower one, --obj-thresh 0.2 of evaluate and infer"
        if thresholds.class_thresholds:
            lower = "choose others on frames like these: yogo-jax calibrate --decision f1"
        found += f"There are boxes below the threshold (mAP50 {metrics['mAP50']:.2f}): {lower}. "
    return (
        f"{found}Early in a training this is usual: most grid cells are empty, and the network "
        "learns them first. With configs/base.py this can take half of 64 epochs, so a short run "
        "may end before. Train with --config configs/strong.py, or longer, or with a lower "
        "--config.loss.no_object_weight. If nothing is found after that, check the labels: "
        "yogo-jax inspect FILE.yml"
    )


def _advice_on_classes(metrics: Mapping[str, Any]) -> str | None:
    """Names the classes that have labels and are never found; None if there is no such class."""
    objects = objects_by_class(metrics)
    lost = [
        f"{name} (boxes: {objects[name]})"
        for name, ap50 in metrics["AP50_by_class"].items()
        if ap50 is not None and ap50 < LEAST_AP50
    ]
    if not lost:
        return None
    return (
        f"AP50 is below {LEAST_AP50:g} for classes that have labels: {', '.join(lost)}. Their "
        "boxes are missed, or get a very low score. Train with --config configs/strong.py, which "
        "puts cells of classes that are very rare into all images (augment.rare_cells), and longer "
        "(--config.train.epochs): rare classes are learnt last. With augment.rare_cells above 0, "
        "--config.augment.rare_cells_weights=1,4,1 (a number for each class) puts in more of one. "
        "Classes with few boxes in training need more labelled frames. Check the labels and the "
        "number of boxes of each class: yogo-jax inspect FILE.yml"
    )
