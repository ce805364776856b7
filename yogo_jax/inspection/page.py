"""The page of an audit: what there is, what is wrong, with figures and pictures of both."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.data.images import decode_file
from yogo_jax.data.records import Records, boxes_by_class
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.drawing import draw_boxes, draw_crop, shrink, side_by_side
from yogo_jax.errors import UserError
from yogo_jax.inspection.audit import Inspection
from yogo_jax.inspection.findings import KINDS, Finding, Kind, Listing
from yogo_jax.inspection.suspects import SUSPECT_KINDS, Suspects
from yogo_jax.reports.pages import (
    Block,
    Figure,
    Gallery,
    Picture,
    Section,
    Table,
    Text,
    render_page,
)
from yogo_jax.reports.plots import (
    HEIGHT,
    SERIES,
    draw,
    series_style,
    shortened,
    use_count_scale,
    use_whole_numbers,
)


SAMPLES_PER_SPLIT = 3
PICTURES_OF_A_KIND = 8
# More pictures than these of a kind of suspects would make the page heavy; the table goes on.
MOST_PICTURES = 60
SAMPLE_WIDTH, PAIR_HEIGHT, THUMBNAIL_WIDTH = 640, 300, 320
SIDE_BY_SIDE = 3
# Cells of the map of positions, along the longer side of the image.
MAP_CELLS = 24
SIZES_SHOWN = 12


def render_inspection(
    inspection: Inspection,
    suspects: Suspects | None = None,
    *,
    top: int,
    detector: str = "",
) -> str:
    """The page as HTML.

    Args:
      inspection: all that was found in files, images and boxes.
      suspects: all that a detector contradicts, if one was asked.
      top: findings and suspects of each kind to list; the JSON lists more.
      detector: the name of the detector on the page.
    """
    sections = [
        Section("summary", "What was found", [_summary(inspection, suspects)]),
        Section("content", "What is in the data", [*_content(inspection)]),
    ]
    for kind, found in inspection.findings.items():
        blocks = [*_findings(inspection, kind, found.listed[:top], found.count)]
        sections.append(Section(kind.replace("_", "-"), _headline(KINDS[kind], found), blocks))
    for kind in SUSPECT_KINDS if suspects is not None else ():
        if suspects is not None and suspects.found[kind].count:
            blocks = [*_suspects(inspection, suspects, kind, top, detector)]
            title = _headline(SUSPECT_KINDS[kind], suspects.found[kind])
            sections.append(Section(f"suspects-{kind.replace('_', '-')}", title, blocks))
    sections.append(Section("samples", "Samples", [*_samples(inspection)]))
    path = inspection.definition.path
    subtitle = f"{path}: what is in the data and what is wrong with it"
    name = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
    return render_page(f"Inspection of {name}", subtitle, sections)


def _headline(kind: Kind, found: Listing[Any]) -> str:
    return f"{kind.title[0].upper()}{kind.title[1:]}: {found.count:,}"


def _summary(inspection: Inspection, suspects: Suspects | None) -> Block:
    listings: list[tuple[Kind, Listing[Any]]] = [
        (KINDS[kind], found) for kind, found in inspection.findings.items()
    ]
    # The ranking by loss has good labels, too, and is no finding.
    listings += [
        (SUSPECT_KINDS[kind], found)
        for kind, found in ({} if suspects is None else suspects.found).items()
        if found.count and kind != "high_loss"
    ]
    if not listings:
        return Text("Nothing wrong was found.")
    rows = [[kind.title, found.count, kind.advice] for kind, found in listings]
    return Table(
        ["finding", "how many", "what to do"], rows, "What is wrong, the worst first", wrap=True
    )


def _content(inspection: Inspection) -> Iterable[Block]:
    yield Table(*inspection.class_rows(), "Boxes that a training uses, and images")
    yield Table(
        ["size, px", "images"],
        [
            [f"{height} x {width}", count]
            for (height, width), count in inspection.scanned.sizes[:SIZES_SHOWN]
        ],
        "Sizes of the images, rows x columns",
    )
    formats = [[*each] for each in inspection.scanned.formats]
    yield Table(["stored as", "images"], formats, "How they are stored")
    if inspection.grid is not None:
        lost = f"boxes that lose their cell to another: {inspection.lost_boxes}"
        yield Text(f"Boxes are learnt on {inspection.grid}; {lost}.")
    if inspection.anchor is not None:
        text = f"--config.model.anchor={inspection.anchor}"
        yield Text(f"The mean training box, as an anchor: {text}")
    yield from _figures(inspection)


def _findings(
    inspection: Inspection, kind: str, shown: Sequence[Finding], count: int
) -> Iterator[Block]:
    yield Text(KINDS[kind].advice)
    rows = [[_short(inspection, finding.place), finding.message] for finding in shown]
    caption = f"The first {len(shown)} of {count:,}; inspection.json lists them"
    yield Table(["where", "what"], rows, "" if count == len(shown) else caption, wrap=True)
    drawn = (_picture(inspection, finding) for finding in shown[:PICTURES_OF_A_KIND])
    pictures = [picture for picture in drawn if picture is not None]
    if pictures and kind.startswith(("identical", "near_duplicate")):
        yield from pictures
    elif pictures:
        yield Gallery(pictures)


def _short(inspection: Inspection, place: str) -> str:
    """A path without the folder of the definition, where it lies in that."""
    folder = f"{inspection.definition.path.parent}{os.sep}"
    return place.removeprefix(folder)


def _read_frame(inspection: Inspection, path: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The frame in RGB, as the inspection turned it; None if it cannot be read."""
    apply_orientation = inspection.scanned.apply_orientation
    try:
        return np.asarray(decode_file(path, rgb=True, apply_orientation=apply_orientation).pixels)
    except UserError:
        return None


def _picture(inspection: Inspection, finding: Finding) -> Picture | None:
    """The finding as a picture: frames side by side, boxes on a part of one, or one frame."""
    read = (_read_frame(inspection, path) for path in finding.images[:SIDE_BY_SIDE])
    frames = [frame for frame in read if frame is not None]
    if not frames:
        return None
    place = _short(inspection, finding.place)
    if len(finding.images) > 1:
        names = " | ".join(_short(inspection, path) for path in finding.images[:SIDE_BY_SIDE])
        caption = f"{names}: {finding.message}"
        return Picture(side_by_side(frames, height=PAIR_HEIGHT), caption, wide=True, lossy=True)
    if not finding.boxes_cxcywh:
        image = side_by_side([shrink(frames[0], THUMBNAIL_WIDTH)], height=240)
        return Picture(image, place, lossy=True)
    boxes_xyxy = cxcywh_to_xyxy(np.array(finding.boxes_cxcywh))
    image = draw_crop(frames[0], boxes_xyxy[0], boxes_xyxy)
    return Picture(image, f"{place}: {finding.message}", lossy=True)


def _samples(inspection: Inspection) -> Iterable[Block]:
    """Frames of each split with their boxes, evenly spread over the split."""
    for split, images in inspection.splits.items():
        records = images.records
        chosen = np.unique(np.linspace(0, len(records) - 1, SAMPLES_PER_SPLIT).astype(int))
        for i in chosen[chosen >= 0].tolist() if len(records) else []:
            frame = _read_frame(inspection, records.image_paths[i])
            if frame is None:
                continue
            boxes, class_ids = records.labels_of(i)
            picture = draw_boxes(
                shrink(frame, SAMPLE_WIDTH),
                cxcywh_to_xyxy(boxes),
                class_ids,
                records.class_names,
            )
            name = Path(records.image_paths[i]).name
            yield Picture(picture, f"{split}: {name}, {len(class_ids)} boxes", lossy=True)


def _suspects(
    inspection: Inspection, suspects: Suspects, kind: str, top: int, detector: str
) -> Iterator[Block]:
    found = suspects.found[kind]
    shown = found.listed[:top]
    if suspects.warning:
        yield Text(suspects.warning)
    yield Text(f"{SUSPECT_KINDS[kind].advice} As {detector} sees them.")
    pictures = []
    for suspect in shown[:MOST_PICTURES]:
        frame = _read_frame(inspection, suspect.image)
        if frame is None:
            continue
        box = np.array([[suspect.x_center, suspect.y_center, suspect.width, suspect.height]])
        boxes_xyxy = cxcywh_to_xyxy(box)
        image = draw_crop(frame, boxes_xyxy[0], boxes_xyxy)
        caption = f"{suspect.rank}. {suspect.message}: {_short(inspection, suspect.place)}"
        pictures.append(Picture(image, caption, lossy=True))
    yield Gallery(pictures)
    rows = [
        [
            suspect.rank,
            _short(inspection, suspect.place),
            suspect.given,
            suspect.predicted,
            suspect.probability,
            suspect.objectness,
            suspect.loss,
        ]
        for suspect in shown
    ]
    header = ["rank", "where", "label", "detector", "probability", "objectness", "loss"]
    more = "; suspects.csv has more" if len(found.listed) > len(shown) else ""
    caption = f"The first {len(shown)} of {found.count:,}{more}"
    yield Table(header, rows, "" if found.count == len(shown) else caption)


def _figures(inspection: Inspection) -> list[Figure]:
    """The figures of an inspection; those of boxes only if there are any."""
    figures = []
    found = inspection.scanned.sizes
    if len(found) > 1:
        figures.append(_image_sizes(found))
    used = {name: records for name, records in inspection.used.items() if len(records)}
    if not any(len(records.class_ids) for records in used.values()):
        return figures
    figures += [_by_class(used), _per_image(used)]
    boxes_cxcywh = np.concatenate([records.boxes_cxcywh for records in used.values()])
    class_ids = np.concatenate([records.class_ids for records in used.values()])
    image_hw = inspection.scanned.usual_hw
    by_class = {
        name: boxes_cxcywh[class_ids == i, 2:]
        for i, name in enumerate(inspection.definition.class_names)
    }
    figures.append(_sizes_of_boxes(by_class, image_hw))
    figures.append(_sides(boxes_cxcywh, inspection.used["train"].mean_wh, image_hw))
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
        # Bins that hold equally many whole numbers each.
        step = math.ceil((most + 1) / 40)
        edges = np.arange(0, most + step + 1, step) - 0.5
        for index, (split, records) in enumerate(used.items()):
            _draw_histogram(axes, index, records.box_counts, edges, split, shares=True)
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
                _draw_histogram(axes, index, sides[name], edges, shortened(name), shares=True)
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
            _draw_histogram(axes, index, sides[:, index], edges, name, shares=False)
            if mean_wh is not None:
                axes.axvline(
                    mean_wh[index] * scale[0, index],
                    color=series_style(index)["color"],
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
    """The factors of (width, height) from fractions of the image, and the unit of the result."""
    if image_hw is None:
        return np.array([[100.0, 100.0]]), "% of the image"
    height, width = image_hw
    return np.array([[float(width), float(height)]]), f"px of {height}x{width}"


def _draw_histogram(
    axes: Any, index: int, values: np.ndarray, edges: np.ndarray, label: str, *, shares: bool
) -> None:
    """Draws numbers of values in bins, or shares of all of them, in the colour of a series."""
    heights, _ = np.histogram(values, edges)
    style = series_style(index)
    axes.stairs(
        heights / len(values) if shares else heights,
        edges,
        label=label,
        edgecolor=style["color"],
        linestyle=style["linestyle"],
        linewidth=1.6,
    )
