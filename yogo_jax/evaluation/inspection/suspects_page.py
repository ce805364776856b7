"""The part of an inspection's page on labels that a detector contradicts."""

from collections.abc import Iterator

import numpy as np

from yogo_jax.data.box_checks import corners_of
from yogo_jax.data.inspection import Inspection
from yogo_jax.evaluation.inspection.page import read_frame, short
from yogo_jax.evaluation.inspection.suspects import SUSPECT_KINDS, Suspects
from yogo_jax.evaluation.pages import Block, Gallery, Picture, Section, Table, Text
from yogo_jax.output.crops import draw_crop


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
                *_kind(inspection, suspects, kind, top, checkpoint),
            ],
        )
        for kind, (title, _) in SUSPECT_KINDS.items()
        if suspects.counts[kind]
    ]


def _kind(
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
        boxes_xyxy = corners_of(box)
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
