"""The embedded data sets: frames as a microscope takes them, drawn and written like any other's.

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
from PIL import Image

from yogo_jax import startup
from yogo_jax.errors import UserError
from yogo_jax.progress import with_progress
from yogo_jax.synthetic import flow, smear
from yogo_jax.synthetic.frames import Frame


SPLITS = ("train", "val", "test")
STAGES = ("ring", "trophozoite", "schizont", "gametocyte")
FRAMES_PER_SLIDE = 10

_LEAST_SIDE = 96  # pixels: room for the largest cell and a neighbour
_AREA_PER_CELL = 3600  # pixels: more than one cell on so many cannot be kept apart


class Domain(NamedTuple):
    """One kind of microscopy, and what its data set holds if nothing else is asked for."""

    version: int  # of the drawing; a change in what is drawn needs a new one, or caches stay in use
    class_names: tuple[str, ...]
    class_proportions: tuple[float, ...]
    native_image_hw: tuple[int, int]
    native_cells: float  # mean on a frame of the native size
    frames: tuple[int, int, int]  # of each split, on frames of up to `frames_image_hw`
    frames_image_hw: tuple[int, int]
    unlabelled_healthy: float


DOMAINS = {
    "flow": Domain(
        version=1,
        class_names=flow.CLASS_NAMES,
        class_proportions=flow.CLASS_PROPORTIONS,
        native_image_hw=flow.NATIVE_IMAGE_HW,
        native_cells=45,
        frames=(256, 40, 72),
        frames_image_hw=(240, 320),
        unlabelled_healthy=0.0,
    ),
    "smear": Domain(
        version=4,
        class_names=smear.CLASS_NAMES,
        class_proportions=smear.CLASS_PROPORTIONS,
        native_image_hw=smear.NATIVE_IMAGE_HW,
        native_cells=60,
        frames=(240, 44, 160),
        frames_image_hw=smear.NATIVE_IMAGE_HW,
        unlabelled_healthy=0.03,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """The content of a synthetic data set; equal specs give equal files.

    Attributes:
      image_hw: rows and columns of the frames. Only the field of view changes, not the scale.
      train_images: frames of the training split.
      val_images: frames of the validation split.
      test_images: frames of the test split.
      cells_per_frame: mean number of cells, those cut by the edge included.
      class_proportions: share of each class of the domain among the cells; they sum to 1.
      seed: of all randomness.
      domain: one of `DOMAINS`.
      unlabelled_healthy: share of the training split's healthy cells that have no label.

    Raises:
      UserError: a value that cannot be drawn.
    """

    image_hw: tuple[int, int]
    train_images: int
    val_images: int
    test_images: int
    cells_per_frame: float
    class_proportions: tuple[float, ...] = flow.CLASS_PROPORTIONS
    seed: int = 0
    domain: str = "flow"
    unlabelled_healthy: float = 0.0

    def __post_init__(self) -> None:
        _check_domain(self.domain)
        if len(self.image_hw) != 2 or min(self.image_hw) < _LEAST_SIDE:
            expected = f"(rows, columns) of at least {_LEAST_SIDE} pixels each"
            raise _refusal("image_hw", expected, self.image_hw)
        for split, count in self.image_counts.items():
            if count < 1:
                raise _refusal(split, "at least 1", count)
        most = math.prod(self.image_hw) / _AREA_PER_CELL
        if not 0 < self.cells_per_frame <= most:
            expected = f"more than 0 and at most {most:.4g}, what fits the frame"
            raise _refusal("cells", expected, self.cells_per_frame)
        shares, names = self.class_proportions, DOMAINS[self.domain].class_names
        if len(shares) != len(names) or not all(0 <= share <= 1 for share in shares):
            expected = f"{len(names)} shares from 0 to 1 (of {', '.join(names)})"
            raise _refusal("class_proportions", expected, shares)
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            found = f"{shares}, which sum to {sum(shares):g}"
            raise _refusal("class_proportions", "shares that sum to 1", found)
        if self.seed < 0:
            raise _refusal("seed", "0 or more", self.seed)
        if not 0 <= self.unlabelled_healthy <= 1:
            raise _refusal("unlabelled_healthy", "a share from 0 to 1", self.unlabelled_healthy)

    @property
    def image_counts(self) -> dict[str, int]:
        """Number of frames of each split."""
        counts = (self.train_images, self.val_images, self.test_images)
        return dict(zip(SPLITS, counts, strict=True))

    @property
    def folder_name(self) -> str:
        """Name of the data set's folder in the cache: size, and a hash of spec and version."""
        values = {"version": DOMAINS[self.domain].version} | dataclasses.asdict(self)
        # Fields from after the first version count only where they act: older folders stay in use.
        for name, before in (("domain", "flow"), ("unlabelled_healthy", 0.0)):
            if values[name] == before:
                del values[name]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        kind = "synthetic" if self.domain == "flow" else f"synthetic-{self.domain}"
        return f"{kind}-{self.image_hw[0]}x{self.image_hw[1]}-{digest}"


def default_spec(
    image_hw: tuple[int, int],
    *,
    domain: str = "flow",
    imbalance: float | None = None,
    seed: int = 0,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    cells: float | None = None,
) -> SyntheticSpec:
    """The data set of `data.definition="synthetic"` at one size of image; see `synthetic_dataset`.

    On the 772x1032 of the flow cell lie 45 cells, on the 480x640 of a smear 60, elsewhere in
    proportion to the area, but not fewer than 8 on average (or what fits). At 240x320 there are 256
    + 40 + 72 frames of the flow cell, at 480x640 240 + 44 + 160 of smears; larger ones hold more
    cells, so their number falls with the square root of the area (79 + 12 + 22 at 772x1032). Every
    class has at least 30 boxes in the test split at any of these sizes.

    Raises:
      UserError: a value is out of range, or the frame is too small for cells of 40 pixels.
    """
    kind = _check_domain(domain)
    area = max(math.prod(image_hw), 1)  # the spec refuses what is no size
    fewer = min(1.0, math.sqrt(math.prod(kind.frames_image_hw) / area))
    usual = [max(1, round(count * fewer)) for count in kind.frames]
    counts = [
        default if count is None else count
        for count, default in zip((train, val, test), usual, strict=True)
    ]
    if cells is None:
        native_area = math.prod(kind.native_image_hw)
        cells = max(kind.native_cells * area / native_area, min(8.0, area / _AREA_PER_CELL))
    return SyntheticSpec(
        image_hw=image_hw,
        train_images=counts[0],
        val_images=counts[1],
        test_images=counts[2],
        cells_per_frame=cells,
        class_proportions=_proportions(kind, imbalance),
        seed=seed,
        domain=domain,
        unlabelled_healthy=kind.unlabelled_healthy,
    )


def _check_domain(name: str) -> Domain:
    """The domain of a name."""
    if name not in DOMAINS:
        raise _refusal("domain", " or ".join(DOMAINS), repr(name))
    return DOMAINS[name]


def _proportions(domain: Domain, imbalance: float | None) -> tuple[float, ...]:
    """Share of each class if so many healthy cells come for each cell of a stage; None: the usual.

    The other classes keep their share in relation to the healthy cells.
    """
    if imbalance is None:
        return domain.class_proportions
    if not 1 <= imbalance < math.inf:
        raise _refusal("imbalance", "at least 1, healthy cells for each of a stage", imbalance)
    healthy = domain.class_proportions[domain.class_names.index("healthy")]
    shares = [
        healthy / imbalance if name in STAGES else share
        for name, share in zip(domain.class_names, domain.class_proportions, strict=True)
    ]
    return tuple(share / sum(shares) for share in shares)


def render_frame(spec: SyntheticSpec, split: str, index: int) -> Frame:
    """One frame of a data set: a function of the arguments alone."""
    place = SPLITS.index(split)
    rng = np.random.default_rng((spec.seed, place, index))
    cells, shares = spec.cells_per_frame, spec.class_proportions
    if spec.domain == "flow":
        frame = flow.draw_frame(rng, spec.image_hw, cells_per_frame=cells, class_proportions=shares)
    else:
        # Zeros at the end of a seed change nothing, so the last number keeps slides from frames.
        slide = smear.draw_slide(
            np.random.default_rng((spec.seed, place, index // FRAMES_PER_SLIDE, 1))
        )
        frame = smear.draw_frame(
            rng, slide, spec.image_hw, cells_per_frame=cells, class_proportions=shares
        )
    if split != "train":
        return frame
    healthy = frame.class_ids == DOMAINS[spec.domain].class_names.index("healthy")
    kept = ~healthy | (rng.random(len(healthy)) >= spec.unlabelled_healthy)
    return frame._replace(boxes_cxcywh=frame.boxes_cxcywh[kept], class_ids=frame.class_ids[kept])


def synthetic_dataset(
    image_hw: tuple[int, int],
    *,
    domain: str = "flow",
    imbalance: float | None = None,
    seed: int = 0,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    cells: float | None = None,
    cache_folder: Path | None = None,
) -> Path:
    """Draws a data set to train on without data, once for each choice of the arguments.

    It lies in the user's cache folder and can be deleted. `data.definition` takes the same choice
    as text, such as `synthetic:smear,imbalance=220,seed=1`.

    Args:
      image_hw: height and width of the frames in px. The scale is fixed: a red cell is some 40 px
        wide, so larger frames hold more cells.
      domain: "flow", gray frames of a flow cell, with seven classes; or "smear", RGB frames of
        Giemsa-stained thin smears, with six. Ten frames of a smear come from one slide, which has a
        stain and light of its own. In its training split 3 % of the healthy cells have no label.
      imbalance: healthy cells for each ring, trophozoite, schizont and gametocyte, at least 1. None
        is the usual mixture: about 3 in flow, 20 in smears.
      seed: of all randomness. Another one gives other frames and other slides.
      train: frames of the training split; None here and below: as many as the size asks for (256,
        40, 72 of 240x320 in flow, 240, 44, 160 of 480x640 in smears; fewer if they are larger).
      val: frames of the validation split.
      test: frames of the test split.
      cells: mean number of cells on a frame (in flow 45 on 772x1032, in smears 60 on 480x640).
      cache_folder: another folder for data sets.

    Returns:
      The path of its definition file, as `train` and `evaluate` take it.

    Raises:
      UserError: a value is out of range, the frame is too small for cells of 40 px, or the folder
        cannot be written.
    """
    spec = default_spec(
        image_hw,
        domain=domain,
        imbalance=imbalance,
        seed=seed,
        train=train,
        val=val,
        test=test,
        cells=cells,
    )
    return ensure_dataset(spec, cache_folder=cache_folder)


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
    for split in SPLITS:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    frames = [(split, at) for split, count in spec.image_counts.items() for at in range(count)]
    for split, index in with_progress(frames, what="synthetic frames", total=len(frames)):
        image, boxes_cxcywh, class_ids = render_frame(spec, split, index)
        name = f"frame_{index:0{len(str(spec.image_counts[split] - 1))}}"
        # Noise has no repetitions to look for: so files are smaller, and sooner written.
        path = folder / "images" / split / f"{name}.png"
        Image.fromarray(image).save(path, compress_level=1, compress_type=zlib.Z_RLE)
        rows = (
            f"{class_id} " + " ".join(f"{value:.6f}" for value in box) + "\n"
            for class_id, box in zip(class_ids, boxes_cxcywh, strict=True)
        )
        labels = folder / "labels" / split / f"{name}.txt"
        labels.write_text("".join(rows), encoding="ascii")
    (folder / "definition.yml").write_text(_definition(DOMAINS[spec.domain]), encoding="ascii")


def _definition(domain: Domain) -> str:
    """The data set's definition file; its paths are relative to itself."""
    lines = [f"# Synthetic frames, version {domain.version} of the drawing.", "class_names:"]
    lines += [f"- {name}" for name in domain.class_names]
    for key, split in (("dataset_paths", "train"), ("val_paths", "val"), ("test_paths", "test")):
        lines += [f"{key}:", f"  synthetic_{split}:"]
        lines += [f"    image_path: images/{split}", f"    label_path: labels/{split}"]
    return "\n".join(lines) + "\n"


def _refusal(field: str, expected: str, found: object) -> UserError:
    """The error for one field of a spec."""
    return UserError(f"synthetic data: {field} must be {expected}; got {found}. Change {field}.")
