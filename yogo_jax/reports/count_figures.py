"""Figures of counts: confusion, calibration, and the boxes of each frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.metrics.agreement import Agreement
from yogo_jax.metrics.confusion import CALIBRATION_BINS, Calibration
from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.reports import plots
from yogo_jax.reports.pages import Figure


# Numbers stand in the cells of a matrix up to this many rows; larger ones are in the table only.
MAX_CELLS_WITH_NUMBERS = 14
# Units that a matrix beside other figures has for its columns, and that a digit takes.
NARROW_UNITS, DIGIT_UNITS = 200, 6.5
# Of the darkest cell: text in the colour of the page must stay readable on it, light and dark.
DARKEST = 0.55


def confusion_figure(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Figure:
    """The confusion matrix as a heat map: a cell is as dark as its share of its row."""
    counts = np.array(matrix, np.int64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [plots.shortened(name) for name in names]

    def plot(axes: Any) -> None:
        size = len(labels)
        for (row, column), share in np.ndenumerate(shares):
            cell = (column - 0.5, row - 0.5)
            axes.add_patch(_rectangle(cell, share))
            if size <= MAX_CELLS_WITH_NUMBERS and counts[row, column]:
                text = f"{counts[row, column]:,}"
                axes.text(column, row, text, ha="center", va="center")
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xticks(range(size), labels, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.grid(False)

    caption = (
        "Confusion: rows are true classes, columns predicted ones; the darker, the larger the "
        "share of its row. Missed boxes are in the last column, extra ones in the last row."
    )
    height = min(max(plots.HEIGHT, 1.4 + 0.34 * len(names)), 9.0)
    longest = max(2, len(f"{counts.max(initial=0):,}"))
    wide = len(names) * longest * DIGIT_UNITS > NARROW_UNITS
    return Figure(plots.draw("confusion", plot, height=height, wide=wide), caption, wide=wide)


def _rectangle(corner: tuple[float, float], share: float) -> Any:
    from matplotlib.patches import Rectangle

    colour = plots.SERIES[2]
    return Rectangle(corner, 1, 1, facecolor=colour, alpha=DARKEST * share, linewidth=0)


def calibration_of(images: Sequence[ImageResult]) -> Calibration:
    """Confidence and accuracy of the class of matched boxes."""
    calibration = Calibration()
    for image in images:
        probabilities = image.found.class_probs[image.matches.prediction_index]
        named = image.found.class_ids[image.matches.prediction_index]
        true = image.label_class_ids[image.matches.label_index]
        calibration.update(probabilities.max(axis=1, initial=0.0), named == true)
    return calibration


def reliability_figure(calibration: Calibration) -> Figure | None:
    """Accuracy against confidence in each bin; None without a matched box."""
    error = calibration.compute()
    if error is None:
        return None
    filled = calibration.pairs > 0
    pairs = calibration.pairs[filled]
    confidence = calibration.confidence[filled] / pairs
    accuracy = calibration.correct[filled] / pairs
    # Wide range of counts: the area of a dot grows with the logarithm.
    areas = 12 + 14 * np.log2(pairs)

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=plots.INK_SOFT, linestyle=":", linewidth=1.2)
        axes.vlines(confidence, confidence, accuracy, color=plots.SERIES[1], linewidth=1.6)
        axes.scatter(confidence, accuracy, s=areas, color=plots.SERIES[2], zorder=3)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("probability of the named class")
        axes.set_ylabel("share named right")

    caption = (
        f"Reliability of the class probability over {pairs.sum():,} matched boxes, in "
        f"{CALIBRATION_BINS} bins; larger dots hold more boxes. On the dotted line a probability "
        f"says what it means. Calibration error (ECE) {error:.4f}."
    )
    return Figure(plots.draw("reliability", plot), caption)


def count_scatter(
    predicted: Int[np.ndarray, "images k"],
    true: Int[np.ndarray, "images k"],
    styles: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
) -> Figure:
    """Predicted against true boxes of each frame, a marker for each class."""

    def plot(axes: Any) -> None:
        largest = max(int(predicted.max(initial=1)), int(true.max(initial=1)))
        axes.plot([0, largest], [0, largest], color=plots.INK_SOFT, linestyle=":", linewidth=1.2)
        drawn = [index for index, name in enumerate(class_names) if name in styles]
        # Small whole numbers meet in few places: there the classes stand side by side.
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
        axes.set_xlabel("true boxes in a frame")
        axes.set_ylabel("predicted")

    caption = (
        "Boxes of each frame, predicted against true, by class; larger markers stand for more "
        "frames. On the dotted line both agree; classes of one place stand side by side."
    )
    return Figure(plots.draw("counts", plot), caption)


def agreement_figure(
    predicted: Int[np.ndarray, " images"], true: Int[np.ndarray, " images"], agreed: Agreement
) -> Figure:
    """Bland and Altman's plot of all boxes of each frame, with bias and limits of agreement."""

    def plot(axes: Any) -> None:
        places, areas = _bubbles((predicted + true) / 2, predicted - true)
        axes.scatter(*places.T, s=areas, color=plots.SERIES[2], alpha=0.75)
        axes.axhline(agreed.bias, color=plots.SERIES[1], linestyle="-")
        for limit in (agreed.lower, agreed.upper):
            if limit is not None:
                axes.axhline(limit, color=plots.SERIES[1], linestyle="--")
        axes.set_xlabel("mean of predicted and true boxes in a frame")
        plots.use_whole_numbers(axes, "x")
        plots.use_whole_numbers(axes, "y")
        axes.set_ylabel("predicted minus true")

    limits = ""
    if agreed.lower is not None:
        limits = (
            f", dashed lines: 95 % limits of agreement, {agreed.lower:.2f} to {agreed.upper:.2f}"
        )
    caption = (
        "Difference of the counts of all boxes of a frame, against their mean. Solid line: bias "
        f"{agreed.bias:.2f}{limits}."
    )
    return Figure(plots.draw("agreement", plot), caption)


def _bubbles(
    x: Float[np.ndarray, " n"] | Int[np.ndarray, " n"], y: Int[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Places that occur, each once, and areas that grow with how often: many make few marks."""
    places, times = np.unique(np.stack([x, y], axis=1), axis=0, return_counts=True)
    return places, 14.0 + 10 * np.log2(times)
