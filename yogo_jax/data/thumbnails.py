"""Cut-out cells of a definition's `thumbnail_augmentation`, for pasting into training images."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from yogo_jax.data.images import decode_image, is_image_name, resize_image
from yogo_jax.errors import UserError


# Of either side of the image: what is larger leaves no place to paste it in.
_LARGEST = 0.5
# Training images of which the size is compared.
_COMPARED = 100


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Cut-out cells at the scale of the training images.

    Attributes:
      images: each in the top left corner of [h w c], the rest of which is 0.
      sizes_hw: of each, in px.
      class_ids: of each.
      left_out: how many were smaller than the least box.
    """

    images: UInt8[np.ndarray, "t h w c"]
    sizes_hw: Int32[np.ndarray, "t 2"]
    class_ids: Int32[np.ndarray, " t"]
    left_out: int

    def shares(self) -> Float32[np.ndarray, " t"]:
        """Probability to be taken: equal for all classes, and within a class for all thumbnails."""
        _, own_class, counts = np.unique(self.class_ids, return_inverse=True, return_counts=True)
        return (1 / (len(counts) * counts[own_class])).astype(np.float32)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all of them."""
        digest = hashlib.sha256()
        for array in (self.images, self.sizes_hw, self.class_ids):
            digest.update(f"{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()


def load_thumbnails(
    folders: Mapping[str, Sequence[Path]],
    class_names: Sequence[str],
    *,
    image_paths: Sequence[str],
    image_hw: tuple[int, int],
    rgb: bool,
    min_box_area: float,
    apply_orientation: bool = True,
) -> Thumbnails:
    """All thumbnails, in the order of the classes and of their paths.

    They are taken to be cut from frames of the size that the training images have on disk, and are
    resized as those are.

    Args:
      folders: class name -> where its thumbnails lie.
      class_names: of the data set.
      image_paths: of the training images.
      image_hw: that the training images are resized to.
      rgb: three channels instead of one.
      min_box_area: thumbnails of less area, as a fraction of the image's, are left out.
      apply_orientation: turn images and thumbnails as their EXIF or TIFF tag says.

    Raises:
      UserError: a file cannot be read or is too large to be pasted, none is left, or the training
        images are of several sizes, so that there is no telling the scale.
    """
    decode = functools.partial(decode_image, rgb=rgb, apply_orientation=apply_orientation)
    frame_hw = _size_on_disk(image_paths, decode)
    cells: list[np.ndarray] = []
    class_ids: list[int] = []
    left_out = 0
    for class_id, name in enumerate(class_names):
        paths = [
            folder / file
            for folder in folders.get(name, ())
            for file in sorted(os.listdir(folder))
            if is_image_name(file)
        ]
        for path in paths:
            cell = decode(path)
            height, width = (
                max(round(side * new / old), 1)
                for side, new, old in zip(cell.shape[:2], image_hw, frame_hw, strict=True)
            )
            if height > _LARGEST * image_hw[0] or width > _LARGEST * image_hw[1]:
                raise UserError(
                    f"{path}: {cell.shape[0]}x{cell.shape[1]} px; expected one cell, at most half "
                    f"as high and wide as the training images, which are {frame_hw[0]}x"
                    f"{frame_hw[1]} px; cut it out more closely or remove it"
                )
            if height * width < min_box_area * image_hw[0] * image_hw[1]:
                left_out += 1
                continue
            cells.append(resize_image(cell, (height, width)))
            class_ids.append(class_id)
    if not cells:
        raise UserError(
            f"thumbnail_augmentation: all {left_out} thumbnails are smaller than "
            "data.min_box_area; expected cut-out cells in the size that they have in the images"
        )
    sizes_hw = np.asarray([cell.shape[:2] for cell in cells], np.int32)
    images = np.zeros((len(cells), *sizes_hw.max(0), cells[0].shape[-1]), np.uint8)
    for image, cell in zip(images, cells, strict=True):
        image[: cell.shape[0], : cell.shape[1]] = cell
    return Thumbnails(images, sizes_hw, np.asarray(class_ids, np.int32), left_out)


def _size_on_disk(
    image_paths: Sequence[str], decode: Callable[[str], np.ndarray]
) -> tuple[int, int]:
    """Rows and columns of the training images, of which some are looked at."""
    step = -(-len(image_paths) // _COMPARED)
    first = image_paths[0]
    first_hw = decode(first).shape[:2]
    for path in image_paths[step::step]:
        other_hw = decode(path).shape[:2]
        if other_hw != first_hw:
            raise UserError(
                f"augment.thumbnails: {first} has {first_hw[0]}x{first_hw[1]} px and {path} "
                f"{other_hw[0]}x{other_hw[1]}; expected training images of one size, which is also "
                "the scale of the thumbnails; resize them, or set --config.augment.thumbnails=0"
            )
    return first_hw[0], first_hw[1]
