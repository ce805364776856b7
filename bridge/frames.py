"""Frames that exported models are verified on, and calibrated with."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from yogo_jax.data.definition import load_definition
from yogo_jax.data.headers import lines_on
from yogo_jax.data.images import read_image
from yogo_jax.data.records import MIN_BOX_AREA, Records
from yogo_jax.data.splits import load_splits
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.synthetic.flow import CLASS_PROPORTIONS, draw_frame


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


class Strips:
    """Images of a data set cut to what is served: the middle strip, as the instrument takes it.

    Args:
      records: of the data set.
      trained: the model for whole images, at whose size they are read.
      served: the model for the strips.

    Raises:
      UserError: the served images are larger than those trained on.
    """

    def __init__(self, records: Records, trained: ModelSpec, served: ModelSpec) -> None:
        (height, width), (rows, columns) = trained.image_hw, served.image_hw
        if rows > height or columns > width:
            raise UserError(
                f"images of a data set are read at {height}x{width} px, as trained on, which must "
                f"hold the {rows}x{columns} px that are served: leave out the data set, or choose "
                "a smaller --image-hw"
            )
        self._records = records
        self._trained = trained
        self._hw = (rows, columns)
        self._top_left = ((height - rows + 1) // 2, (width - columns + 1) // 2)

    def __len__(self) -> int:
        return len(self._records)

    def frame(self, i: int | np.integer) -> UInt8[np.ndarray, "h w c"]:
        """The strip of image i.

        Raises:
          UserError: the image cannot be read.
        """
        path = self._records.image_paths[i]
        trained = self._trained
        image = read_image(
            path,
            image_hw=trained.image_hw,
            rgb=trained.rgb,
            apply_orientation=trained.apply_orientation,
        )
        (top, left), (rows, columns) = self._top_left, self._hw
        return image[top : top + rows, left : left + columns]

    def labels_of(
        self, i: int | np.integer
    ) -> tuple[Float32[np.ndarray, "n 4"], Int32[np.ndarray, " n"]]:
        """Corners, as fractions of the strip, and class ids of the boxes with their centre in it.

        Boxes are not cut: they may reach over the edges of the strip.
        """
        boxes_cxcywh, class_ids = self._records.labels_of(i)
        (height, width), (top, left) = self._trained.image_hw, self._top_left
        rows, columns = self._hw
        scale = np.asarray((width / columns, height / rows), np.float32)
        centers = boxes_cxcywh[:, :2] * scale
        centers -= np.asarray((left / columns, top / rows), np.float32)
        halves = boxes_cxcywh[:, 2:] * scale / 2
        inside = ((centers >= 0) & (centers <= 1)).all(-1)
        boxes_xyxy = np.concatenate([centers - halves, centers + halves], axis=-1)
        return boxes_xyxy[inside], class_ids[inside]


def frames_of_definition(
    definition: Path, trained: ModelSpec, served: ModelSpec, count: int = 4
) -> UInt8[np.ndarray, "n h w c"]:
    """Frames of a data set, of its test split if it has one, cut to what is served.

    Raises:
      UserError: the definition or an image cannot be read, there is none, or the served images are
        larger.
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
    strips = Strips(records, trained, served)
    for line in lines_on(records.image_paths[:count], applied=trained.apply_orientation):
        print(line)
    if len(strips) == 0:
        raise UserError(f"--definition {definition}: expected labelled images, found none")
    return np.stack([strips.frame(i) for i in range(min(count, len(strips)))])
