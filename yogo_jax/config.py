"""The schema of a config: what every field is, which values it may take, and what to do if not.

`configs/base.py` holds the values and explains them; here stand types and ranges, those of loss,
optimizer and augmentation in `recipe.py`. A `ConfigDict` passes `from_mapping` once, at the entry
point; everything behind it sees these dataclasses.

A field that came later has a default, with which nothing changes: runs and config files from before
go on as they were.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from yogo_jax.detector.backbones import get_backbone
from yogo_jax.recipe import AugmentConfig, LossConfig, OptimConfig
from yogo_jax.schema import build, require


# The definition whose frames are generated, at the size of the run.
SYNTHETIC = "synthetic"


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
    apply_orientation: bool = True

    def __post_init__(self) -> None:
        require(bool(self.definition), "data.definition", "a path or 'synthetic'", self.definition)
        require(
            len(self.image_hw) == 2 and all(side >= 16 for side in self.image_hw),
            "data.image_hw",
            "two sides HEIGHT,WIDTH of at least 16 px",
            self.image_hw,
        )
        fractions = self.split_override
        require(
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
        require(self.workers >= 0, "data.workers", "0 or more", self.workers)
        caches = ("none", "disk", "device", "auto")
        require(self.cache in caches, "data.cache", f"one of {caches}", self.cache)
        require(self.max_boxes >= 0, "data.max_boxes", "0 (auto) or more", self.max_boxes)
        require(0 <= self.min_box_area < 1, "data.min_box_area", "in [0, 1)", self.min_box_area)
        require(
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
    dtype: str = "float32"
    kernel_init: Literal["fan_out", "fan_in"] = "fan_out"
    objectness_prior: float = 0.0

    def __post_init__(self) -> None:
        get_backbone(self.name)
        inits = ("fan_out", "fan_in")
        require(self.kernel_init in inits, "model.kernel_init", f"one of {inits}", self.kernel_init)
        require(
            0 <= self.objectness_prior < 1,
            "model.objectness_prior",
            "in [0, 1)",
            self.objectness_prior,
        )
        dtypes = ("float32", "bfloat16")
        require(self.dtype in dtypes, "model.dtype", f"one of {dtypes}", self.dtype)
        if self.anchor != "auto":
            self.anchor_wh()

    def anchor_wh(self) -> tuple[float, float]:
        """(w, h) of the prior as fractions of the image; not to be asked when it is `auto`."""
        parts = self.anchor.split(",")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        require(
            len(numbers) == 2 and all(0 < number <= 1 for number in numbers),
            "model.anchor",
            "'auto' or two numbers W,H in (0, 1]",
            self.anchor,
        )
        return numbers[0], numbers[1]


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
    teacher: str = ""
    keep_best: str = "loss"
    patience: int = 0

    def __post_init__(self) -> None:
        metrics = ("loss", "mAP50", "mAP50_95")
        require(self.keep_best in metrics, "train.keep_best", f"one of {metrics}", self.keep_best)
        require(self.patience >= 0, "train.patience", "0 (off) or more", self.patience)
        for field in ("epochs", "batch_size", "eval_every_epochs"):
            value = getattr(self, field)
            require(value >= 1, f"train.{field}", "1 or more", value)
        minutes = self.checkpoint_every_minutes
        require(minutes > 0, "train.checkpoint_every_minutes", "above 0", minutes)
        require(self.max_hours >= 0, "train.max_hours", "0 (no end) or more", self.max_hours)
        require(bool(self.resume), "train.resume", "'auto', 'never' or a checkpoint", self.resume)


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
        require(self.wandb_mode in modes, "track.wandb_mode", f"one of {modes}", self.wandb_mode)


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
        require(0 <= self.seed < 2**32, "seed", "in [0, 2^32)", self.seed)
        get_backbone(self.model.name).grid_hw(self.data.image_hw)
        require(
            bool(self.train.teacher) == (self.loss.imitation > 0),
            "train.teacher",
            "set where loss.imitation is above 0, and only there",
            self.train.teacher,
        )
        require(
            bool(self.train.from_pretrained) or not self.optim.freeze,
            "optim.freeze",
            "empty unless train.from_pretrained says whose weights stay",
            self.optim.freeze,
        )
        height, width = self.data.image_hw
        strip = round(self.augment.vertical_crop * height)
        get_backbone(self.model.name).grid_hw((strip, width))
        require(
            height == width or not self.augment.quarter_turns,
            "augment.quarter_turns",
            f"0 unless data.image_hw is a square, which {height}x{width} is not",
            self.augment.quarter_turns,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON would give them back (tuples are lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A checked config from nested plain values (`ConfigDict.to_dict()`, or a config.json).

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range; it is named.
    """
    return build(Config, values, "config")


def with_defaults(values: Mapping[str, Any], kind: Any = Config) -> dict[str, Any]:
    """Values of a config as a run recorded them, with the fields that came later at their defaults.

    Nothing is checked: fields that are unknown or lack a default stay as they are.
    """
    full = dict(values)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            if isinstance(group := values.get(field.name), Mapping):
                full[field.name] = with_defaults(group, field.type)
        elif field.default is not dataclasses.MISSING:
            # As JSON gives it back.
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            full.setdefault(field.name, default)
    return full


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
