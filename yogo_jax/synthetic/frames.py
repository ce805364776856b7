"""Frames of every domain: they place cells, paste sprites, and find boxes in the same way."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from yogo_jax.synthetic.shapes import Sprite


Layers = Float32[np.ndarray, "*stains h w"]

_SMALLEST_BOX_AREA = 200 / (772 * 1032)  # of the image: what the readers of labels keep
_LEAST_VISIBLE = 0.25  # of a cell cut by the edge, for it to have a label
_ATTEMPTS = 20  # at placing one cell


class Frame(NamedTuple):
    """A frame, gray or RGB, and its labels."""

    image: UInt8[np.ndarray, "h w *rgb"]
    boxes_cxcywh: Float32[np.ndarray, "n 4"]
    class_ids: Int32[np.ndarray, " n"]


class Cell(NamedTuple):
    """One object to draw; lengths in pixels."""

    class_id: int
    radius: float
    y: float
    x: float


class Crowding(NamedTuple):
    """Distances between cells, in units of the sum of two cells' radii."""

    touching: float  # share of cells that lie against the one before
    reach: tuple[float, float]  # distances at which these are tried
    closest: float  # least distance of these to any other
    apart: float  # least distance of all others


def place_cells(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    cells_per_frame: float,
    class_proportions: tuple[float, ...],
    radii: Mapping[str, tuple[float, float]],
    crowding: Crowding,
) -> list[Cell]:
    """Cells at random positions; fewer than asked for where there is no room.

    Args:
      rng: the only source of randomness.
      image_hw: rows and columns.
      cells_per_frame: mean number of cells, Poisson distributed.
      class_proportions: probability of each class.
      radii: least and most half extent in px of each class, in the order of the classes.
      crowding: how close they may lie.
    """
    names = tuple(radii)
    placed: list[Cell] = []
    for _ in range(rng.poisson(cells_per_frame)):
        class_id = int(rng.choice(len(names), p=class_proportions))
        name = names[class_id]
        radius = rng.uniform(*radii[name])
        # A parasite out of sight would make a label nobody could find: only healthy cells may
        # lie mostly outside.
        margin = (-0.55 if name == "healthy" else 0.3) * radius
        neighbour = placed[-1] if placed and rng.random() < crowding.touching else None
        for _ in range(_ATTEMPTS):
            y, x = _position(rng, image_hw, margin, radius, neighbour, crowding.reach)
            closest = crowding.apart if neighbour is None else crowding.closest
            # A negative margin lets the centre lie outside.
            inside = all(
                margin <= at <= side - 1 - margin for at, side in zip((y, x), image_hw, strict=True)
            )
            if inside and all(
                math.hypot(y - cell.y, x - cell.x) >= closest * (radius + cell.radius)
                for cell in placed
            ):
                placed.append(Cell(class_id, radius, y, x))
                break
    return placed


def _position(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    margin: float,
    radius: float,
    neighbour: Cell | None,
    reach: tuple[float, float],
) -> tuple[float, float]:
    """A candidate position: against the neighbour if there is one, else anywhere."""
    if neighbour is None:
        y, x = (rng.uniform(margin, side - 1 - margin) for side in image_hw)
        return y, x
    angle = rng.uniform(0, 2 * np.pi)
    distance = (neighbour.radius + radius) * rng.uniform(*reach)
    return neighbour.y + distance * math.sin(angle), neighbour.x + distance * math.cos(angle)


def lit_field(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    *,
    middle: tuple[float, float],
    slope: float,
    vignette: tuple[float, float],
) -> Float32[np.ndarray, "h w"]:
    """Light of the empty field: bright, sloping, darker towards the corners.

    Args:
      rng: the only source of randomness.
      image_hw: rows and columns.
      middle: least and most light in the middle.
      slope: most that the light changes from the middle to an edge.
      vignette: least and most that it falls from the middle to an edge.
    """
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in image_hw)
    slope_y, slope_x = rng.uniform(-slope, slope, size=2)
    fall = rng.uniform(*vignette)
    rows = np.float32(slope_y) * y - np.float32(fall) * y**2
    columns = np.float32(slope_x) * x - np.float32(fall) * x**2
    return np.float32(rng.uniform(*middle)) + rows[:, None] + columns[None, :]


def paste(layers: Layers, sprite: Sprite, row: int, column: int) -> None:
    """Lays a sprite over a frame's density in place."""
    rows, columns, own_rows, own_columns = _window(
        sprite.coverage.shape, row, column, layers.shape[-2:]
    )
    below = layers[..., rows, columns]
    below *= 1 - sprite.coverage[own_rows, own_columns]
    below += sprite.density[..., own_rows, own_columns]


def visible_box(
    drawn: Bool[np.ndarray, "p q"], row: int, column: int, image_hw: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """cxcywh of the part of a cell inside the frame; None if it is too little for a label.

    Args:
      drawn: the cell's pixels on its patch.
      row: row of the frame on which the patch is centred.
      column: the same.
      image_hw: rows and columns of the frame.
    """
    rows, columns, own_rows, own_columns = _window(drawn.shape, row, column, image_hw)
    visible = drawn[own_rows, own_columns]
    if visible.sum() < _LEAST_VISIBLE * drawn.sum():
        return None
    top, bottom = _span(visible, 0, rows.start)
    left, right = _span(visible, 1, columns.start)
    height, width = (bottom - top) / image_hw[0], (right - left) / image_hw[1]
    if height * width <= _SMALLEST_BOX_AREA:
        return None
    return (left + right) / 2 / image_hw[1], (top + bottom) / 2 / image_hw[0], width, height


def _window(
    patch_hw: tuple[int, ...], row: int, column: int, image_hw: tuple[int, ...]
) -> tuple[slice, ...]:
    """The overlap of a frame and a patch centred on a pixel: slices of both."""
    of_frame, of_patch = [], []
    for centre, side, extent in zip((row, column), image_hw, patch_hw, strict=True):
        start = centre - extent // 2
        low, high = (min(max(end, 0), side) for end in (start, start + extent))
        of_frame.append(slice(low, high))
        of_patch.append(slice(low - start, high - start))
    return (*of_frame, *of_patch)


def _span(mask: Bool[np.ndarray, "p q"], axis: int, start: int) -> tuple[int, int]:
    """First and past-last place of a mask's true values along an axis, counted from `start`."""
    places = np.nonzero(mask)[axis]
    return start + int(places.min()), start + int(places.max()) + 1
