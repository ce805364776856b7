"""Gray frames of a flow cell without stain: blood as the instrument of YOGO sees it."""

import numpy as np
from jaxtyping import Float32, UInt8

from yogo_jax.synthetic.cells import (
    CELL_RADIUS,
    CLASS_NAMES,
    draw_cell,
    draw_shadow,
    draw_speck,
)
from yogo_jax.synthetic.frames import (
    Crowding,
    Frame,
    lit_field,
    paste,
    place_cells,
    visible_box,
)


# Far from uniform, as in blood, but with enough of the rare ones to learn and to measure them.
CLASS_PROPORTIONS = (0.34, 0.13, 0.12, 0.1, 0.1, 0.09, 0.12)
NATIVE_IMAGE_HW = (772, 1032)  # pixels of the instrument's frames

_EXTENT_DENSITY = 0.12  # a box is drawn around what is darker than this
# Cells lie apart, or just touch in pairs and short chains.
_CROWDING = Crowding(touching=0.25, reach=(0.86, 1.02), closest=0.84, apart=1.02)


Layer = Float32[np.ndarray, "h w"]


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
    background = lit_field(rng, image_hw, middle=(231, 244), slope=9, vignette=(1, 6))
    density = np.zeros(image_hw, np.float32)
    _draw_dirt(density, rng)
    boxes, class_ids = [], []
    frame_defocus = rng.uniform(0.8, 1.5)
    cells = place_cells(rng, image_hw, cells_per_frame, class_proportions, CELL_RADIUS, _CROWDING)
    for cell in cells:
        row, column = round(cell.y), round(cell.x)
        sprite = draw_cell(
            CLASS_NAMES[cell.class_id],
            rng,
            radius=cell.radius,
            offset_yx=(cell.y - row, cell.x - column),
            defocus=frame_defocus + rng.uniform(0, 0.35),
        )
        paste(density, sprite, row, column)
        box = visible_box(sprite.density > _EXTENT_DENSITY, row, column, image_hw)
        if box is not None:
            boxes.append(box)
            class_ids.append(cell.class_id)
    return Frame(
        _exposed(background, density, rng),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(class_ids, np.int32),
    )


def _draw_dirt(density: Layer, rng: np.random.Generator) -> None:
    """Adds dust and faint shadows, which have no labels, to a frame's density in place."""
    rows, columns = density.shape
    native_area = NATIVE_IMAGE_HW[0] * NATIVE_IMAGE_HW[1]
    for draw, mean in ((draw_shadow, 8), (draw_speck, 25)):
        for _ in range(rng.poisson(mean * density.size / native_area)):
            y, x = rng.uniform(0, rows), rng.uniform(0, columns)
            sprite = draw(rng, offset_yx=(y - round(y), x - round(x)))
            paste(density, sprite, round(y), round(x))


def _exposed(
    background: Layer, density: Layer, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w"]:
    """The camera's picture: absorption, then noise that grows with the root of the light."""
    image = background * np.exp(-density)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(0.093) * np.sqrt(image)
    image += noise + np.float32(0.5)  # the conversion below cuts off, this makes it round
    return np.clip(image, 0, 255).astype(np.uint8)
