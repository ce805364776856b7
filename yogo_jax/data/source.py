"""Padded examples by record index: the arrays that the device gets of one image."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from yogo_jax.data.images import read_image
from yogo_jax.data.records import Records
from yogo_jax.errors import UserError


class Example(TypedDict):
    """One image in arrays of fixed size; batched, every array gains a leading axis."""

    image: UInt8[np.ndarray, "h w c"]
    boxes_cxcywh: Float[np.ndarray, "n 4"]
    class_ids: Int[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]
    image_valid: Bool[np.ndarray, ""]
    record_index: Int[np.ndarray, ""]


def padded_box_count(records: list[Records], max_boxes: int) -> int:
    """Rows that the boxes of every image are padded to, at least 1.

    Args:
      records: all splits of a run, so that they share one compiled step.
      max_boxes: the asked-for number, or 0 for the most boxes of any image.

    Raises:
      UserError: an image has more boxes than `max_boxes`; none is dropped silently.
    """
    most = 0
    for split in records:
        for index, count in enumerate(split.box_counts):
            if max_boxes and count > max_boxes:
                raise UserError(
                    f"config.data.max_boxes is {max_boxes}, but {split.image_paths[index]} has "
                    f"{count} boxes: raise it, or set it to 0 for the most of any image"
                )
            most = max(most, int(count))
    return max_boxes or max(most, 1)


class PackedImages:
    """A pack of decoded images, which each process maps into memory when it first reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def array(self) -> UInt8[np.ndarray, "n h w c"]:
        """All images, read-only."""
        return np.load(self.path, mmap_mode="r")

    @property
    def made(self) -> bool:
        """True once it is there."""
        return self.path.exists()

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return np.array(self.array[index])

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}  # the pixels themselves would go through a pipe


class RecordSource:
    """Examples by record index; reads the image file at each access, or takes it from a pack."""

    def __init__(
        self,
        records: Records,
        *,
        image_hw: tuple[int, int],
        rgb: bool,
        max_boxes: int,
        apply_orientation: bool = True,
        packed: PackedImages | None = None,
    ) -> None:
        self._records = records
        self._image_hw = image_hw
        self._rgb = rgb
        self._apply_orientation = apply_orientation
        self._max_boxes = max_boxes
        self._packed = packed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        boxes_cxcywh, class_ids = self._records.labels_of(index)
        example = self.padding()
        example["image"] = self._image(index)
        count = len(class_ids)
        example["boxes_cxcywh"][:count] = boxes_cxcywh
        example["class_ids"][:count] = class_ids
        example["valid"][:count] = True
        example["image_valid"] = np.asarray(True)
        example["record_index"] = np.asarray(index, np.int32)
        return example

    @property
    def nbytes(self) -> int:
        """Bytes of `all`."""
        row = self.padding()
        arrays = (row["image"], row["boxes_cxcywh"], row["class_ids"], row["valid"])
        return (len(self) + 1) * sum(array.nbytes for array in arrays)

    def all(self) -> dict[str, np.ndarray]:
        """All records in one array each of images, boxes, classes and `valid`.

        The last row is padding.
        """
        rows, row = len(self) + 1, self.padding()
        everything = {
            "image": np.zeros((rows, *row["image"].shape), np.uint8),
            "boxes_cxcywh": np.zeros((rows, self._max_boxes, 4), np.float32),
            "class_ids": np.zeros((rows, self._max_boxes), np.int32),
            "valid": np.zeros((rows, self._max_boxes), bool),
        }
        for index in range(len(self)):
            example: Mapping[str, Any] = self[index]
            for name, array in everything.items():
                array[index] = example[name]
        return everything

    def _image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        if self._packed is not None:
            return self._packed[index]
        path = self._records.image_paths[index]
        return read_image(
            path,
            image_hw=self._image_hw,
            rgb=self._rgb,
            apply_orientation=self._apply_orientation,
        )

    def padding(self) -> Example:
        """An example that stands for no image: zeros, nowhere valid."""
        channels = 3 if self._rgb else 1
        return Example(
            image=np.zeros((*self._image_hw, channels), np.uint8),
            boxes_cxcywh=np.zeros((self._max_boxes, 4), np.float32),
            class_ids=np.zeros(self._max_boxes, np.int32),
            valid=np.zeros(self._max_boxes, bool),
            image_valid=np.asarray(False),
            record_index=np.asarray(-1, np.int32),
        )
