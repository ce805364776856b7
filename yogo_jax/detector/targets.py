"""Targets of the loss: the labels of one image on the cells of its grid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.grid import cells_of_boxes


class Targets(NamedTuple):
    """Targets of one image on its grid; cells without an object hold zeros."""

    objectness: Float[Array, "gh gw"]
    boxes_xyxy: Float[Array, "gh gw 4"]
    class_ids: Int[Array, "gh gw"]


def winners_by_cell(
    cells: Int[Array, " n"], valid: Bool[Array, " n"], *, num_cells: int
) -> Int[Array, " cells"]:
    """The last valid row of each cell, negative for a cell without any; the same on any device."""
    # Padding rows go to a cell behind the last one, which is cut off again.
    cells = jnp.where(valid, cells, num_cells)
    index = jnp.arange(cells.shape[0], dtype=jnp.int32)
    return jax.ops.segment_max(index, cells, num_segments=num_cells + 1)[:-1]


def bin_targets(
    boxes_cxcywh: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    grid_hw: tuple[int, int],
) -> Targets:
    """Targets of one image: each valid box fills the cell that holds its centre.

    Of two boxes in one cell the later row wins, on every device: the largest row index per cell
    is reduced first and then gathered, where a scatter would leave the order to the hardware. A
    centre at exactly 1.0 belongs to the last cell.

    Args:
      boxes_cxcywh: boxes in [0, 1], relative to image width and height.
      class_ids: index into `class_names`; ignored where `valid` is False.
      valid: False on padding rows.
      grid_hw: (rows, columns) of the head.

    References:
      Redmon and Farhadi 2016, YOLO9000, arXiv:1612.08242, section 2.
    """
    cells = cells_of_boxes(boxes_cxcywh, grid_hw)
    winner = winners_by_cell(cells, valid, num_cells=grid_hw[0] * grid_hw[1])
    filled = winner >= 0
    source = jnp.maximum(winner, 0)
    boxes_xyxy = jnp.where(filled[:, None], cxcywh_to_xyxy(boxes_cxcywh)[source], 0)
    return Targets(
        objectness=filled.astype(boxes_cxcywh.dtype).reshape(grid_hw),
        boxes_xyxy=boxes_xyxy.reshape(*grid_hw, 4),
        class_ids=jnp.where(filled, class_ids[source], 0).reshape(grid_hw),
    )
