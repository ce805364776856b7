"""The embedded data set: frames as a microscope takes them, drawn and written like any other's.

A data set is written once to the user's cache folder, under a name that carries a hash of all it
is made from, and reached through its `definition.yml` by the same road as real data.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import uuid
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8
from PIL import Image

from yogo_jax import startup
from yogo_jax.errors import UserError
from yogo_jax.synthetic.cells import (
    CELL_RADIUS,
    CLASS_NAMES,
    Sprite,
    draw_cell,
    draw_shadow,
    draw_speck,
)


VERSION = 1  # of the drawing; a change in what is drawn needs a new one, or caches stay in use
SPLITS = ("train", "val", "test")
# Far from uniform, as in blood, but with enough of the rare ones to learn and to measure them.
CLASS_PROPORTIONS = (0.34, 0.13, 0.12, 0.1, 0.1, 0.09, 0.12)
NATIVE_AREA = 772 * 1032  # pixels of the instrument's frames

_SMALLEST_BOX_AREA = 200 / NATIVE_AREA  # of the image: what the readers of labels keep
_EXTENT_DENSITY = 0.12  # a box is drawn around what is darker than this
_LEAST_VISIBLE = 0.25  # of a cell cut by the edge, for it to have a label
_TOUCHING = 0.25  # share of cells that lie against the one before
_ATTEMPTS = 20  # at placing one cell
_LEAST_SIDE = 96  # pixels: room for the largest cell and a neighbour
_AREA_PER_CELL = 3600  # pixels: more than one cell on so many cannot be kept apart


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """The content of a synthetic data set; equal specs give equal files.

    Attributes:
      image_hw: rows and columns of the frames. Only the field of view changes, not the scale.
      train_images: frames of the training split.
      val_images: frames of the validation split.
      test_images: frames of the test split.
      cells_per_frame: mean number of cells, those cut by the edge included.
      class_proportions: share of each of `CLASS_NAMES` among the cells; they sum to 1.
      seed: of all randomness.

    Raises:
      UserError: a value that cannot be drawn.
    """

    image_hw: tuple[int, int]
    train_images: int
    val_images: int
    test_images: int
    cells_per_frame: float
    class_proportions: tuple[float, ...] = CLASS_PROPORTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.image_hw) != 2 or min(self.image_hw) < _LEAST_SIDE:
            expected = f"(rows, columns) of at least {_LEAST_SIDE} pixels each"
            raise _refusal("image_hw", expected, self.image_hw)
        for split, count in self.image_counts.items():
            if count < 1:
                raise _refusal(f"{split}_images", "at least 1", count)
        most = math.prod(self.image_hw) / _AREA_PER_CELL
        if not 0 < self.cells_per_frame <= most:
            expected = f"more than 0 and at most {most:.4g}, what fits the frame"
            raise _refusal("cells_per_frame", expected, self.cells_per_frame)
        shares = self.class_proportions
        if len(shares) != len(CLASS_NAMES) or not all(0 <= share <= 1 for share in shares):
            expected = f"{len(CLASS_NAMES)} shares from 0 to 1 (of {', '.join(CLASS_NAMES)})"
            raise _refusal("class_proportions", expected, shares)
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            found = f"{shares}, which sum to {sum(shares):g}"
            raise _refusal("class_proportions", "shares that sum to 1", found)
        if self.seed < 0:
            raise _refusal("seed", "0 or more", self.seed)

    @property
    def image_counts(self) -> dict[str, int]:
        """Number of frames of each split."""
        counts = (self.train_images, self.val_images, self.test_images)
        return dict(zip(SPLITS, counts, strict=True))

    @property
    def folder_name(self) -> str:
        """Name of the data set's folder in the cache: size, and a hash of spec and version."""
        text = json.dumps({"version": VERSION} | dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"synthetic-{self.image_hw[0]}x{self.image_hw[1]}-{digest}"


def default_spec(image_hw: tuple[int, int]) -> SyntheticSpec:
    """The data set of `data.definition="synthetic"` at one size of image.

    On the instrument's 772x1032 lie 45 cells, elsewhere in proportion to the area, but not fewer
    than 8 on average (or what fits). At 240x320 there are 256 + 40 + 72 frames; larger ones hold
    more cells, so their number falls with the square root of the area (79 + 12 + 22 at 772x1032).
    Every class has at least 30 boxes in the test split at either size.

    Raises:
      UserError: the frame is too small for cells of 40 pixels.
    """
    area = max(math.prod(image_hw), 1)  # the spec refuses what is no size
    share = min(1.0, math.sqrt(240 * 320 / area))
    return SyntheticSpec(
        image_hw=image_hw,
        train_images=max(1, round(256 * share)),
        val_images=max(1, round(40 * share)),
        test_images=max(1, round(72 * share)),
        cells_per_frame=max(45 * area / NATIVE_AREA, min(8.0, area / _AREA_PER_CELL)),
    )


def render_frame(spec: SyntheticSpec, split: str, index: int) -> Frame:
    """One frame of a data set: a function of the arguments alone."""
    rng = np.random.default_rng((spec.seed, SPLITS.index(split), index))
    return draw_frame(
        rng,
        spec.image_hw,
        cells_per_frame=spec.cells_per_frame,
        class_proportions=spec.class_proportions,
    )


def synthetic_dataset(image_hw: tuple[int, int], *, cache_folder: Path | None = None) -> Path:
    """Draws the data set that the package trains on without data, once for each size of image.

    Cells of seven classes, in frames as a microscope sees them in a flow cell; `default_spec` says
    how many. It lies in the user's cache folder and can be deleted.

    Args:
      image_hw: height and width of the frames in px.
      cache_folder: another folder for data sets.

    Returns:
      The path of its definition file, as `train` and `evaluate` take it.

    Raises:
      UserError: the frame is too small for cells of 40 px, or the folder cannot be written.
    """
    return ensure_dataset(default_spec(image_hw), cache_folder=cache_folder)


def ensure_dataset(spec: SyntheticSpec, *, cache_folder: Path | None = None) -> Path:
    """Path of a data set's definition file, after writing the data set if it is not there.

    It is written under a name of its own and renamed when complete, so several processes may ask
    at once, and one that is killed leaves nothing that could be taken for a data set.

    Args:
      spec: what it holds.
      cache_folder: where data sets are kept; the user's cache folder if None.

    Raises:
      UserError: the cache folder cannot be written.
    """
    root = startup.cache_folder() if cache_folder is None else cache_folder
    folder = root / spec.folder_name
    definition = folder / "definition.yml"
    if definition.is_file():
        return definition
    unfinished = root / f".{spec.folder_name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        _write_dataset(spec, unfinished)
        unfinished.rename(folder)
    except OSError as error:
        # Losing a race is no error: the winner's files are the same.
        if not definition.is_file():
            raise UserError(
                f"{folder}: the synthetic data set cannot be written here ({error}). Remove what "
                "is there, or set YOGO_JAX_CACHE to a folder with space that you may write."
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return definition


def _write_dataset(spec: SyntheticSpec, folder: Path) -> None:
    """Writes images, labels and, last, the definition file."""
    for split, count in spec.image_counts.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        digits = len(str(count - 1))
        for index in range(count):
            image, boxes_cxcywh, class_ids = render_frame(spec, split, index)
            name = f"frame_{index:0{digits}}"
            # Noise has no repetitions to look for: so files are smaller, and sooner written.
            path = images / f"{name}.png"
            Image.fromarray(image).save(path, compress_level=1, compress_type=zlib.Z_RLE)
            rows = (
                f"{class_id} " + " ".join(f"{value:.6f}" for value in box) + "\n"
                for class_id, box in zip(class_ids, boxes_cxcywh, strict=True)
            )
            (labels / f"{name}.txt").write_text("".join(rows), encoding="ascii")
    (folder / "definition.yml").write_text(_definition(), encoding="ascii")


def _definition() -> str:
    """The data set's definition file; its paths are relative to itself."""
    lines = [f"# Synthetic frames, version {VERSION} of the drawing.", "class_names:"]
    lines += [f"- {name}" for name in CLASS_NAMES]
    for key, split in (("dataset_paths", "train"), ("val_paths", "val"), ("test_paths", "test")):
        lines += [f"{key}:", f"  synthetic_{split}:"]
        lines += [f"    image_path: images/{split}", f"    label_path: labels/{split}"]
    return "\n".join(lines) + "\n"


def _refusal(field: str, expected: str, found: object) -> UserError:
    """The error for one field of a spec."""
    return UserError(f"synthetic data: {field} must be {expected}; got {found}. Change {field}.")


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
            # A negative margin lets the centre lie outside.
            inside = all(
                margin <= at <= side - 1 - margin for at, side in zip((y, x), image_hw, strict=True)
            )
            if inside and all(
                math.hypot(y - cell.y, x - cell.x) >= closest * (radius + cell.radius)
                for cell in placed
            ):
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
