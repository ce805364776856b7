"""Pictures of evaluated frames with their boxes; the pixels are read again from the files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from yogo_jax.data.images import read_image
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.drawing import draw_boxes, draw_outcomes
from yogo_jax.files import whole_file
from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.reports.pages import Picture


# Pictures on a page are reduced to this longer side. From the second size on they are wide.
MAX_SIDE_PX = 1000
WIDE_FROM_PX = 800
# The name of a picture has at most so many characters of the image's name.
MAX_STEM = 60
_PICTURE_NAME = re.compile(r"[0-9]{3,}_[^/\\\0]*\.png", re.DOTALL)


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
