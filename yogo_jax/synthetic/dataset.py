"""The embedded data set: synthetic frames on disk, with a definition file like any other's.

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

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from yogo_jax import startup
from yogo_jax.errors import UserError
from yogo_jax.synthetic.cells import CLASS_NAMES
from yogo_jax.synthetic.frames import NATIVE_AREA, draw_frame


VERSION = 1  # of the drawing; a change in what is drawn needs a new one, or caches stay in use
SPLITS = ("train", "val", "test")
# Far from uniform, as in blood, but with enough of the rare ones to learn and to measure them.
CLASS_PROPORTIONS = (0.34, 0.13, 0.12, 0.1, 0.1, 0.09, 0.12)

_LEAST_SIDE = 96  # pixels: room for the largest cell and a neighbour
_AREA_PER_CELL = 3600  # pixels: more than one cell on so many cannot be kept apart


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
        _check_size(self.image_hw)
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
    _check_size(image_hw)
    area = math.prod(image_hw)
    share = min(1.0, math.sqrt(240 * 320 / area))
    return SyntheticSpec(
        image_hw=image_hw,
        train_images=max(1, round(256 * share)),
        val_images=max(1, round(40 * share)),
        test_images=max(1, round(72 * share)),
        cells_per_frame=max(45 * area / NATIVE_AREA, min(8.0, area / _AREA_PER_CELL)),
    )


def render_frame(
    spec: SyntheticSpec, split: str, index: int
) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, "n 4"], Int32[np.ndarray, " n"]]:
    """Image, boxes_cxcywh and class_ids of one frame: a function of the arguments alone."""
    rng = np.random.default_rng((spec.seed, SPLITS.index(split), index))
    return draw_frame(
        rng,
        spec.image_hw,
        cells_per_frame=spec.cells_per_frame,
        class_proportions=spec.class_proportions,
    )


def ensure_synthetic(image_hw: tuple[int, int], *, cache_folder: Path | None = None) -> Path:
    """Path of the default data set's definition file at one image size; see `ensure_dataset`."""
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


def _check_size(image_hw: tuple[int, int]) -> None:
    """Refuses frames too small for a cell."""
    if len(image_hw) != 2 or min(image_hw) < _LEAST_SIDE:
        expected = f"(rows, columns) of at least {_LEAST_SIDE} pixels each"
        raise _refusal("image_hw", expected, image_hw)


def _refusal(field: str, expected: str, found: object) -> UserError:
    """The error for one field of a spec."""
    return UserError(f"synthetic data: {field} must be {expected}; got {found}. Change {field}.")
