"""Colour frames of Giemsa-stained thin blood smears.

The camera sees `light * exp(-density)`, and the density of a colour is the sum of the stains' by
Beer's law (Ruifrok and Johnston 2001, "Quantification of histochemical staining by color
deconvolution"). What differs from slide to slide, as stain, light and camera, is a `Slide`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from yogo_jax.synthetic.frames import (
    Cell,
    Crowding,
    Frame,
    Layers,
    lit_field,
    paste,
    place_cells,
    visible_box,
)
from yogo_jax.synthetic.shapes import Sprite
from yogo_jax.synthetic.smear_cells import (
    CELL_RADIUS,
    CLASS_NAMES,
    draw_cell,
    draw_dust,
    draw_platelet,
    draw_precipitate,
)


NATIVE_IMAGE_HW = (480, 640)
# Twenty healthy cells for each ring, trophozoite, schizont and gametocyte, 60 for each leukocyte.
_WEIGHTS = (1.0, 1 / 20, 1 / 20, 1 / 20, 1 / 20, 1 / 60)
CLASS_PROPORTIONS = tuple(weight / sum(_WEIGHTS) for weight in _WEIGHTS)

# Optical density of one unit of each stain in red, green and blue light.
_STAIN_DENSITY = np.array(
    [[0.13, 0.40, 0.30], [0.52, 0.36, 0.12], [0.58, 1.10, 0.42], [0.70, 0.95, 1.25]]
)
_EXTENT = 0.25  # a box is drawn around what has more stain than this
_CROWDING = Crowding(touching=0.35, reach=(0.6, 1.02), closest=0.6, apart=0.98)
# The mean number of cells of a frame, in units of the mean of all frames.
_THIN_TO_CROWDED = (0.5, 1.5)
# For each cell: blood has a platelet for some twenty red cells (150 to 400 against 4,000 to 5,500 a
# nanolitre). They fall anywhere: on a usual frame one of four lies on a cell by chance.
_PLATELETS = 0.05
# Platelets on cells on top of these, for each cell; half of them in a halo.
_ON_CELLS = 0.005
# On a frame of the native size, however many cells it has.
_PRECIPITATE = 6.0
_DUST = 5.0


class Slide(NamedTuple):
    """Stain, light and camera that the frames of one slide share."""

    stain_density: Float32[np.ndarray, "4 3"]  # of one unit in red, green and blue
    light: Float32[np.ndarray, " 3"]  # of the empty field, 0 to 1
    gamma: float
    vignette: float
    pallor: float  # 0 to 1: how pale the middle of red cells is
    defocus: float  # standard deviation of the blur in px
    noise: float  # standard deviation at full light, in levels of 255
    dirt: float  # precipitate and dust, 1 is usual


def draw_slide(rng: np.random.Generator) -> Slide:
    """A slide: the strength and hue of its stains, the light, the focus and the camera."""
    strength = np.exp(rng.normal(0, (0.22, 0.22, 0.18, 0.15)))
    hue = np.exp(rng.normal(0, 0.1, (4, 3)))
    stain_density = _STAIN_DENSITY * strength[:, None] * hue
    # Buffer that is too alkaline stains red cells blue, too.
    stain_density[0] += rng.uniform(0, 0.3) * stain_density[1]
    warmth, green = rng.normal(0, 0.045), rng.normal(0, 0.015)
    white_balance = np.exp([warmth, green, -warmth])
    light = np.minimum(rng.uniform(0.8, 0.95) * white_balance, 0.99)
    return Slide(
        stain_density=stain_density.astype(np.float32),
        light=light.astype(np.float32),
        gamma=rng.uniform(0.8, 1.25),
        vignette=rng.uniform(0, 0.12),
        pallor=rng.uniform(0.1, 0.6),
        defocus=rng.uniform(0.6, 1.3),
        noise=rng.uniform(0.8, 2.5),
        dirt=rng.gamma(1.5, 1 / 1.5),
    )


def draw_frame(
    rng: np.random.Generator,
    slide: Slide,
    image_hw: tuple[int, int],
    *,
    cells_per_frame: float,
    class_proportions: tuple[float, ...],
) -> Frame:
    """One field of a slide, in RGB; everything in it comes from `rng` and the slide.

    Args:
      rng: the only source of randomness.
      slide: what this frame has in common with others.
      image_hw: rows and columns.
      cells_per_frame: mean number of cells over many frames.
      class_proportions: probability of each of `CLASS_NAMES`.

    Returns:
      Image and labels. Boxes are tight around what is drawn inside the frame; cells of which less
      than a quarter lies inside have none.
    """
    stains: Layers = np.zeros((4, *image_hw), np.float32)
    mean = cells_per_frame * rng.uniform(*_THIN_TO_CROWDED)
    cells = place_cells(rng, image_hw, mean, class_proportions, CELL_RADIUS, _CROWDING)
    boxes, class_ids = [], []
    # Leukocytes lie lowest, for they would hide a parasite.
    for cell in sorted(cells, key=lambda cell: CLASS_NAMES[cell.class_id] != "leukocyte"):
        row, column = round(cell.y), round(cell.x)
        sprite = draw_cell(
            CLASS_NAMES[cell.class_id],
            rng,
            radius=cell.radius,
            offset_yx=(cell.y - row, cell.x - column),
            pallor=slide.pallor,
        )
        paste(stains, sprite, row, column)
        box = visible_box(sprite.density.sum(axis=0) > _EXTENT, row, column, image_hw)
        if box is not None:
            boxes.append(box)
            class_ids.append(cell.class_id)
    _draw_dirt(stains, rng, slide, cells, platelets=_PLATELETS * cells_per_frame)
    return Frame(
        _exposed(stains, rng, slide),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(class_ids, np.int32),
    )


def _draw_dirt(
    stains: Layers, rng: np.random.Generator, slide: Slide, cells: list[Cell], *, platelets: float
) -> None:
    """Adds platelets, so many on average, precipitate and dust, which have no labels, in place."""
    rows, columns = stains.shape[1:]
    area = rows * columns / (NATIVE_IMAGE_HW[0] * NATIVE_IMAGE_HW[1])
    for cell in cells:
        if rng.random() < _ON_CELLS:
            angle, length = rng.uniform(0, 2 * np.pi), cell.radius * rng.uniform(0, 0.85)
            y, x = cell.y + length * np.sin(angle), cell.x + length * np.cos(angle)
            _lay(stains, partial(draw_platelet, on_cell=True), rng, y, x)
    kinds = (
        (draw_platelet, platelets),
        (draw_precipitate, _PRECIPITATE * slide.dirt * area),
        (draw_dust, _DUST * slide.dirt * area),
    )
    for draw, mean in kinds:
        for _ in range(rng.poisson(mean)):
            _lay(stains, draw, rng, rng.uniform(0, rows), rng.uniform(0, columns))


def _lay(
    stains: Layers, draw: Callable[..., Sprite], rng: np.random.Generator, y: float, x: float
) -> None:
    """Draws one thing without a label and lays it at a point of the frame."""
    row, column = round(y), round(x)
    paste(stains, draw(rng, offset_yx=(y - row, x - column)), row, column)


def _exposed(stains: Layers, rng: np.random.Generator, slide: Slide) -> UInt8[np.ndarray, "h w 3"]:
    """The camera's picture: absorption, blur, gamma, then noise that grows with the light."""
    from scipy import ndimage

    image_hw = stains.shape[1], stains.shape[2]
    field = lit_field(
        rng, image_hw, middle=(0.98, 1.0), slope=0.03, vignette=(0, slide.vignette + 1e-6)
    )
    density = np.tensordot(slide.stain_density.T, np.maximum(stains, 0), axes=1)
    blur = slide.defocus * rng.uniform(0.85, 1.3)
    density = ndimage.gaussian_filter(density, (0, blur, blur), truncate=3)
    image = slide.light[:, None, None] * field * np.exp(-density)
    image = np.clip(image, 1e-3, 1) ** np.float32(slide.gamma) * np.float32(255)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(slide.noise / np.sqrt(255)) * np.sqrt(image)
    image += noise + np.float32(0.5)  # the conversion below cuts off, this makes it round
    return np.ascontiguousarray(np.moveaxis(np.clip(image, 0, 255).astype(np.uint8), 0, 2))
