"""The curves of an evaluation as figures: a line for each class, and one for all together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.metrics.confusion import name_beside
from yogo_jax.metrics.curves import (
    FreeResponse,
    PrecisionRecall,
    Roc,
    free_response,
    precision_recall,
    rank,
    roc,
)
from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.reports import plots
from yogo_jax.reports.pages import Figure


# Lines of a figure; of more classes those with the most true boxes are drawn.
MAX_CLASSES = 10
# Points of a line.
MAX_POINTS = 250
ALL = "all classes"


class Curves(NamedTuple):
    """Curves by name of the class, and of `ALL` if there are several; None: cannot be known.

    Attributes:
      by_score: precision and recall, ranked as COCO ranks.
      by_objectness: precision and recall, ranked by objectness.
      free: free response, ranked as COCO ranks.
      rocs: of each class against the others.
    """

    by_score: dict[str, PrecisionRecall | None]
    by_objectness: dict[str, PrecisionRecall | None]
    free: dict[str, FreeResponse | None]
    rocs: dict[str, Roc | None]


def measure_curves(images: Sequence[ImageResult], class_names: Sequence[str]) -> Curves:
    """All curves of an evaluation, at IoU 0.5."""
    by_score = rank(images, len(class_names), ious=(0.5,))
    by_objectness = rank(images, len(class_names), ious=(0.5,), by_objectness=True)
    ids: dict[str, int | None] = {name: index for index, name in enumerate(class_names)}
    if len(class_names) > 1:
        ids[name_beside(class_names, ALL)] = None
    return Curves(
        {name: precision_recall(by_score.of_class(index)) for name, index in ids.items()},
        {name: precision_recall(by_objectness.of_class(index)) for name, index in ids.items()},
        {name: free_response(by_score.of_class(index)) for name, index in ids.items()},
        {name: roc(images, index) for index, name in enumerate(class_names)},
    )


def drawn_classes(
    class_names: Sequence[str], objects: Int[np.ndarray, " k"]
) -> dict[str, dict[str, Any]]:
    """Names of the lines to draw, and their style: classes by most true boxes, and all together."""
    most = np.argsort(-objects, kind="stable")[:MAX_CLASSES]
    styles = {class_names[index]: plots.series_style(index) for index in sorted(most.tolist())}
    if len(class_names) > 1:
        styles[name_beside(class_names, ALL)] = {
            "color": plots.INK,
            "linestyle": "-",
            "linewidth": 2.6,
        }
    return styles


def precision_recall_figure(
    curves: Curves, styles: Mapping[str, Any], metrics: Mapping[str, Any]
) -> Figure | None:
    """PR curves; dots where F1 is best, crosses at the precision and recall of the tables."""
    drawn = _known(curves.by_score, styles)

    def plot(axes: Any) -> None:
        for name, curve in drawn.items():
            points = np.stack([curve.recall, curve.precision], axis=1)
            axes.plot(*_thin(points).T, label=plots.shortened(name), **styles[name])
            best = curve.best
            if best is not None:
                axes.plot(curve.recall[best], curve.precision[best], "o", **_dot(styles[name]))
            counted = [metrics[key].get(name) for key in ("recall_by_class", "precision_by_class")]
            if None not in counted:
                axes.plot(*counted, "x", markersize=8, color=styles[name]["color"])
        _unit_axes(axes, "recall", "precision")

    caption = (
        "Precision against recall when detections below a score are left out. Dot: the largest F1. "
        "Cross: what the set thresholds gave, as in the table."
    )
    return Figure(plots.draw("precision-recall", plot), caption) if drawn else None


def f1_figure(
    curves: Curves, styles: Mapping[str, Any], objectness_threshold: float
) -> Figure | None:
    """F1 against the threshold on objectness; dots where it is best, a line at the one set."""
    drawn = _known(curves.by_objectness, styles)

    def plot(axes: Any) -> None:
        for name, curve in drawn.items():
            points = _thin(np.stack([curve.thresholds, curve.f1], axis=1))
            axes.plot(*points.T, label=plots.shortened(name), **styles[name])
            best = curve.best
            if best is not None:
                axes.plot(curve.thresholds[best], curve.f1[best], "o", **_dot(styles[name]))
        axes.axvline(objectness_threshold, color=plots.INK_SOFT, linestyle=":", linewidth=1.4)
        _unit_axes(axes, "threshold on objectness", "F1")

    caption = (
        "F1 against the threshold on objectness. Dot: the best threshold. Upright line: the one "
        f"set, {objectness_threshold:g}."
    )
    return Figure(plots.draw("f1", plot), caption) if drawn else None


def roc_figure(curves: Curves, styles: Mapping[str, Any]) -> Figure | None:
    """ROC curves of each class against the others, with their areas in the legend."""
    drawn = _known(curves.rocs, styles)

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=plots.INK_SOFT, linestyle=":", linewidth=1)
        for name, curve in drawn.items():
            points = np.stack([curve.false_positive_rate, curve.true_positive_rate], axis=1)
            label = f"{plots.shortened(name)} {curve.area:.3f}"
            axes.plot(*_thin(points).T, label=label, **styles[name])
            axes.plot(*curve.chosen, "o", **_dot(styles[name]))
        _unit_axes(axes, "false positive rate", "true positive rate")

    caption = (
        "ROC of the class probability over matched boxes, each class against the others; the area "
        "beside the name. Dot: naming the most probable class, as the detector does."
    )
    return Figure(plots.draw("roc", plot), caption) if drawn else None


def free_response_figure(curves: Curves, styles: Mapping[str, Any]) -> Figure | None:
    """FROC curves, their false alarms on a logarithmic axis."""
    drawn = {
        name: curve for name, curve in _known(curves.free, styles).items() if len(curve.sensitivity)
    }

    def plot(axes: Any) -> None:
        alarms = np.concatenate([curve.false_per_frame for curve in drawn.values()])
        # No alarm at all has no place on the axis: it is drawn a little left of the least.
        least = alarms[alarms > 0].min(initial=1.0) / 2
        for name, curve in drawn.items():
            x = np.maximum(curve.false_per_frame, least)
            points = _thin(np.stack([x, curve.sensitivity], axis=1))
            axes.plot(*points.T, label=plots.shortened(name), **styles[name])
        plots.use_log_scale(axes, "x")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("false alarms a frame")
        axes.set_ylabel("sensitivity")

    caption = (
        "Free-response curve: the share of true boxes found, by false alarms a frame. Curves that "
        "begin without a false alarm begin at the left edge."
    )
    return Figure(plots.draw("free-response", plot), caption) if drawn else None


def _known(curves: Mapping[str, Any], styles: Mapping[str, Any]) -> dict[str, Any]:
    return {name: curves[name] for name in styles if curves.get(name) is not None}


def _thin(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "q 2"]:
    """Some of the points, the ends among them, evenly along the length of the line."""
    if len(points) <= MAX_POINTS:
        return points
    # Along the line and not by index: most thresholds of a good curve share one corner.
    with np.errstate(divide="ignore"):
        steps = np.abs(np.diff(points, axis=0)).sum(1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, length[-1], MAX_POINTS)
    kept = np.unique(np.concatenate([np.searchsorted(length, wanted), [0, len(points) - 1]]))
    return points[np.minimum(kept, len(points) - 1)]


def _dot(style: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": style["color"], "markersize": 7, "markeredgecolor": plots.GROUND}


def _unit_axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
