"""Images of another shape than the network's, and by how much they are stretched."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from yogo_jax.data.images import header_hw


# Images whose size is looked at.
LOOKED_AT = 64
# By so much one side of an image may be stretched against the other without a word.
STRETCH = 1.1


class Stretch(NamedTuple):
    """The stretch of images of another shape to that of the network.

    Attributes:
      image_hw: that they get.
      path: of the image that is stretched most.
      found_hw: of this image.
      factor: of one of its sides, against the other.
      share: of the images looked at, that are stretched by more than STRETCH.
      turned: share of them that would be stretched less if height and width changed places.
    """

    image_hw: tuple[int, int]
    path: str
    found_hw: tuple[int, int]
    factor: float
    share: float
    turned: float

    def __str__(self) -> str:
        rows, columns = self.found_hw
        return (
            f"warning: {self.share:.0%} of the images have another shape than "
            f"{self.image_hw[0]}x{self.image_hw[1]} px and are stretched to it, by up to "
            f"{self.factor:.2f} ({self.path}: {rows}x{columns} px)"
        )


def stretch_of(
    image_paths: Sequence[str], image_hw: tuple[int, int], apply_orientation: bool = True
) -> Stretch | None:
    """The stretch of some images, of which up to 64 are read; None if it is next to nothing.

    Args:
      image_paths: of the images.
      image_hw: that they get.
      apply_orientation: whether they are turned as their EXIF or TIFF tag says.
    """
    step = -(-len(image_paths) // LOOKED_AT) or 1
    by_path = {
        path: header_hw(path, apply_orientation=apply_orientation) for path in image_paths[::step]
    }
    sizes = [(path, hw) for path, hw in by_path.items() if hw is not None]
    if not sizes:
        return None
    # In logarithms of width / height a turned image has the other sign.
    shapes = np.array([math.log(columns / rows) for _, (rows, columns) in sizes])
    wanted = math.log(image_hw[1] / image_hw[0])
    by = np.abs(wanted - shapes)
    stretched = by > math.log(STRETCH)
    if not stretched.any():
        return None
    path, hw = sizes[int(by.argmax())]
    turned = stretched & (np.abs(wanted + shapes) < by)
    return Stretch(
        image_hw, path, hw, math.exp(by.max()), float(stretched.mean()), float(turned.mean())
    )
