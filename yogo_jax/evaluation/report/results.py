"""What an evaluation leaves in a folder: `metrics.json`, `report.html` and `pictures/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yogo_jax.evaluation.agreement import agreement, counts_by_image
from yogo_jax.evaluation.bootstrap import bootstrap_intervals
from yogo_jax.evaluation.evaluator import Evaluation, ImageResult
from yogo_jax.evaluation.report.curve_figures import Curves, measure_curves
from yogo_jax.evaluation.report.page import Subject, evaluation_page
from yogo_jax.evaluation.report.pictures import (
    picture_names,
    remove_pictures_of,
    write_pictures,
)
from yogo_jax.output.files import write_atomically, write_json


def write_results(
    folder: Path,
    evaluation: Evaluation,
    subject: Subject,
    *,
    checkpoint: Path,
    step: int,
    pictures: int,
) -> dict[str, Any]:
    """Writes everything into the folder, and returns what `metrics.json` holds.

    Args:
      folder: made if it is not there.
      evaluation: with its images.
      subject: what was evaluated.
      checkpoint: whose weights they were.
      step: of the checkpoint.
      pictures: how many images to draw, from the first on.

    Raises:
      UserError: an image can no longer be read.
    """
    spec, images = subject.spec, evaluation.images
    curves = measure_curves(images, spec.image_hw, spec.class_names)
    metrics = {
        **{key: value for key, value in evaluation.metrics.items() if key != "loss"},
        "test_loss": evaluation.metrics["loss"],
        "intervals": bootstrap_intervals(images, spec.image_hw, spec.class_names),
        **_more(images, curves, spec.class_names),
        "thresholds": {
            **subject.thresholds._asdict(),
            "min_scores": list(subject.thresholds.min_scores),
        },
        "checkpoint": str(checkpoint),
        "step": step,
        "class_temperature": spec.class_temperature,
        "picture_files": picture_names(images, pictures),
    }
    remove_pictures_of(folder / "metrics.json", folder / "pictures", metrics["picture_files"])
    write_json(folder / "metrics.json", metrics)
    write_pictures(images, spec, folder / "pictures", pictures)
    page = evaluation_page(images, metrics, curves, subject)
    write_atomically(folder / "report.html", page)
    return metrics


def _more(
    images: Sequence[ImageResult], curves: Curves, class_names: Sequence[str]
) -> dict[str, Any]:
    """Of each class: agreement of its counts, its best threshold, the area under its ROC curve."""
    predicted, true = counts_by_image(images, len(class_names))
    counts: dict[str, Mapping[str, Any]] = {}
    best: dict[str, Mapping[str, float] | None] = {}
    areas: dict[str, float | None] = {}
    for index, name in enumerate(class_names):
        sums = {
            "true": int(true[:, index].sum()),
            "predicted": int(predicted[:, index].sum()),
        }
        agreed = agreement(predicted[:, index], true[:, index])
        counts[name] = {**sums, **agreed._asdict()}
        curve, roc = curves.by_objectness[name], curves.rocs[name]
        at = None if curve is None else curve.best
        best[name] = None
        if curve is not None and at is not None:
            best[name] = {
                "f1": float(curve.f1[at]),
                "objectness": float(curve.thresholds[at]),
            }
        areas[name] = None if roc is None else roc.area
    return {"counts_by_class": counts, "best_f1_by_class": best, "roc_area_by_class": areas}
