"""Cells of rare classes, cut from the training images and put in the place of frequent ones.

Rare classes are few boxes in few images. Here every image shows some of them: a cell that was cut
from another training image replaces one of the most frequent class, with its box. Cells of the
frequent class are always put in, too: the edge of what was put in tells nothing of the class.

Light and stain differ from image to image. A cell is transferred as optical density,
`-log(pixel / light)`, and made as dense, in each colour, as the cell that it replaces.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, UInt8

from yogo_jax.data.records import Records
from yogo_jax.detector.boxes import area, cxcywh_to_xyxy, intersection, xyxy_to_cxcywh
from yogo_jax.errors import UserError


# A class is rare with less than this share of the boxes of the most frequent one.
RARE = 1 / 20
# Cells of each class that are kept, at most; evenly spread over the training images.
CELLS_PER_CLASS = 256
# Larger cells, as a share of a side of the image, are not moved.
_LARGEST = 1 / 3
# The part of the cell that is replaced that the new one covers at least, and the part of any other
# cell that it may cover at most.
_COVERED, _TOUCHED = 0.75, 0.15
# px over which the edge of a cell blends into the image.
_FEATHER_PX = 2.0
# Margin of a cut-out around the box, px.
_MARGIN_PX = 4
# The light of an image: this quantile of each colour, of every so many rows and columns.
_LIGHT_QUANTILE, _SAMPLED = 0.95, 16
# Cells of an image from which the density of the frequent class is measured, at most.
_MEASURED = 16
# A cell becomes at most so many times as dense as it was, or as thin.
_MOST_DENSER = 2.0


class CutCells(NamedTuple):
    """Cells cut from the training images, each in the middle of a square window.

    Attributes:
      images: the windows.
      boxes_px: corners of each cell's box, relative to the middle of its window.
      class_ids: of each.
      shares: probability to be taken; within a class it is equal for all cells.
      light: of the image that each comes from, by colour.
      density: mean optical density of the most frequent class in that image, by colour.
      frequent: id of the most frequent class, whose cells are replaced.
    """

    images: UInt8[np.ndarray, "t s s c"]
    boxes_px: Float32[np.ndarray, "t 4"]
    class_ids: Int32[np.ndarray, " t"]
    shares: Float32[np.ndarray, " t"]
    light: Float32[np.ndarray, "t c"]
    density: Float32[np.ndarray, "t c"]
    frequent: int


def rare_classes(boxes_by_class: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """The classes that have boxes, but less than `RARE` of those of the most frequent one."""
    return (boxes_by_class > 0) & (boxes_by_class < RARE * boxes_by_class.max(initial=0))


def cut_cells(
    records: Records,
    read: Callable[[int], UInt8[np.ndarray, "h w c"]],
    class_weights: Sequence[float] = (),
) -> CutCells | None:
    """Cuts cells of the rare classes and of the most frequent one; None without any of the former.

    Cells at the edge of their image and very large ones stay out.

    Args:
      records: the training images.
      read: gives the pixels of a record, as the network sees them.
      class_weights: how often each class is taken, relative to the others; empty: all as often.

    Raises:
      UserError: there are not as many weights as classes, or they are 0 for the most frequent class
        or for all rare ones.
    """
    names = records.class_names
    if len(class_weights) not in (0, len(names)):
        raise UserError(
            f"augment.rare_cells_weights has {len(class_weights)} numbers, expected {len(names)}, "
            f"one for each class in this order: {', '.join(names)}"
        )
    counts = np.bincount(records.class_ids, minlength=len(names))
    rare, frequent = rare_classes(counts), int(counts.argmax())
    if not rare.any():
        return None
    rows = np.concatenate(
        [_spread(np.flatnonzero(records.class_ids == k)) for k in (*np.flatnonzero(rare), frequent)]
    )
    image_of_box = np.repeat(np.arange(len(records)), records.box_counts)
    found: list[tuple[np.ndarray, ...]] = []
    for index in np.unique(image_of_box[rows]).tolist():
        own = rows[image_of_box[rows] == index] - records.offsets[index]
        found += _cut_from(read(index), *records.labels_of(index), own.tolist(), frequent)
    if not any(rare[each[2]] for each in found):
        return None
    side = max(len(each[0]) for each in found)
    images = np.stack([_padded(each[0], side) for each in found])
    boxes_px, class_ids, light, density = (
        np.stack([each[column] for each in found]) for column in range(1, 5)
    )
    of_class = np.bincount(class_ids, minlength=len(names))
    is_cut = of_class > 0
    weights = np.asarray(class_weights or [1.0] * len(names))
    if not weights[frequent] or not weights[rare & is_cut].any():
        raise UserError(
            f"augment.rare_cells_weights must be above 0 for {names[frequent]} (or the edge of a "
            "cell that was put in would say that it is rare) and for one of "
            f"{', '.join(names[k] for k in np.flatnonzero(rare & is_cut))}, got "
            f"{tuple(class_weights)}"
        )
    weights = weights * is_cut
    shares = (weights / weights.sum())[class_ids] / of_class[class_ids]
    return CutCells(
        images,
        boxes_px.astype(np.float32),
        class_ids.astype(np.int32),
        shares.astype(np.float32),
        light.astype(np.float32),
        density.astype(np.float32),
        frequent,
    )


def rare_cells_line(records: Records, cells: CutCells | None, share: float) -> str:
    """A line for the log on what is put in, or why nothing is."""
    counts = np.bincount(records.class_ids, minlength=len(records.class_names))
    names = records.class_names
    if cells is None:
        return (
            f"augment.rare_cells: nothing is put in: no class has fewer than {RARE:.0%} of the "
            f"boxes of {names[int(counts.argmax())]}, or all its cells are at an edge"
        )
    cut = np.bincount(cells.class_ids, minlength=len(names))
    shares = np.bincount(cells.class_ids, cells.shares, minlength=len(names))
    named = ", ".join(
        f"{shares[k]:.0%} {names[k]} ({cut[k]} of {counts[k]} boxes)" for k in np.flatnonzero(cut)
    )
    return (
        f"augment.rare_cells: the classes are not balanced; up to {share:.0%} of the cells of "
        f"{names[cells.frequent]} in each image are replaced by others that were cut out: {named}"
    )


def _spread(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """At most `CELLS_PER_CLASS` of some rows, evenly spread."""
    if len(rows) <= CELLS_PER_CLASS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, CELLS_PER_CLASS).round().astype(int)]


def _cut_from(
    image: UInt8[np.ndarray, "h w c"],
    boxes_cxcywh: Float32[np.ndarray, "n 4"],
    class_ids: Int32[np.ndarray, " n"],
    rows: list[int],
    frequent: int,
) -> Iterator[tuple[np.ndarray, ...]]:
    """(window, box, class, light, density) of some boxes of one image."""
    height, width, _ = image.shape
    size_px = np.asarray((width, height, width, height))
    boxes_px = cxcywh_to_xyxy(boxes_cxcywh.astype(np.float64)) * size_px
    sampled = image[::_SAMPLED, ::_SAMPLED].astype(np.float64)
    light = np.maximum(np.quantile(sampled, _LIGHT_QUANTILE, axis=(0, 1)), 1)
    like = boxes_px[class_ids == frequent][:_MEASURED]
    densities = [_mean_density(image, box, light) for box in like]
    if not densities:
        return
    density = np.mean(densities, axis=0)
    for row in rows:
        box = boxes_px[row]
        sides = box[2:] - box[:2]
        is_inside = (box > 0).all() and (box < size_px).all()
        if not is_inside or (sides > _LARGEST * size_px[:2]).any() or sides.min() < 2:
            continue
        half = int(np.ceil(sides.max() / 2)) + _MARGIN_PX
        middle = np.round((box[:2] + box[2:]) / 2).astype(int)
        wide = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
        window = wide[middle[1] : middle[1] + 2 * half, middle[0] : middle[0] + 2 * half]
        yield window, box - np.tile(middle, 2), class_ids[row], light, density


def _mean_density(
    image: UInt8[np.ndarray, "h w c"],
    box_px: Float[np.ndarray, "4"],
    light: Float[np.ndarray, " c"],
) -> Float[np.ndarray, " c"]:
    """Mean optical density inside the ellipse of a box, by colour."""
    x1, y1, x2, y2 = np.round(box_px).astype(int)
    pixels = image[max(y1, 0) : y2, max(x1, 0) : x2].astype(np.float64)
    y, x = (np.linspace(-1, 1, side) for side in pixels.shape[:2])
    inside = (np.square(y)[:, None] + np.square(x)[None] <= 1)[..., None]
    density = -np.log(np.maximum(pixels, 1) / light)
    return (density * inside).sum((0, 1)) / max(inside.sum(), 1)


def _padded(window: UInt8[np.ndarray, "p p c"], side: int) -> UInt8[np.ndarray, "s s c"]:
    """The window in the middle of one of that side; both are even."""
    more = (side - len(window)) // 2
    return np.pad(window, ((more, more), (more, more), (0, 0)), mode="edge")


# Image with a margin; boxes in px, and their classes.
_Canvas = tuple[Array, Array, Array]


def replace_cells(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    boxes_cxcywh: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    cells: CutCells,
    *,
    share: float | Array,
    most: float,
    turned: bool,
) -> tuple[Float[Array, "h w c"], Float[Array, "n 4"], Int[Array, " n"]]:
    """One image in which cells of the most frequent class are replaced by `cells`.

    A cell is not replaced where the new one would leave much of it, cover much of another one, or
    reach over the edge of the image.

    Args:
      image: pixels from 0 to 255.
      boxes_cxcywh: as fractions of the image.
      valid: False on padding rows.
      cells: to choose from.
      share: of the cells of the most frequent class that are tried, at most `most`.
      most: the number of tries follows from it.
      turned: whether a new cell is put in any of its eight positions, or as it was.

    References:
      Dwibedi et al. 2017, Cut, Paste and Learn, arXiv:1708.01642.
      Ghiasi et al. 2020, Simple Copy-Paste, arXiv:2012.07177, section 3.
    """
    height, width, _ = image.shape
    count = boxes_cxcywh.shape[0]
    half = cells.images.shape[1] // 2
    size_px = jnp.asarray((width, height, width, height), image.dtype)
    light = light_of(image).reshape(1, 1, -1)
    tries = max(round(most * count), 1)
    active = share * (valid & (class_ids == cells.frequent)).sum() / tries
    windows, offsets, shares, cell_class, cell_light, cell_density = map(
        jnp.asarray,
        (cells.images, cells.boxes_px, cells.shares, cells.class_ids, cells.light, cells.density),
    )

    def one_try(carry: _Canvas, key: Array) -> tuple[_Canvas, None]:
        canvas, boxes_px, class_ids = carry
        coin_key, row_key, which_key, turn_key = jax.random.split(key, 4)
        is_frequent = valid & (class_ids == cells.frequent)
        row = jnp.where(is_frequent, jax.random.uniform(row_key, (count,)), -1.0).argmax()
        which = jax.random.choice(which_key, len(cells.shares), p=shares)
        window, offset = windows[which].astype(image.dtype), offsets[which]
        if turned:
            window, offset = _turned(turn_key, window, offset)
        old_px = boxes_px[row]
        middle = jnp.round((old_px[:2] + old_px[2:]) / 2)
        new_px = offset + jnp.tile(middle, 2)
        covered = intersection(boxes_px, new_px.reshape(1, 4)) / jnp.maximum(area(boxes_px), 1)
        others = valid & (jnp.arange(count) != row)
        fits = (
            (jax.random.uniform(coin_key) < active)
            & is_frequent[row]
            & (covered[row] > _COVERED)
            & ~(others & (covered > _TOUCHED)).any()
            & (new_px > 0).all()
            & (new_px < size_px).all()
        )
        # The canvas has a margin of half a window, so that this is the window around the middle.
        x, y = middle.astype(jnp.int32)
        below = jax.lax.dynamic_slice(canvas, (y, x, 0), window.shape)
        old = (_depth_px(old_px - jnp.tile(middle, 2), half) >= 0)[..., None]
        own = cell_light[which], cell_density[which]
        levelled = _levelled(window, *own, light=light, density=_mean_where(old, below, light))
        # The whole ellipse of the box is covered; outside of it the image shines through.
        coverage = jnp.clip(_depth_px(offset, half) / _FEATHER_PX + 1, 0, 1)[..., None]
        mixed = below + coverage * (levelled - below)
        canvas = jax.lax.dynamic_update_slice(canvas, jnp.where(fits, mixed, below), (y, x, 0))
        boxes_px = boxes_px.at[row].set(jnp.where(fits, new_px, old_px))
        class_ids = class_ids.at[row].set(jnp.where(fits, cell_class[which], class_ids[row]))
        return (canvas, boxes_px, class_ids), None

    canvas = jnp.pad(image, ((half, half), (half, half), (0, 0)))
    start = canvas, cxcywh_to_xyxy(boxes_cxcywh) * size_px.reshape(1, 4), class_ids
    (canvas, boxes_px, replaced), _ = jax.lax.scan(one_try, start, jax.random.split(key, tries))
    # The other boxes as they came: a way there and back would round them.
    changed = (boxes_px != start[1]).any(-1, keepdims=True)
    boxes_cxcywh = jnp.where(
        changed, xyxy_to_cxcywh(boxes_px / size_px.reshape(1, 4)), boxes_cxcywh
    )
    return canvas[half : half + height, half : half + width], boxes_cxcywh, replaced


def light_of(image: Float[Array, "h w c"]) -> Float[Array, " c"]:
    """The light of an image by colour: what its brightest parts have, at least 1."""
    sampled = image[::_SAMPLED, ::_SAMPLED]
    return jnp.maximum(jnp.quantile(sampled, _LIGHT_QUANTILE, axis=(0, 1)), 1)


def _mean_where(
    inside: Bool[Array, "s s 1"], pixels: Float[Array, "s s c"], light: Float[Array, "1 1 c"]
) -> Float[Array, " c"]:
    """Mean optical density of some pixels, by colour."""
    density = -jnp.log(jnp.maximum(pixels, 1) / light)
    return (density * inside).sum((0, 1)) / jnp.maximum(inside.sum(), 1)


def _levelled(
    window: Float[Array, "s s c"],
    own_light: Float[Array, " c"],
    own_density: Float[Array, " c"],
    *,
    light: Float[Array, "1 1 c"],
    density: Float[Array, " c"],
) -> Float[Array, "s s c"]:
    """The window of a cell in another light, and as dense as the cell that it replaces."""
    # Without a density in its own image, as where all is overexposed, a cell stays as it was.
    ratio = jnp.where(own_density == 0, 1, density / jnp.where(own_density == 0, 1, own_density))
    ratio = jnp.clip(ratio, 1 / _MOST_DENSER, _MOST_DENSER).reshape(1, 1, -1)
    of_window = -jnp.log(jnp.maximum(window, 1) / own_light.reshape(1, 1, -1))
    return jnp.clip(light * jnp.exp(-of_window * ratio), 0, 255)


def _turned(
    key: Key[Array, ""], window: Float[Array, "s s c"], box_px: Float[Array, "4"]
) -> tuple[Float[Array, "s s c"], Float[Array, "4"]]:
    """The window and its box, relative to the middle, in one of the eight positions of a square."""
    coins = jax.random.bernoulli(key, shape=(3,))
    x1, y1, x2, y2 = box_px
    window = jnp.where(coins[0], window.transpose(1, 0, 2), window)
    box = jnp.where(coins[0], jnp.stack([y1, x1, y2, x2]), box_px)
    for axis, coin in ((1, coins[1]), (0, coins[2])):
        window = jnp.where(coin, jnp.flip(window, axis), window)
        x1, y1, x2, y2 = box
        mirrored = (-x2, y1, -x1, y2) if axis == 1 else (x1, -y2, x2, -y1)
        box = jnp.where(coin, jnp.stack(mirrored), box)
    return window, box


def _depth_px(box_px: Float[Array, "4"], half: int) -> Float[Array, "s s"]:
    """Distance of each pixel of a window to the ellipse of a box, about; negative outside.

    The box is relative to the middle of the window.
    """
    at = jnp.arange(-half, half) + 0.5
    middle, sides = (box_px[:2] + box_px[2:]) / 2, box_px[2:] - box_px[:2]
    x, y = ((at - middle[axis]) / (sides[axis] / 2) for axis in (0, 1))
    rho = jnp.sqrt(jnp.square(y)[:, None] + jnp.square(x)[None, :])
    return (1 - rho) * sides.min() / 2
