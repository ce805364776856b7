"""The page of an inspection: what there is, what is wrong, with pictures of both."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from yogo_jax.data.findings import KINDS, Finding
from yogo_jax.data.images import decode_file
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.drawing import draw_boxes, draw_crop, shrink, side_by_side
from yogo_jax.errors import UserError
from yogo_jax.inspection.audit import Inspection, Listing
from yogo_jax.inspection.figures import plot_data
from yogo_jax.inspection.suspects import SUSPECT_KINDS, Suspects
from yogo_jax.inspection.text import anchor, class_rows, sizes
from yogo_jax.reports.pages import Block, Gallery, Picture, Section, Table, Text, render_page


SAMPLES_PER_SPLIT = 3
PICTURES_OF_A_KIND = 8
SAMPLE_WIDTH, PAIR_HEIGHT, THUMBNAIL_WIDTH = 640, 300, 320
SIDE_BY_SIDE = 3


def render_inspection(
    inspection: Inspection,
    *,
    top: int,
    more_rows: Sequence[Sequence[object]] = (),
    more: Sequence[Section] = (),
) -> str:
    """The page as HTML.

    Args:
      inspection: what was found.
      top: findings of each kind to list; the JSON lists more.
      more_rows: rows of (what, how many, what to do) for the end of the summary.
      more: sections to put before the sample pictures.
    """
    sections = [
        Section("summary", "What was found", [_summary(inspection, more_rows)]),
        Section("content", "What is in the data", [*_content(inspection)]),
        *(
            Section(
                kind.replace("_", "-"), _headline(kind, found), [*_kind(inspection, found, top)]
            )
            for kind, found in inspection.findings.items()
        ),
        *more,
        Section("samples", "Samples", [*_samples(inspection)]),
    ]
    subtitle = f"{inspection.definition.path}: what is in the data and what is wrong with it"
    return render_page(f"Inspection of {_title(inspection)}", subtitle, sections)


def _title(inspection: Inspection) -> str:
    path = inspection.definition.path
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def _headline(kind: str, found: Listing) -> str:
    title = KINDS[kind].title
    return f"{title[0].upper()}{title[1:]}: {found.count:,}"


def _summary(inspection: Inspection, more_rows: Sequence[Sequence[object]]) -> Block:
    rows: list[Sequence[object]] = [
        [KINDS[kind].title, found.count, KINDS[kind].advice]
        for kind, found in inspection.findings.items()
    ]
    rows += more_rows
    if not rows:
        return Text("Nothing wrong was found.")
    return Table(
        ["finding", "how many", "what to do"], rows, "What is wrong, the worst first", wrap=True
    )


def _content(inspection: Inspection) -> Iterable[Block]:
    scanned = inspection.scanned
    yield Table(*class_rows(inspection), "Boxes that a training uses, and images")
    yield Table(
        ["size, px", "images"],
        [[f"{height} x {width}", count] for (height, width), count in sizes(inspection)[:12]],
        "Sizes of the images, rows x columns",
    )
    formats = Counter(filter(None, scanned.stored_as)).most_common()
    yield Table(["stored as", "images"], [[*each] for each in formats], "How they are stored")
    if inspection.grid is not None:
        lost = inspection.findings.get("shared_cell", Listing(0, [])).count
        yield Text(
            f"Boxes are learnt on {inspection.grid}; boxes that lose their cell to another: {lost}."
        )
    if (text := anchor(inspection)) is not None:
        yield Text(f"The mean training box, as an anchor: --config.model.anchor={text}")
    yield from plot_data(inspection)


def _kind(inspection: Inspection, found: Listing, top: int) -> Iterable[Block]:
    kind = found.listed[0].kind
    yield Text(KINDS[kind].advice)
    shown = found.listed[:top]
    rows = [[short(inspection, finding.place), finding.message] for finding in shown]
    caption = f"The first {len(shown)} of {found.count:,}; inspection.json lists them"
    caption = "" if found.count == len(shown) else caption
    yield Table(["where", "what"], rows, caption, wrap=True)
    drawn = filter(None, (_picture(inspection, each) for each in shown[:PICTURES_OF_A_KIND]))
    pictures = [*drawn]
    if pictures and kind.startswith(("identical", "near_duplicate")):
        yield from pictures
    elif pictures:
        yield Gallery(pictures)


def short(inspection: Inspection, place: str) -> str:
    """A path without the folder of the definition, where it lies in that."""
    folder = f"{inspection.definition.path.parent}{os.sep}"
    return place.removeprefix(folder)


def read_frame(inspection: Inspection, path: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The frame in RGB, as the inspection turned it; None if it cannot be read."""
    apply_orientation = inspection.scanned.apply_orientation
    try:
        return np.asarray(decode_file(path, rgb=True, apply_orientation=apply_orientation).pixels)
    except UserError:
        return None


def _picture(inspection: Inspection, finding: Finding) -> Picture | None:
    """The finding as a picture: frames side by side, boxes on a part of one, or one frame."""
    read = (read_frame(inspection, path) for path in finding.images[:SIDE_BY_SIDE])
    frames = [frame for frame in read if frame is not None]
    if not frames:
        return None
    place = short(inspection, finding.place)
    if len(finding.images) > 1:
        names = " | ".join(short(inspection, path) for path in finding.images[:SIDE_BY_SIDE])
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
            frame = read_frame(inspection, records.image_paths[i])
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


# More pictures than these of one kind would make the page heavy; the table goes on.
MOST_PICTURES = 60


def suspect_rows(suspects: Suspects) -> list[list[object]]:
    """Rows of the summary; the ranking by loss holds good labels, too, and is none."""
    return [
        [title, suspects.counts[kind], advice]
        for kind, (title, advice) in SUSPECT_KINDS.items()
        if suspects.counts[kind] and kind != "high_loss"
    ]


def suspect_sections(
    inspection: Inspection, suspects: Suspects, *, top: int, checkpoint: str
) -> list[Section]:
    """A section for each kind of suspect that there is.

    Args:
      inspection: of the data.
      suspects: what the detector contradicts.
      top: how many of each kind to list.
      checkpoint: what to call the detector.
    """
    return [
        Section(
            f"suspects-{kind.replace('_', '-')}",
            f"{title[0].upper()}{title[1:]}: {suspects.counts[kind]:,}",
            [
                *([Text(suspects.warning)] if suspects.warning else []),
                *_suspect_kind(inspection, suspects, kind, top, checkpoint),
            ],
        )
        for kind, (title, _) in SUSPECT_KINDS.items()
        if suspects.counts[kind]
    ]


def _suspect_kind(
    inspection: Inspection, suspects: Suspects, kind: str, top: int, checkpoint: str
) -> Iterator[Block]:
    shown = suspects.listed[kind][:top]
    yield Text(f"{SUSPECT_KINDS[kind].advice} As {checkpoint} sees them.")
    pictures = []
    for suspect in shown[:MOST_PICTURES]:
        frame = read_frame(inspection, suspect.image)
        if frame is None:
            continue
        box = np.array([[suspect.x_center, suspect.y_center, suspect.width, suspect.height]])
        boxes_xyxy = cxcywh_to_xyxy(box)
        image = draw_crop(frame, boxes_xyxy[0], boxes_xyxy)
        caption = f"{suspect.rank}. {suspect.describe()}: {short(inspection, suspect.place)}"
        pictures.append(Picture(image, caption, lossy=True))
    yield Gallery(pictures)
    rows = [
        [
            suspect.rank,
            short(inspection, suspect.place),
            suspect.given,
            suspect.predicted,
            suspect.probability,
            suspect.objectness,
            suspect.loss,
        ]
        for suspect in shown
    ]
    header = ["rank", "where", "label", "detector", "probability", "objectness", "loss"]
    more = "; suspects.csv has more" if len(suspects.listed[kind]) > len(shown) else ""
    caption = f"The first {len(shown)} of {suspects.counts[kind]:,}{more}"
    yield Table(header, rows, "" if suspects.counts[kind] == len(shown) else caption)
