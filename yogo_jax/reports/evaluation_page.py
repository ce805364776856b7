"""The results of an evaluation in a folder: `metrics.json`, pictures and `report.html`.

Pictures show evaluated frames with their boxes; the pixels are read again from the files.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.data.images import read_image
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.drawing import OUTCOMES_LEGEND, draw_boxes, draw_outcomes
from yogo_jax.files import whole_file, write_atomically, write_json
from yogo_jax.metrics.curves import rank
from yogo_jax.metrics.evaluator import Evaluation, ImageResult
from yogo_jax.metrics.intervals import agreement, bootstrap_intervals, counts_by_image
from yogo_jax.metrics.sensitivity import sensitivity_at_false_positives
from yogo_jax.reports.evaluation_figures import (
    MAX_CLASSES,
    Curves,
    agreement_figure,
    calibration_of,
    confusion_figure,
    count_scatter,
    drawn_classes,
    f1_figure,
    free_response_figure,
    measure_curves,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
)
from yogo_jax.reports.findings import findings_of
from yogo_jax.reports.history import History, history_figures
from yogo_jax.reports.pages import Block, Code, Picture, Section, Table, Text, render_page
from yogo_jax.reports.tables import originals_mean_ap, sensitivity_table


WORST_FRAMES = 6
# With fewer images the resamples of the bootstrap are too similar for exact percentiles.
FEW_IMAGES = 20
# Pictures on a page are reduced to this longer side. From the second size on they are wide.
MAX_SIDE_PX = 1000
WIDE_FROM_PX = 800
# The name of a picture has at most so many characters of the image's name.
MAX_STEM = 60
_PICTURE_NAME = re.compile(r"[0-9]{3,}_[^/\\\0]*\.png", re.DOTALL)


class Subject(NamedTuple):
    """The subject of an evaluation.

    Attributes:
      title: title of the page.
      subtitle: one line on checkpoint and data.
      spec: description of the model.
      thresholds: thresholds by which boxes were counted.
      config: config of the run; empty if it is not known.
      history: the log of the run; None if it is not known.
    """

    title: str
    subtitle: str
    spec: ModelSpec
    thresholds: Thresholds
    config: Mapping[str, Any]
    history: History | None = None


def write_results(
    folder: Path | None,
    evaluation: Evaluation,
    subject: Subject,
    *,
    checkpoint: Path,
    step: int,
    pictures: int,
) -> dict[str, Any]:
    """Writes metrics, pictures and report, and returns the content of `metrics.json`.

    Args:
      folder: made if it does not exist; None writes nothing.
      evaluation: the evaluation, with its images.
      subject: the subject of the evaluation.
      checkpoint: the evaluated checkpoint.
      step: step of the checkpoint.
      pictures: number of images to draw, from the first on.

    Raises:
      UserError: an image can no longer be read.
    """
    spec, images = subject.spec, evaluation.images
    curves = measure_curves(images, spec.class_names)
    ranking = rank(images, len(spec.class_names), ious=(0.5,))
    metrics = {
        "findings": findings_of(evaluation.metrics, subject.thresholds),
        **{key: value for key, value in evaluation.metrics.items() if key != "loss"},
        "test_loss": evaluation.metrics["loss"],
        "intervals": bootstrap_intervals(images, spec.class_names),
        **_by_class(images, curves, spec.class_names),
        "sensitivity_at_false_positives": sensitivity_at_false_positives(ranking, spec.class_names),
        "thresholds": {
            **subject.thresholds._asdict(),
            "class_thresholds": list(subject.thresholds.class_thresholds),
        },
        "checkpoint": str(checkpoint),
        "step": step,
        "class_temperature": spec.class_temperature,
        "picture_files": picture_names(images, pictures),
    }
    if folder is None:
        return metrics
    remove_pictures_of(folder / "metrics.json", folder / "pictures", metrics["picture_files"])
    write_json(folder / "metrics.json", metrics)
    write_pictures(images, spec, folder / "pictures", pictures)
    page = evaluation_page(images, metrics, curves, subject)
    write_atomically(folder / "report.html", page)
    return metrics


def _by_class(
    images: Sequence[ImageResult], curves: Curves, class_names: Sequence[str]
) -> dict[str, Any]:
    """Agreement of counts, best threshold and area under the ROC curve, for each class."""
    predicted, true = counts_by_image(images, len(class_names))
    counts: dict[str, Mapping[str, Any]] = {}
    best: dict[str, Mapping[str, float] | None] = {}
    areas: dict[str, float | None] = {}
    for index, name in enumerate(class_names):
        sums = {"true": int(true[:, index].sum()), "predicted": int(predicted[:, index].sum())}
        agreed = agreement(predicted[:, index], true[:, index])
        counts[name] = {**sums, **agreed._asdict()}
        curve, roc = curves.by_objectness[name], curves.rocs[name]
        at = None if curve is None else curve.best
        best[name] = None
        if curve is not None and at is not None:
            best[name] = {"f1": float(curve.f1[at]), "objectness": float(curve.thresholds[at])}
        areas[name] = None if roc is None else roc.area
    return {"counts_by_class": counts, "best_f1_by_class": best, "roc_area_by_class": areas}


def evaluation_page(
    images: Sequence[ImageResult], metrics: Mapping[str, Any], curves: Curves, subject: Subject
) -> str:
    """Returns the report as HTML.

    Args:
      images: images of the evaluation, at least one.
      metrics: content of `metrics.json`.
      curves: curves of the same images.
      subject: the subject of the evaluation.

    Raises:
      UserError: an image of the worst frames can no longer be read.
    """
    names = subject.spec.class_names
    predicted, true = counts_by_image(images, len(names))
    styles = drawn_classes(names, true.sum(0))
    worst = worst_pictures(images, subject.spec, WORST_FRAMES)
    history = subject.history
    sections = [
        Section("findings", "Findings", [Text(each) for each in metrics["findings"]]),
        _summary(metrics),
        _classes(metrics, true.sum(0).tolist()),
        _curves(metrics, curves, styles, subject),
        _confusion(metrics),
        Section("calibration", "Calibration", [_reliability(images)]),
        _counts(predicted, true, metrics, styles, subject),
        Section("worst", "Frames of the largest loss", [Text(OUTCOMES_LEGEND), *worst]),
        Section("training", "Training", [] if history is None else history_figures([history])),
        _config(subject),
    ]
    return render_page(subject.title, subject.subtitle, [each for each in sections if each.blocks])


def _summary(metrics: Mapping[str, Any]) -> Section:
    intervals = metrics["intervals"]
    rows: list[list[object]] = []
    for title, key in (("mAP50", "mAP50"), ("mAP50-95", "mAP50_95")):
        rows.append([title, metrics[key], *(intervals[key] or (None, None))])
    for title, key in (("calibration error", "calibration_error"), ("test loss", "test_loss")):
        rows.append([title, metrics[key], None, None])
    counts = (
        f"{metrics['images']:,} images with {metrics['objects']:,} true boxes; "
        f"{metrics['predictions']:,} predicted, {metrics['matched']:,} of them matched, "
        f"{sum(metrics['missed_by_class'].values()):,} missed, "
        f"{sum(metrics['extra_by_class'].values()):,} extra."
    )
    resamples = intervals["resamples"]
    how = f"95 % intervals: bootstrap over the images, {resamples:,} resamples."
    if not resamples:
        how = "No intervals: they need two images or more."
    elif metrics["images"] < FEW_IMAGES:
        how += f" With fewer than {FEW_IMAGES} images they are rough."
    caption = f"{how} {originals_mean_ap(metrics)}".strip()
    table = Table(["metric", "value", "95 % from", "to"], rows, caption)
    return Section("summary", "Summary", [Text(counts), table])


def _classes(metrics: Mapping[str, Any], objects: Sequence[int]) -> Section:

    def with_range(key: str, name: str) -> tuple[object, object]:
        return metrics[key][name], _range(metrics["intervals"][key][name])

    ranked: list[list[object]] = []
    counted: list[list[object]] = []
    for name, count in zip(metrics["AP50_by_class"], objects, strict=True):
        best = metrics["best_f1_by_class"][name] or {"f1": None, "objectness": None}
        ranked.append(
            [
                name,
                count,
                *with_range("AP50_by_class", name),
                metrics["AP50_95_by_class"][name],
                *(best[key] for key in ("f1", "objectness")),
                metrics["roc_area_by_class"][name],
            ]
        )
        counted.append(
            [
                name,
                *with_range("precision_by_class", name),
                *with_range("recall_by_class", name),
                *(metrics[f"{key}_by_class"][name] for key in ("accuracy", "missed", "extra")),
            ]
        )
    ranked_header = ["class", "true boxes", "AP50", "95 %", "AP50-95", "best F1", "at objectness"]
    counted_header = ["class", "precision", "95 %", "recall", "95 %", "accuracy", "missed", "extra"]
    blocks: list[Block] = [
        Table([*ranked_header, "ROC area"], ranked, "Over all thresholds."),
        Table(counted_header, counted, "At the set thresholds."),
    ]
    sensitivity = sensitivity_table(metrics)
    if sensitivity is not None:
        caption = f"{sensitivity.title} {sensitivity.note}".strip()
        blocks.append(Table(sensitivity.header, sensitivity.rows, caption))
    return Section("classes", "Classes", blocks)


def _curves(
    metrics: Mapping[str, Any], curves: Curves, styles: Mapping[str, Any], subject: Subject
) -> Section:
    figures = [
        precision_recall_figure(curves, styles, metrics),
        f1_figure(curves, styles, subject.thresholds.objectness),
        free_response_figure(curves, styles),
        roc_figure(curves, styles),
    ]
    blocks: list[Block] = [figure for figure in figures if figure is not None]
    if not blocks:
        blocks = [Text("There is no true box, so there is no curve.")]
    elif len(subject.spec.class_names) > MAX_CLASSES:
        blocks.append(Text(f"Lines are drawn for the {MAX_CLASSES} most frequent classes."))
    never = [name for name in subject.spec.class_names if curves.by_score[name] is None]
    if figures[0] is not None and never:
        blocks.append(Text(f"Classes without a true box have no line: {', '.join(never)}."))
    return Section("curves", "Thresholds", blocks)


def _confusion(metrics: Mapping[str, Any]) -> Section:
    names, matrix = metrics["confusion"]["class_names"], metrics["confusion"]["matrix"]
    rows = [[name, *row] for name, row in zip(names, matrix, strict=True)]
    table = Table(["true", *names], rows, "The same as numbers: true classes by predicted ones.")
    return Section("confusion", "Confusion", [confusion_figure(names, matrix), table])


def _reliability(images: Sequence[ImageResult]) -> Block:
    figure = reliability_figure(calibration_of(images))
    return figure or Text("No detection matches a true box, so there is nothing to calibrate.")


def _counts(
    predicted: np.ndarray,
    true: np.ndarray,
    metrics: Mapping[str, Any],
    styles: Mapping[str, Any],
    subject: Subject,
) -> Section:
    header = ["class", "true", "predicted", "bias", "95 %", "lower limit", "upper limit"]
    intervals = metrics["intervals"]["count_bias_by_class"]
    rows: list[list[object]] = [
        [
            name,
            *(each[key] for key in ("true", "predicted", "bias")),
            _range(intervals[name]),
            *(each[key] for key in ("lower", "upper")),
        ]
        for name, each in metrics["counts_by_class"].items()
    ]
    all_predicted, all_true = predicted.sum(1), true.sum(1)
    agreed = agreement(all_predicted, all_true)
    totals = [int(all_true.sum()), int(all_predicted.sum())]
    rows.append(["all", *totals, agreed.bias, None, agreed.lower, agreed.upper])
    caption = (
        "Boxes in all frames. Bias: mean of predicted minus true over the frames. Limits of "
        "agreement: 95 % of frames are expected to lie between them."
    )
    blocks: list[Block] = [
        count_scatter(predicted, true, styles, subject.spec.class_names),
        agreement_figure(all_predicted, all_true, agreed),
        Table(header, rows, caption),
    ]
    return Section("counts", "Counts in a frame", blocks)


def _config(subject: Subject) -> Section:
    blocks: list[Block] = [
        Code("Model", json.dumps(subject.spec.to_dict(), indent=2)),
        Code("Thresholds", json.dumps(subject.thresholds._asdict(), indent=2)),
    ]
    if subject.config:
        blocks.append(Code("Config of the run", json.dumps(dict(subject.config), indent=2)))
    return Section("config", "Config", blocks)


def _range(interval: Sequence[float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def write_pictures(
    images: Sequence[ImageResult], spec: ModelSpec, folder: Path, count: int
) -> None:
    """Writes the first images as PNG files, with predicted boxes (solid) and true ones (dashed).

    Args:
      images: images of an evaluation.
      spec: description of the model: image format and class names.
      folder: made if there is something to write.
      count: largest number of pictures.

    Raises:
      UserError: an image can no longer be read.
    """
    for name, image in zip(picture_names(images, count), images[:count], strict=True):
        picture = draw_boxes(
            _pixels(image, spec),
            image.found.boxes_xyxy,
            image.found.class_ids,
            spec.class_names,
            scores=image.found.scores,
            label_boxes_xyxy=image.label_boxes_xyxy,
            label_class_ids=image.label_class_ids,
        )
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / name) as temporary:
            picture.save(temporary, format="PNG")


def _pixels(image: ImageResult, spec: ModelSpec) -> UInt8[np.ndarray, "h w c"]:
    return read_image(
        image.path, image_hw=spec.image_hw, rgb=spec.rgb, apply_orientation=spec.apply_orientation
    )


def picture_names(images: Sequence[ImageResult], count: int) -> list[str]:
    """Returns the file names that `write_pictures` uses."""
    return [
        f"{index:03d}_{Path(image.path).stem[:MAX_STEM]}.png"
        for index, image in enumerate(images[:count])
    ]


def remove_pictures_of(metrics: Path, folder: Path, keep: Sequence[str]) -> None:
    """Removes the pictures of an earlier evaluation, so that nobody takes them for new ones.

    Args:
      metrics: the `metrics.json` of that evaluation, which names them; without it, or without
        names in it, nothing is removed.
      folder: folder of the pictures. All other files in it stay.
      keep: names of files that will be written next.
    """
    try:
        names = json.loads(metrics.read_text(encoding="utf-8"))["picture_files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and _PICTURE_NAME.fullmatch(name) and name not in keep:
            (folder / name).unlink(missing_ok=True)


def worst_pictures(images: Sequence[ImageResult], spec: ModelSpec, count: int) -> list[Picture]:
    """Draws the images with the largest loss, worst first: found, missed and extra boxes.

    Args:
      images: images of an evaluation.
      spec: description of the model: image format and class names.
      count: largest number of pictures.

    Raises:
      UserError: an image can no longer be read.
    """
    worst = sorted(images, key=lambda image: -image.loss)[:count]
    return [_picture(image, spec) for image in worst]


def _picture(image: ImageResult, spec: ModelSpec) -> Picture:
    matches = image.matches
    drawn = draw_outcomes(
        _pixels(image, spec),
        image.found.boxes_xyxy,
        image.found.class_ids,
        image.found.scores,
        image.label_boxes_xyxy,
        image.label_class_ids,
        spec.class_names,
        pairs=np.stack([matches.prediction_index, matches.label_index], axis=1),
    )
    drawn.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    ids = image.found.class_ids[matches.prediction_index]
    misnamed = int((ids != image.label_class_ids[matches.label_index]).sum())
    caption = (
        f"{Path(image.path).name}: loss {image.loss:.2f}; {len(image.label_class_ids)} true boxes, "
        f"{len(matches.missed)} missed, {len(matches.extra)} extra, {misnamed} named wrong"
    )
    return Picture(drawn, caption, wide=max(drawn.size) >= WIDE_FROM_PX, lossy=True)
