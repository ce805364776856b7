"""One synthetic microscope frame: places for its cells, and the picture that the camera takes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from yogo_jax.synthetic.cells import (
    CELL_RADIUS,
    CLASS_NAMES,
    Sprite,
    draw_cell,
    draw_shadow,
    draw_speck,
)


NATIVE_AREA = 772 * 1032  # pixels of the instrument's frames

_SMALLEST_BOX_AREA = 200 / NATIVE_AREA  # of the image: what the readers of labels keep
_EXTENT_DENSITY = 0.12  # a box is drawn around what is darker than this
_LEAST_VISIBLE = 0.25  # of a cell cut by the edge, for it to have a label
_TOUCHING = 0.25  # share of cells that lie against the one before
_ATTEMPTS = 20  # at placing one cell

Layer = Float32[np.ndarray, "h w"]


class Frame(NamedTuple):
    """A frame and its labels."""

    image: UInt8[np.ndarray, "h w"]
    boxes_cxcywh: Float32[np.ndarray, "n 4"]
    class_ids: Int32[np.ndarray, " n"]


class _Cell(NamedTuple):
    """One object to draw; lengths in pixels."""

    class_id: int
    radius: float
    y: float
    x: float


def draw_frame(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    *,
    cells_per_frame: float,
    class_proportions: tuple[float, ...],
) -> Frame:
    """One frame; everything in it comes from `rng`.

    Args:
      rng: the only source of randomness.
      image_hw: rows and columns.
      cells_per_frame: mean number of cells, Poisson distributed.
      class_proportions: probability of each of `CLASS_NAMES`.

    Returns:
      Image and labels. Boxes are tight around what is drawn inside the frame; cells of which less
      than a quarter lies inside have none.
    """
    background = _background(rng, image_hw)
    density = np.zeros(image_hw, np.float32)
    _draw_dirt(density, rng)
    boxes, class_ids = [], []
    frame_defocus = rng.uniform(0.8, 1.5)
    for cell in _place_cells(rng, image_hw, cells_per_frame, class_proportions):
        row, column = round(cell.y), round(cell.x)
        sprite = draw_cell(
            CLASS_NAMES[cell.class_id],
            rng,
            radius=cell.radius,
            offset_yx=(cell.y - row, cell.x - column),
            defocus=frame_defocus + rng.uniform(0, 0.35),
        )
        _paste(density, sprite, row, column)
        box = _visible_box(sprite, row, column, image_hw)
        if box is not None:
            boxes.append(box)
            class_ids.append(cell.class_id)
    return Frame(
        _exposed(background, density, rng),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(class_ids, np.int32),
    )


def _place_cells(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    cells_per_frame: float,
    class_proportions: tuple[float, ...],
) -> list[_Cell]:
    """Cells at positions that keep them apart, or just touching in pairs and short chains."""
    placed: list[_Cell] = []
    for _ in range(rng.poisson(cells_per_frame)):
        class_id = int(rng.choice(len(CLASS_NAMES), p=class_proportions))
        name = CLASS_NAMES[class_id]
        radius = rng.uniform(*CELL_RADIUS[name])
        # A parasite out of sight would make a label nobody could find: only healthy cells may
        # lie mostly outside.
        margin = (-0.55 if name == "healthy" else 0.3) * radius
        neighbour = placed[-1] if placed and rng.random() < _TOUCHING else None
        for _ in range(_ATTEMPTS):
            y, x = _position(rng, image_hw, margin, radius, neighbour)
            closest = 1.02 if neighbour is None else 0.84
            if _is_inside(y, x, image_hw, margin) and _is_free(y, x, radius, placed, closest):
                placed.append(_Cell(class_id, radius, y, x))
                break
    return placed


def _position(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    margin: float,
    radius: float,
    neighbour: _Cell | None,
) -> tuple[float, float]:
    """A candidate position: against the neighbour if there is one, else anywhere."""
    if neighbour is None:
        y, x = (rng.uniform(margin, side - 1 - margin) for side in image_hw)
        return y, x
    angle = rng.uniform(0, 2 * np.pi)
    distance = (neighbour.radius + radius) * rng.uniform(0.86, 1.02)
    return neighbour.y + distance * math.sin(angle), neighbour.x + distance * math.cos(angle)


def _is_inside(y: float, x: float, image_hw: tuple[int, int], margin: float) -> bool:
    """True if a centre keeps its distance to the frame's edge (outside it, if negative)."""
    return all(margin <= at <= side - 1 - margin for at, side in zip((y, x), image_hw, strict=True))


def _is_free(y: float, x: float, radius: float, placed: list[_Cell], closest: float) -> bool:
    """True if all cells are farther than `closest` times the sum of both radii."""
    return all(
        math.hypot(y - cell.y, x - cell.x) >= closest * (radius + cell.radius) for cell in placed
    )


def _background(rng: np.random.Generator, image_hw: tuple[int, int]) -> Layer:
    """Gray levels of the empty field: bright, sloping, darker towards the corners."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in image_hw)
    slope_y, slope_x = rng.uniform(-9, 9, size=2)
    vignette = rng.uniform(1, 6)
    rows = np.float32(slope_y) * y - np.float32(vignette) * y**2
    columns = np.float32(slope_x) * x - np.float32(vignette) * x**2
    return np.float32(rng.uniform(231, 244)) + rows[:, None] + columns[None, :]


def _draw_dirt(density: Layer, rng: np.random.Generator) -> None:
    """Adds dust and faint shadows, which have no labels, to a frame's density in place."""
    rows, columns = density.shape
    for draw, mean in ((draw_shadow, 8), (draw_speck, 25)):
        for _ in range(rng.poisson(mean * density.size / NATIVE_AREA)):
            y, x = rng.uniform(0, rows), rng.uniform(0, columns)
            sprite = draw(rng, offset_yx=(y - round(y), x - round(x)))
            _paste(density, sprite, round(y), round(x))


def _window(sprite: Sprite, row: int, column: int, image_hw: tuple[int, ...]) -> tuple[slice, ...]:
    """The overlap of a frame and a sprite centred on a pixel: slices of both."""
    of_frame, of_sprite = [], []
    for centre, side, extent in zip((row, column), image_hw, sprite.density.shape, strict=True):
        start = centre - extent // 2
        low, high = max(start, 0), max(min(start + extent, side), 0)
        of_frame.append(slice(low, high))
        of_sprite.append(slice(low - start, high - start))
    return (*of_frame, *of_sprite)


def _paste(density: Layer, sprite: Sprite, row: int, column: int) -> None:
    """Lays a sprite over a frame's density in place."""
    rows, columns, own_rows, own_columns = _window(sprite, row, column, density.shape)
    below = density[rows, columns]
    below *= 1 - sprite.coverage[own_rows, own_columns]
    below += sprite.density[own_rows, own_columns]


def _visible_box(
    sprite: Sprite, row: int, column: int, image_hw: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """cxcywh of the part of a sprite inside the frame; None if it is too little for a label."""
    rows, columns, own_rows, own_columns = _window(sprite, row, column, image_hw)
    drawn = sprite.density > _EXTENT_DENSITY
    visible = drawn[own_rows, own_columns]
    if visible.sum() < _LEAST_VISIBLE * drawn.sum():
        return None
    top, bottom = _span(visible, 0, rows.start)
    left, right = _span(visible, 1, columns.start)
    height, width = (bottom - top) / image_hw[0], (right - left) / image_hw[1]
    if height * width <= _SMALLEST_BOX_AREA:
        return None
    return (left + right) / 2 / image_hw[1], (top + bottom) / 2 / image_hw[0], width, height


def _span(mask: Bool[np.ndarray, "p q"], axis: int, start: int) -> tuple[int, int]:
    """First and past-last place of a mask's true values along an axis, counted from `start`."""
    places = np.nonzero(mask)[axis]
    return start + int(places.min()), start + int(places.max()) + 1


def _exposed(
    background: Layer, density: Layer, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w"]:
    """The camera's picture: absorption, then noise that grows with the root of the light."""
    image = background * np.exp(-density)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(0.093) * np.sqrt(image)
    image += noise + np.float32(0.5)  # the conversion below cuts off, this makes it round
    return np.clip(image, 0, 255).astype(np.uint8)
