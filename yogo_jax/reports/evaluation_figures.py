"""Figures of an evaluation: curves over thresholds, confusion, calibration, counts of frames."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.metrics.confusion import CALIBRATION_BINS, Calibration, name_beside
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
from yogo_jax.metrics.intervals import Agreement
from yogo_jax.reports import plots
from yogo_jax.reports.pages import Figure


# A figure has at most so many classes: those with the most true boxes.
MAX_CLASSES = 10
# A line has at most so many points.
MAX_POINTS = 250
ALL = "all classes"
# A confusion matrix with at most so many rows has its numbers in the cells.
MAX_CELLS_WITH_NUMBERS = 14
# Width that the columns of a narrow matrix share, and width of a digit, in units of the drawing.
NARROW_UNITS, DIGIT_UNITS = 200, 6.5
# Opacity of the darkest cell: text must stay readable on it, on light and on dark pages.
DARKEST = 0.55


class Curves(NamedTuple):
    """Curves by class name, and for `ALL` if there are several classes; None without a curve.

    Attributes:
      by_score: precision and recall, ranked as COCO ranks.
      by_objectness: precision and recall, ranked by objectness.
      free: free response, ranked as COCO ranks.
      rocs: ROC of each class against the others.
    """

    by_score: dict[str, PrecisionRecall | None]
    by_objectness: dict[str, PrecisionRecall | None]
    free: dict[str, FreeResponse | None]
    rocs: dict[str, Roc | None]


def measure_curves(images: Sequence[ImageResult], class_names: Sequence[str]) -> Curves:
    """Computes all curves of an evaluation, at IoU 0.5."""
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
    """Returns names and styles of the lines to draw: the most frequent classes, and `ALL`."""
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
    """Precision-recall curves, with dots at the best F1 and crosses at the set thresholds."""
    drawn = _known(curves.by_score, styles)

    def plot(axes: Any) -> None:
        for name, curve in drawn.items():
            points = np.stack([curve.recall, curve.precision], axis=1)
            _draw_line(axes, plots.shortened(name), styles[name], points, curve.best)
            counted = [metrics[key].get(name) for key in ("recall_by_class", "precision_by_class")]
            if None not in counted:
                axes.plot(*counted, "x", markersize=8, color=styles[name]["color"])
        _unit_axes(axes, "recall", "precision")

    caption = (
        "Precision against recall over the threshold on the score of the class: each box is a "
        "candidate of every class. Dot: the largest F1. "
        "Cross: precision and recall at the set thresholds, as in the table."
    )
    return Figure(plots.draw("precision-recall", plot), caption) if drawn else None


def f1_figure(
    curves: Curves, styles: Mapping[str, Any], objectness_threshold: float
) -> Figure | None:
    """F1 against the threshold on objectness, with dots at its maxima and a line at the set one."""
    drawn = _known(curves.by_objectness, styles)

    def plot(axes: Any) -> None:
        for name, curve in drawn.items():
            points = np.stack([curve.thresholds, curve.f1], axis=1)
            _draw_line(axes, plots.shortened(name), styles[name], points, curve.best)
        axes.axvline(objectness_threshold, color=plots.INK_SOFT, linestyle=":", linewidth=1.4)
        _unit_axes(axes, "threshold on objectness", "F1")

    caption = (
        "F1 against the threshold on objectness. Dot: the best threshold. Vertical line: the set "
        f"threshold, {objectness_threshold:g}."
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
            _draw_line(axes, label, styles[name], points)
            _draw_dot(axes, styles[name], curve.chosen)
        _unit_axes(axes, "false positive rate", "true positive rate")

    caption = (
        "ROC of the class probability over matched boxes, each class against the others. The area "
        "stands beside the name. Dot: the class that each box was given."
    )
    return Figure(plots.draw("roc", plot), caption) if drawn else None


def free_response_figure(curves: Curves, styles: Mapping[str, Any]) -> Figure | None:
    """FROC curves, with false alarms on a logarithmic axis."""
    drawn = {
        name: curve for name, curve in _known(curves.free, styles).items() if len(curve.sensitivity)
    }

    def plot(axes: Any) -> None:
        alarms = np.concatenate([curve.false_per_frame for curve in drawn.values()])
        # A logarithmic axis has no 0: points without an alarm are drawn left of all others.
        least = alarms[alarms > 0].min(initial=1.0) / 2
        for name, curve in drawn.items():
            x = np.maximum(curve.false_per_frame, least)
            points = np.stack([x, curve.sensitivity], axis=1)
            _draw_line(axes, plots.shortened(name), styles[name], points)
        plots.use_log_scale(axes, "x")
        axes.set(ylim=(-0.02, 1.02), xlabel="false alarms per frame", ylabel="sensitivity")

    caption = (
        "Free-response curve: the share of true boxes that are found, against false alarms per "
        "frame. A curve whose first points have no false alarm begins at the left edge."
    )
    return Figure(plots.draw("free-response", plot), caption) if drawn else None


def _known(curves: Mapping[str, Any], styles: Mapping[str, Any]) -> dict[str, Any]:
    return {name: curves[name] for name in styles if curves.get(name) is not None}


def _thin(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "q 2"]:
    """Returns some of the points, both ends included, evenly along the length of the line."""
    if len(points) <= MAX_POINTS:
        return points
    # Not evenly by index: most thresholds of a good curve lie in one corner.
    with np.errstate(divide="ignore"):
        steps = np.abs(np.diff(points, axis=0)).sum(1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, length[-1], MAX_POINTS)
    kept = np.unique(np.concatenate([np.searchsorted(length, wanted), [0, len(points) - 1]]))
    return points[np.minimum(kept, len(points) - 1)]


def _draw_line(
    axes: Any,
    label: str,
    style: Mapping[str, Any],
    points: Float[np.ndarray, "p 2"],
    dot: int | None = None,
) -> None:
    axes.plot(*_thin(points).T, label=label, **style)
    if dot is not None:
        _draw_dot(axes, style, points[dot])


def _draw_dot(axes: Any, style: Mapping[str, Any], point: Any) -> None:
    axes.plot(*point, "o", color=style["color"], markersize=7, markeredgecolor=plots.GROUND)


def _unit_axes(axes: Any, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)


def confusion_figure(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Figure:
    """Heat map of the confusion matrix; a cell is the darker, the larger its share of the row."""
    counts = np.array(matrix, np.int64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [plots.shortened(name) for name in names]

    def plot(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        size = len(labels)
        for (row, column), share in np.ndenumerate(shares):
            style = {"facecolor": plots.SERIES[2], "alpha": DARKEST * share, "linewidth": 0}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **style))
            if size <= MAX_CELLS_WITH_NUMBERS and counts[row, column]:
                text = f"{counts[row, column]:,}"
                axes.text(column, row, text, ha="center", va="center")
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
        axes.set_xticks(range(size), labels, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), labels)
        axes.set(xlabel="predicted", ylabel="true")
        axes.grid(False)

    caption = (
        "Confusion: rows are true classes, columns are predicted classes. A darker cell is a "
        "larger share of its row. Missed boxes are in the last column, extra ones in the last row."
    )
    height = min(max(plots.HEIGHT, 1.4 + 0.34 * len(names)), 9.0)
    longest = max(2, len(f"{counts.max(initial=0):,}"))
    wide = len(names) * longest * DIGIT_UNITS > NARROW_UNITS
    return Figure(plots.draw("confusion", plot, height=height, wide=wide), caption, wide=wide)


def calibration_of(images: Sequence[ImageResult]) -> Calibration:
    """Collects confidence and correctness of the most probable class of matched boxes."""
    calibration = Calibration()
    for image in images:
        probabilities = image.found.class_probs[image.matches.prediction_index]
        true = image.label_class_ids[image.matches.label_index]
        right = probabilities.argmax(axis=1) == true
        calibration.update(probabilities.max(axis=1, initial=0.0), right)
    return calibration


def reliability_figure(calibration: Calibration) -> Figure | None:
    """Reliability diagram: accuracy against confidence in each bin; None without a matched box."""
    error = calibration.compute()
    if error is None:
        return None
    filled = calibration.pairs > 0
    pairs = calibration.pairs[filled]
    confidence = calibration.confidence[filled] / pairs
    accuracy = calibration.correct[filled] / pairs
    # The area of a dot grows with the logarithm, because counts differ by orders of magnitude.
    areas = 12 + 14 * np.log2(pairs)

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=plots.INK_SOFT, linestyle=":", linewidth=1.2)
        axes.vlines(confidence, confidence, accuracy, color=plots.SERIES[1], linewidth=1.6)
        axes.scatter(confidence, accuracy, s=areas, color=plots.SERIES[2], zorder=3)
        _unit_axes(axes, "probability of the named class", "share named right")

    caption = (
        f"Reliability of the class probability over {pairs.sum():,} matched boxes, in "
        f"{CALIBRATION_BINS} bins; larger dots hold more boxes. On the dotted line the probability "
        f"equals the share named right. Calibration error (ECE) {error:.4f}."
    )
    return Figure(plots.draw("reliability", plot), caption)


def count_scatter(
    predicted: Int[np.ndarray, "images k"],
    true: Int[np.ndarray, "images k"],
    styles: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
) -> Figure:
    """Scatter plot of predicted against true boxes of each frame, with a marker for each class."""

    def plot(axes: Any) -> None:
        largest = max(int(predicted.max(initial=1)), int(true.max(initial=1)))
        axes.plot([0, largest], [0, largest], color=plots.INK_SOFT, linestyle=":", linewidth=1.2)
        drawn = [index for index, name in enumerate(class_names) if name in styles]
        # Small whole numbers share few places, so classes are drawn side by side there.
        step = max(0.7, 0.03 * largest) / max(len(drawn), 1)
        for place, index in enumerate(drawn):
            name = class_names[index]
            places, areas = _bubbles(true[:, index], predicted[:, index])
            axes.scatter(
                places[:, 0] + (place - (len(drawn) - 1) / 2) * step,
                places[:, 1],
                s=areas,
                label=plots.shortened(name),
                color=styles[name]["color"],
                marker=plots.MARKERS[index % len(plots.MARKERS)],
                alpha=0.75,
            )
        plots.use_whole_numbers(axes, "x")
        plots.use_whole_numbers(axes, "y")
        axes.set(xlabel="true boxes in a frame", ylabel="predicted")

    caption = (
        "Boxes of each frame, predicted against true, by class. Larger markers stand for more "
        "frames. On the dotted line both agree. Classes at the same place stand side by side."
    )
    return Figure(plots.draw("counts", plot), caption)


def agreement_figure(
    predicted: Int[np.ndarray, " images"], true: Int[np.ndarray, " images"], agreed: Agreement
) -> Figure:
    """Bland-Altman plot of all boxes of each frame, with bias and limits of agreement."""

    def plot(axes: Any) -> None:
        places, areas = _bubbles((predicted + true) / 2, predicted - true)
        axes.scatter(*places.T, s=areas, color=plots.SERIES[2], alpha=0.75)
        axes.axhline(agreed.bias, color=plots.SERIES[1], linestyle="-")
        for limit in (agreed.lower, agreed.upper):
            if limit is not None:
                axes.axhline(limit, color=plots.SERIES[1], linestyle="--")
        labels = ("mean of predicted and true boxes in a frame", "predicted minus true")
        axes.set(xlabel=labels[0], ylabel=labels[1])
        plots.use_whole_numbers(axes, "x")
        plots.use_whole_numbers(axes, "y")

    limits = ""
    if agreed.lower is not None:
        limits = (
            f", dashed lines: 95 % limits of agreement, {agreed.lower:.2f} to {agreed.upper:.2f}"
        )
    caption = (
        "Predicted minus true boxes of each frame, against the mean of both. Solid line: bias "
        f"{agreed.bias:.2f}{limits}."
    )
    return Figure(plots.draw("agreement", plot), caption)


def _bubbles(
    x: Float[np.ndarray, " n"] | Int[np.ndarray, " n"], y: Int[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each place once, and an area that grows with the number of points there."""
    places, times = np.unique(np.stack([x, y], axis=1), axis=0, return_counts=True)
    return places, 14.0 + 10 * np.log2(times)
