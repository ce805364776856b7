"""Plots of what a data set holds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from yogo_jax.data.records import Records, boxes_by_class
from yogo_jax.inspection.audit import Inspection
from yogo_jax.inspection.text import mean_size, sizes
from yogo_jax.reports.pages import Figure
from yogo_jax.reports.plots import (
    HEIGHT,
    SERIES,
    draw,
    series_style,
    shortened,
    use_count_scale,
    use_whole_numbers,
)


# Cells of the map of positions, along the longer side of the image.
MAP_CELLS = 24
SIZES_SHOWN = 12


def plot_data(inspection: Inspection) -> list[Figure]:
    """The figures of an inspection; those of boxes only if there are any."""
    figures = []
    found = sizes(inspection)
    if len(found) > 1:
        figures.append(_image_sizes(found))
    used = {name: records for name, records in inspection.used.items() if len(records)}
    if not any(len(records.class_ids) for records in used.values()):
        return figures
    figures += [_by_class(used), _per_image(used)]
    boxes_cxcywh = np.concatenate([records.boxes_cxcywh for records in used.values()])
    class_ids = np.concatenate([records.class_ids for records in used.values()])
    image_hw = inspection.usual_image_hw
    by_class = {
        name: boxes_cxcywh[class_ids == i, 2:]
        for i, name in enumerate(inspection.definition.class_names)
    }
    figures.append(_sizes_of_boxes(by_class, image_hw))
    figures.append(_sides(boxes_cxcywh, mean_size(inspection.used["train"]), image_hw))
    figures.append(_positions(boxes_cxcywh, image_hw))
    return figures


def _image_sizes(found: Sequence[tuple[tuple[int, int], int]]) -> Figure:
    def plot(axes: Any) -> None:
        shown = [*reversed(found[:SIZES_SHOWN])]
        names = [f"{h} x {w}" for (h, w), _ in shown]
        axes.barh(names, [count for _, count in shown], color=SERIES[2])
        use_whole_numbers(axes, "x")
        axes.set_xlabel("images")
        axes.set_ylabel("rows x columns, px")

    caption = f"Sizes of the images, {len(found)} in all."
    if len(found) > SIZES_SHOWN:
        caption = f"{caption[:-1]}; the {SIZES_SHOWN} most common are shown."
    return Figure(draw("image-sizes", plot), caption)


def _by_class(used: Mapping[str, Records]) -> Figure:
    class_names = next(iter(used.values())).class_names
    counts = {name: boxes_by_class(records) for name, records in used.items()}

    def plot(axes: Any) -> None:
        thickness = 0.8 / len(counts)
        for index, (split, values) in enumerate(counts.items()):
            y = np.arange(len(class_names)) + (index - (len(counts) - 1) / 2) * thickness
            bars = axes.barh(y, values, thickness, color=SERIES[index], label=split)
            axes.bar_label(bars, padding=2)
        use_count_scale(axes, "x", max(int(values.max()) for values in counts.values()))
        axes.set_yticks(range(len(class_names)), [shortened(name) for name in class_names])
        axes.invert_yaxis()
        axes.set_xlabel("boxes (logarithmic)")

    height = max(HEIGHT, 0.22 * len(class_names) * len(counts) + 1)
    return Figure(draw("boxes-by-class", plot, height=height), "Boxes of each class and split.")


def _per_image(used: Mapping[str, Records]) -> Figure:
    most = max(int(records.box_counts.max()) for records in used.values())

    def plot(axes: Any) -> None:
        edges = _whole_edges(most)
        for index, (split, records) in enumerate(used.items()):
            heights, _ = np.histogram(records.box_counts, edges)
            style = series_style(index)
            axes.stairs(heights / len(records), edges, label=split, **_stairs(style))
        use_whole_numbers(axes, "x")
        axes.set_xlabel("boxes on an image")
        axes.set_ylabel("share of the images")

    return Figure(draw("boxes-per-image", plot), "Boxes on each image; 0 is an empty frame.")


def _sizes_of_boxes(by_class: Mapping[str, np.ndarray], image_hw: tuple[int, int] | None) -> Figure:
    scale, unit = _scale(image_hw)
    sides = {name: np.sqrt((wh * scale).prod(axis=1)) for name, wh in by_class.items() if len(wh)}

    def plot(axes: Any) -> None:
        edges = np.linspace(0, max(values.max() for values in sides.values()) * 1.02, 41)
        for index, name in enumerate(by_class):
            if name in sides:
                heights, _ = np.histogram(sides[name], edges)
                axes.stairs(
                    heights / heights.sum(),
                    edges,
                    label=shortened(name),
                    **_stairs(series_style(index)),
                )
        axes.set_xlabel(f"side of a square of the same area,\n{unit}")
        axes.set_ylabel("share of the boxes")

    caption = "Sizes of the boxes of each class."
    return Figure(draw("box-sizes", plot), caption)


def _sides(
    boxes_cxcywh: Float[np.ndarray, "m 4"],
    mean_wh: Sequence[float] | None,
    image_hw: tuple[int, int] | None,
) -> Figure:
    scale, unit = _scale(image_hw)
    sides = boxes_cxcywh[:, 2:] * scale

    def plot(axes: Any) -> None:
        edges = np.linspace(0, sides.max() * 1.02, 41)
        for index, name in enumerate(("width", "height")):
            style = series_style(index)
            heights, _ = np.histogram(sides[:, index], edges)
            axes.stairs(heights, edges, label=name, **_stairs(style))
            if mean_wh is not None:
                axes.axvline(
                    mean_wh[index] * scale[0, index],
                    color=style["color"],
                    linestyle=":",
                    label=f"anchor's {name}",
                )
        axes.set_xlabel(f"{unit}")
        use_whole_numbers(axes, "y")
        axes.set_ylabel("boxes")

    caption = "Widths and heights of all boxes"
    caption += "." if mean_wh is None else ", and the anchor: the mean of the training boxes."
    return Figure(draw("box-sides", plot), caption)


def _positions(boxes_cxcywh: Float[np.ndarray, "m 4"], image_hw: tuple[int, int] | None) -> Figure:
    height, width = image_hw or (1, 1)
    longer = max(height, width)
    rows, columns = (max(1, round(MAP_CELLS * side / longer)) for side in (height, width))
    counts, _, _ = np.histogram2d(
        boxes_cxcywh[:, 1], boxes_cxcywh[:, 0], bins=(rows, columns), range=((0, 1), (0, 1))
    )

    def plot(axes: Any) -> None:
        from matplotlib.collections import PolyCollection

        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
        cells = [(row, column) for row, column in np.ndindex(rows, columns) if counts[row, column]]
        squares = [(corners + np.array([x, y])) / (columns, rows) for y, x in cells]
        # Shares of one colour, and not a colour map: it must be seen on light and dark ground.
        colours = [(SERIES[2], counts[cell] / counts.max()) for cell in cells]
        axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors="none"))
        axes.set_xlim(0, 1)
        axes.set_ylim(1, 0)
        axes.set_aspect(height / width)
        axes.grid(False)
        axes.set_xlabel("x of the centre, share of the width")
        axes.set_ylabel("y, share of the height")

    caption = (
        f"Where the centres of the boxes lie; the fullest of {rows} x {columns} parts holds "
        f"{int(counts.max())} of {len(boxes_cxcywh)}."
    )
    return Figure(draw("positions", plot), caption)


def _scale(image_hw: tuple[int, int] | None) -> tuple[Float[np.ndarray, "1 2"], str]:
    """What fractions are multiplied by, and the unit that they have then."""
    if image_hw is None:
        return np.array([[100.0, 100.0]]), "% of the image"
    height, width = image_hw
    return np.array([[float(width), float(height)]]), f"px of {height}x{width}"


def _whole_edges(most: int) -> Float[np.ndarray, " edges"]:
    """Edges of bins that hold equally many whole numbers each, from 0 to `most`."""
    step = max(1, math.ceil((most + 1) / 40))
    return np.arange(0, most + step + 1, step) - 0.5


def _stairs(style: Mapping[str, Any]) -> dict[str, Any]:
    return {"edgecolor": style["color"], "linestyle": style["linestyle"], "linewidth": 1.6}
