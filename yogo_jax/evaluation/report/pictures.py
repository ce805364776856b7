"""Frames with their boxes, drawn after an evaluation: the pixels are read again from the files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from yogo_jax.data.images import read_image
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.evaluator import ImageResult
from yogo_jax.evaluation.pages import Picture
from yogo_jax.output.draw import draw_boxes, draw_outcomes
from yogo_jax.output.files import whole_file


# On a page: larger frames are reduced to this longer side, from there on they take a whole row.
MAX_SIDE_PX = 1000
WIDE_FROM_PX = 800
# Characters of a file's stem that its picture's name has, so that it is never too long.
MAX_STEM = 60


def write_pictures(
    images: Sequence[ImageResult], spec: ModelSpec, folder: Path, count: int
) -> None:
    """Writes the first images as PNG files, with boxes found (solid) and true (dashed).

    Args:
      images: of an evaluation.
      spec: says how images are read, and the class names.
      folder: made if there is something to write.
      count: how many at most. Pictures that an earlier evaluation left there are removed.

    Raises:
      UserError: an image can no longer be read.
    """
    written: list[Path] = []
    for index, image in enumerate(images[:count]):
        picture = draw_boxes(
            read_image(
                image.path,
                image_hw=spec.image_hw,
                rgb=spec.rgb,
                apply_orientation=spec.apply_orientation,
            ),
            image.found.boxes_xyxy,
            image.found.class_ids,
            spec.class_names,
            scores=image.found.scores,
            label_boxes_xyxy=image.label_boxes_xyxy,
            label_class_ids=image.label_class_ids,
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{index:03d}_{Path(image.path).stem[:MAX_STEM]}.png"
        with whole_file(path) as temporary:
            picture.save(temporary, format="PNG")
        written.append(path)
    # Of an evaluation before this one: beside these they would pass for its pictures.
    for old in set(folder.glob("[0-9][0-9][0-9]_*.png")) - set(written):
        old.unlink()


def worst_pictures(images: Sequence[ImageResult], spec: ModelSpec, count: int) -> list[Picture]:
    """The images of the largest loss, worst first, with what was found, missed and extra.

    Args:
      images: of an evaluation.
      spec: says how images are read, and the class names.
      count: how many at most.

    Raises:
      UserError: an image can no longer be read.
    """
    worst = sorted(images, key=lambda image: -image.loss)[:count]
    return [_picture(image, spec) for image in worst]


def _picture(image: ImageResult, spec: ModelSpec) -> Picture:
    matches = image.matches
    drawn = draw_outcomes(
        read_image(
            image.path,
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            apply_orientation=spec.apply_orientation,
        ),
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
