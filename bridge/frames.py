"""Frames that exported models are verified on."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from yogo_jax.data.definition import load_definition
from yogo_jax.data.frames import draw_frame
from yogo_jax.data.images import read_image
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.data.splits import load_splits
from yogo_jax.data.synthetic import CLASS_PROPORTIONS
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError


_LEAST_SIDE = 96  # of a drawn frame in px


def verification_frames(spec: ModelSpec, count: int = 3) -> UInt8[np.ndarray, "n h w c"]:
    """The same random frames at every call: one of noise, the others with drawn cells."""
    rng = np.random.default_rng(0)
    rows, columns = spec.image_hw
    frames = [rng.integers(0, 256, (rows, columns, spec.channels), np.uint8)]
    size = (max(rows, _LEAST_SIDE), max(columns, _LEAST_SIDE))
    while len(frames) < count:
        drawn = draw_frame(
            rng,
            size,
            cells_per_frame=max(size[0] * size[1] / 20_000, 2.0),
            class_proportions=CLASS_PROPORTIONS,
        )
        gray = drawn.image[:rows, :columns, None]
        frames.append(np.repeat(gray, spec.channels, axis=2))
    return np.stack(frames)


def frames_of_definition(
    definition: Path, trained: ModelSpec, served: ModelSpec, count: int = 4
) -> UInt8[np.ndarray, "n h w c"]:
    """Frames of a data set, of its test split if it has one, cut to what is served.

    A crop is taken from the middle, as the instrument takes it.

    Raises:
      UserError: the definition or an image cannot be read, or the served images are larger.
    """
    splits = load_splits(
        load_definition(definition),
        min_box_area=MIN_BOX_AREA,
        on_bad_label="skip",
        split_override=None,
        require_train=False,
    )
    by_preference = (splits.test, splits.val, splits.train)
    records = next((each for each in by_preference if len(each)), splits.train)
    (height, width), (rows, columns) = trained.image_hw, served.image_hw
    if rows > height or columns > width or len(records) == 0:
        raise UserError(
            f"--definition {definition}: needs images, and they are read at {height}x{width} px, "
            f"which must hold the {rows}x{columns} px that are served"
        )
    top, left = (height - rows + 1) // 2, (width - columns + 1) // 2
    paths = records.image_paths[:count]
    frames = [read_image(path, image_hw=trained.image_hw, rgb=trained.rgb) for path in paths]
    return np.stack(frames)[:, top : top + rows, left : left + columns]
