"""Options of a model, what it takes of a frame, and the part of a frame that becomes its input."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.data.images import resize_image
from yogo_jax.detector.detections import Thresholds
from yogo_jax.errors import UserError


Frames = UInt8[np.ndarray, "b h w c"]
Outputs = Float[np.ndarray, "b outputs gh gw"]

# Sides of two sizes are of one shape up to this; more would be squeezed visibly.
_SAME_SHAPE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Wishes of the user for a model; None where there is none.

    Attributes:
      crop_height: rows to look at, up to 1 a fraction of the frame, above that px.
      class_names: instead of the model's own; those of a model of another maker.
      normalize_images: divide pixels by 255 before they go into a model of another maker.
      batch_size: frames that are with the network at a time.
      precision: "f32", "bf16", "f16", or "half": the one of the latter two that there is.
    """

    crop_height: float | None = None
    class_names: tuple[str, ...] = ()
    normalize_images: bool | None = None
    batch_size: int | None = None
    precision: str = "f32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """A model as its user sees it.

    Attributes:
      class_names: in the order of the class channels.
      image_hw: what the network takes, in px.
      frame_hw: the whole frame of which that is the middle; None if nobody has said so.
      rgb: three channels instead of one.
      thresholds: that the model asks for.
      apply_orientation: whether it was trained on images turned as their EXIF or TIFF tag says;
        True for models that do not say.
    """

    class_names: tuple[str, ...]
    image_hw: tuple[int, int]
    frame_hw: tuple[int, int] | None
    rgb: bool
    thresholds: Thresholds
    apply_orientation: bool = True


class View(NamedTuple):
    """The part of a frame that the network sees.

    Attributes:
      image: of the size that it takes.
      window_xyxy: where that lies, as fractions of the frame.
    """

    image: UInt8[np.ndarray, "h w c"]
    window_xyxy: tuple[float, float, float, float]


def view_of(frame: UInt8[np.ndarray, "h w c"], serving: ServingSpec) -> View:
    """The part of a frame that the network takes, at its scale.

    A frame of the size that the network takes goes in as it is. Any other is resized to the whole
    frame that the network was made for, as in training, and its middle rows and columns are cut
    out: of an odd rest one more lies above, as the instrument does it.

    Raises:
      UserError: how much of the frame is meant is not known, see `--crop-height`.
    """
    (rows, columns), whole = serving.image_hw, serving.frame_hw
    if frame.shape[:2] == serving.image_hw:
        return View(frame, (0.0, 0.0, 1.0, 1.0))
    if whole is None:
        height, width = frame.shape[:2]
        if abs(height * columns / (width * rows) - 1) > _SAME_SHAPE:
            middle = f"--crop-height {rows / height:.4g} for its middle rows at their own scale, "
            raise UserError(
                f"the network takes {rows}x{columns} px, the frame is {height}x{width}: say how "
                f"much of a frame it is for, {middle if rows < height else ''}--crop-height 1 for "
                "the whole frame squeezed"
            )
        whole = serving.image_hw
    height, width = whole
    top, left = (height - rows + 1) // 2, (width - columns + 1) // 2
    image = resize_image(frame, whole)[top : top + rows, left : left + columns]
    window = (left / width, top / height, (left + columns) / width, (top + rows) / height)
    return View(np.ascontiguousarray(image), window)


def normalization_is_fixed(path: Path) -> UserError:
    """The error on --normalize-images for a model that describes itself."""
    return UserError(
        f"{path}: says itself whether its pixels are divided by 255: leave out --normalize-images "
        "and --no-normalize-images"
    )


def renamed(path: Path, own: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """The model's own class names, or those given instead.

    Raises:
      UserError: they are not as many.
    """
    doubled = sorted({name for name in given if given.count(name) > 1})
    if doubled:
        raise UserError(f"--class-names has {', '.join(doubled)} twice: give each class its own")
    if given and len(given) != len(own):
        raise UserError(
            f"--class-names has {len(given)} names, {path} has {len(own)} classes: {', '.join(own)}"
        )
    return given or own
