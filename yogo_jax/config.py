"""The schema of a config: what every field is, which values it may take, and what to do if not.

`configs/base.py` holds the values and explains them; here stand types and ranges. A `ConfigDict`
passes `from_mapping` once, at the entry point; everything behind it sees these dataclasses.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from yogo_jax.detector.backbones import get_backbone
from yogo_jax.detector.losses import LossWeights
from yogo_jax.errors import UserError
from yogo_jax.schema import build


# The definition whose frames are generated, at the size of the run.
SYNTHETIC = "synthetic"


def _require(ok: bool, field: str, expected: str, found: object) -> None:
    if not ok:
        raise UserError(f"config.{field} must be {expected}, got {found!r}: set --config.{field}=…")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which frames, and how they come to the device."""

    definition: str
    image_hw: tuple[int, int]
    rgb: bool
    normalize_images: bool
    split_override: tuple[float, ...]
    workers: int
    cache: str
    max_boxes: int
    min_box_area: float
    on_bad_label: str

    def __post_init__(self) -> None:
        _require(bool(self.definition), "data.definition", "a path or 'synthetic'", self.definition)
        _require(
            len(self.image_hw) == 2 and all(side >= 16 for side in self.image_hw),
            "data.image_hw",
            "two sides HEIGHT,WIDTH of at least 16 px",
            self.image_hw,
        )
        fractions = self.split_override
        _require(
            not fractions
            or (
                len(fractions) == 3
                and all(0 <= each <= 1 for each in fractions)
                and math.isclose(sum(fractions), 1, abs_tol=1e-6)
            ),
            "data.split_override",
            "empty or three fractions TRAIN,VAL,TEST in [0, 1] that sum to 1",
            fractions,
        )
        _require(self.workers >= 0, "data.workers", "0 or more", self.workers)
        caches = ("none", "disk", "device", "auto")
        _require(self.cache in caches, "data.cache", f"one of {caches}", self.cache)
        _require(self.max_boxes >= 0, "data.max_boxes", "0 (auto) or more", self.max_boxes)
        _require(0 <= self.min_box_area < 1, "data.min_box_area", "in [0, 1)", self.min_box_area)
        _require(
            self.on_bad_label in ("error", "skip"),
            "data.on_bad_label",
            "'error' or 'skip'",
            self.on_bad_label,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    name: str
    anchor: str
    dtype: str

    def __post_init__(self) -> None:
        get_backbone(self.name)
        dtypes = ("float32", "bfloat16")
        _require(self.dtype in dtypes, "model.dtype", f"one of {dtypes}", self.dtype)
        if self.anchor != "auto":
            self.anchor_wh()

    def anchor_wh(self) -> tuple[float, float]:
        """(w, h) of the prior as fractions of the image; not to be asked when it is `auto`."""
        parts = self.anchor.split(",")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        _require(
            len(numbers) == 2 and all(0 < number <= 1 for number in numbers),
            "model.anchor",
            "'auto' or two numbers W,H in (0, 1]",
            self.anchor,
        )
        return numbers[0], numbers[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(LossWeights):
    """Weights of the loss, with their ranges."""

    def __post_init__(self) -> None:
        for field in ("no_object_weight", "iou_weight", "classify_weight"):
            value = getattr(self, field)
            _require(value >= 0, f"loss.{field}", "0 or more", value)
        _require(
            0 <= self.label_smoothing < 1, "loss.label_smoothing", "in [0, 1)", self.label_smoothing
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a cosine schedule, see `training/optimizer.py`."""

    learning_rate: float
    lr_decay_factor: float
    weight_decay: float
    clip_value: float

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optim.learning_rate", "above 0", self.learning_rate)
        _require(
            self.lr_decay_factor >= 1, "optim.lr_decay_factor", "1 or more", self.lr_decay_factor
        )
        _require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        _require(self.clip_value > 0, "optim.clip_value", "above 0", self.clip_value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in which batches, and from where."""

    epochs: int
    batch_size: int
    eval_every_epochs: int
    checkpoint_every_minutes: float
    max_hours: float
    from_pretrained: str
    resume: str

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "eval_every_epochs"):
            value = getattr(self, field)
            _require(value >= 1, f"train.{field}", "1 or more", value)
        minutes = self.checkpoint_every_minutes
        _require(minutes > 0, "train.checkpoint_every_minutes", "above 0", minutes)
        _require(self.max_hours >= 0, "train.max_hours", "0 (no end) or more", self.max_hours)
        _require(bool(self.resume), "train.resume", "'auto', 'never' or a checkpoint", self.resume)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to the training images, on the device."""

    horizontal_flip: float
    vertical_flip: float

    def __post_init__(self) -> None:
        for field in ("horizontal_flip", "vertical_flip"):
            value = getattr(self, field)
            _require(0 <= value <= 1, f"augment.{field}", "a probability in [0, 1]", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Where the progress goes besides the workdir."""

    wandb_mode: str
    entity: str
    project: str
    name: str
    note: str
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        modes = ("disabled", "auto", "online", "offline")
        _require(self.wandb_mode in modes, "track.wandb_mode", f"one of {modes}", self.wandb_mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    seed: int
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    augment: AugmentConfig
    track: TrackConfig

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", "in [0, 2^32)", self.seed)
        get_backbone(self.model.name).grid_hw(self.data.image_hw)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON would give them back (tuples are lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A checked config from nested plain values (`ConfigDict.to_dict()`, or a config.json).

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range; it is named.
    """
    return build(Config, values, "config")


def field_names(kind: Any = Config, prefix: str = "") -> list[str]:
    """Dotted names of all fields, groups included."""
    names = []
    for field in dataclasses.fields(kind):
        names.append(prefix + field.name)
        if dataclasses.is_dataclass(field.type):
            names += field_names(field.type, f"{prefix}{field.name}.")
    return names


def field_types(kind: Any = Config, prefix: str = "") -> dict[str, str]:
    """The type of each field that holds a value, as text, by its dotted name."""
    types_by_name: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            types_by_name |= field_types(field.type, f"{prefix}{field.name}.")
        else:
            types_by_name[prefix + field.name] = getattr(field.type, "__name__", str(field.type))
    return types_by_name


def differences(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "config") -> list[str]:
    """Fields in which two nested configs differ, as `path: a != b`."""
    found = []
    for name in sorted(a.keys() | b.keys()):
        here, left, right = f"{path}.{name}", a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, here)
        elif left != right:
            found.append(f"{here}: {left!r} != {right!r}")
    return found
