"""The grid of a network: its size for an image, and the cells of boxes; without importing JAX."""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float, Int

from yogo_jax.errors import UserError


def convolved_hw(
    image_hw: tuple[int, int], layers: Iterable[tuple[int, int, int]]
) -> tuple[int, int]:
    """(rows, columns) after a chain of convolutions given as (kernel, stride, padding).

    Each makes `floor((n + 2p - k) / s) + 1` of a length n.

    Raises:
      UserError: the image is smaller than the layers need.
    """
    height, width = image_hw
    for kernel, stride, padding in layers:
        height = (height + 2 * padding - kernel) // stride + 1
        width = (width + 2 * padding - kernel) // stride + 1
    if height < 1 or width < 1:
        raise UserError(
            f"an image of {image_hw[0]}x{image_hw[1]} px is too small for this architecture, no "
            "cell of its grid is left: set a larger --config.data.image_hw"
        )
    return height, width


def receptive_field(layers: Iterable[tuple[int, int, int]]) -> int:
    """Side in px of what one cell sees through convolutions given as (kernel, stride, padding).

    References:
      Araujo et al. 2019, Computing Receptive Fields of Convolutional Neural Networks, Distill,
      equation 2.
    """
    side, stride_so_far = 1, 1
    for kernel, stride, _ in layers:
        side += (kernel - 1) * stride_so_far
        stride_so_far *= stride
    return side


def cells_of_boxes(boxes_cxcywh: Float[Any, "n 4"], grid_hw: tuple[int, int]) -> Int[Any, " n"]:
    """The row-major index of the cell that holds each centre; one at 1.0 is in the last cell.

    Args:
      boxes_cxcywh: in [0, 1], JAX or NumPy; the result is an array of the same library.
      grid_hw: (rows, columns).
    """
    xp = boxes_cxcywh.__array_namespace__()
    rows, columns = grid_hw
    row = xp.clip(xp.floor(boxes_cxcywh[:, 1] * rows).astype(xp.int32), 0, rows - 1)
    column = xp.clip(xp.floor(boxes_cxcywh[:, 0] * columns).astype(xp.int32), 0, columns - 1)
    return row * columns + column


def whole_frame_hw(
    image_hw: tuple[int, int], size_multiplier_wh: tuple[float, float]
) -> tuple[int, int]:
    """Rows and columns of the frame that images of a network for a crop are cut from.

    A network for images larger than those it was trained on sees all of them.

    Args:
      image_hw: what the network takes.
      size_multiplier_wh: original size / cropped size.
    """
    (rows, columns), (multiplier_w, multiplier_h) = image_hw, size_multiplier_wh
    return max(rows, round(rows * multiplier_h)), max(columns, round(columns * multiplier_w))
