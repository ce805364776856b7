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
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from yogo_jax.config.validation import build, require
from yogo_jax.detector.architectures import get_backbone
from yogo_jax.detector.loss_weights import LossWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(LossWeights):
    """Weights of the loss, with their ranges; those of the classes follow from the data."""

    by_fullness: bool = False
    class_weight_power: float = 0.0
    imitation: float = 0.0

    def __post_init__(self) -> None:
        for field in ("no_object_weight", "iou_weight", "classify_weight"):
            value = getattr(self, field)
            require(value >= 0, f"loss.{field}", "0 or more", value)
        require(
            0 <= self.label_smoothing < 1, "loss.label_smoothing", "in [0, 1)", self.label_smoothing
        )
        require(0 <= self.imitation <= 1, "loss.imitation", "in [0, 1], 0 is off", self.imitation)
        for field in ("neighbour_weight", "class_weight_power", "usual_objects"):
            value = getattr(self, field)
            require(value >= 0, f"loss.{field}", "0 or more", value)
        require(
            not (self.usual_objects and self.by_fullness),
            "loss.by_fullness",
            "False where loss.usual_objects says the number",
            self.by_fullness,
        )
        require(
            all(weight >= 0 for weight in self.class_weights),
            "loss.class_weights",
            "empty, or a number of 0 or more for each class",
            self.class_weights,
        )
        require(
            not (self.class_weights and self.class_weight_power),
            "loss.class_weight_power",
            "0 where loss.class_weights says each",
            self.class_weight_power,
        )

    def for_data(self, boxes_by_class: Sequence[int], images: int) -> LossWeights:
        """The weights of a training, given how many boxes it has of each class.

        A class with the n-th part of the boxes has the weight n^class_weight_power, times what
        makes the mean over all boxes 1. Classes without a box count as if they had one.

        Args:
          boxes_by_class: of the training images.
          images: how many they are.

        Raises:
          UserError: `class_weights` are of another number than the classes.
        """
        require(
            len(self.class_weights) in (0, len(boxes_by_class)),
            "loss.class_weights",
            f"empty or of {len(boxes_by_class)} numbers, one for each class",
            self.class_weights,
        )
        class_weights = self.class_weights
        if self.class_weight_power:
            seen = [max(count, 1) for count in boxes_by_class]
            raw = [count**-self.class_weight_power for count in seen]
            mean = sum(count * weight for count, weight in zip(seen, raw, strict=True)) / sum(seen)
            class_weights = tuple(weight / mean for weight in raw)
        return dataclasses.replace(
            self,
            class_weights=class_weights,
            class_weight_power=0.0,
            usual_objects=sum(boxes_by_class) / images if self.by_fullness else self.usual_objects,
            by_fullness=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule, see `training/optimizer.py`."""

    learning_rate: float
    lr_decay_factor: float
    weight_decay: float
    clip_value: float
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optim.learning_rate", "above 0", self.learning_rate)
        require(
            self.lr_decay_factor >= 1, "optim.lr_decay_factor", "1 or more", self.lr_decay_factor
        )
        require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        require(self.clip_value > 0, "optim.clip_value", "above 0", self.clip_value)
        for field in ("warmup_epochs", "clip_norm"):
            value = getattr(self, field)
            require(value >= 0, f"optim.{field}", "0 (off) or more", value)
        require(0 <= self.ema_decay < 1, "optim.ema_decay", "in [0, 1), 0 is off", self.ema_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to the training images, on the device, see `training/augment.py`."""

    horizontal_flip: float
    vertical_flip: float
    quarter_turns: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    translation: float = 0.0
    vertical_crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    colour: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0
    closed_epochs: int = 0
    thumbnails: float = 0.0
    thumbnails_tried: int = 16
    thumbnails_plain: float = 0.0

    def __post_init__(self) -> None:
        flips = ("horizontal_flip", "vertical_flip", "quarter_turns")
        for field in (*flips, "cutout", "thumbnails", "thumbnails_plain"):
            value = getattr(self, field)
            require(0 <= value <= 1, f"augment.{field}", "a probability in [0, 1]", value)
        for field in ("translation", "brightness", "noise"):
            value = getattr(self, field)
            require(0 <= value <= 1, f"augment.{field}", "a fraction in [0, 1]", value)
        crop = self.vertical_crop
        require(0 < crop <= 1, "augment.vertical_crop", "in (0, 1], 1 is whole images", crop)
        for field in ("contrast", "gamma", "colour", "closed_epochs"):
            value = getattr(self, field)
            require(value >= 0, f"augment.{field}", "0 (off) or more", value)
        tried = self.thumbnails_tried
        require(tried >= 1, "augment.thumbnails_tried", "1 or more", tried)
        low, high = self.zoom
        require(0 < low <= high, "augment.zoom", "two factors LOW,HIGH above 0", self.zoom)
        # The taps of the blur reach three pixels.
        require(0 <= self.blur <= 1.5, "augment.blur", "in [0, 1.5] px", self.blur)

    @property
    def moves(self) -> bool:
        """Whether images are zoomed or shifted."""
        return self.zoom != (1.0, 1.0) or self.translation > 0

    @property
    def relights(self) -> bool:
        """Whether the light of images changes."""
        return any((self.brightness, self.contrast, self.gamma, self.colour))

    @property
    def composes(self) -> bool:
        """Whether images have something pasted in, or get holes."""
        return any((self.cutout, self.thumbnails))

    @property
    def keeps_values(self) -> bool:
        """Whether pixels at most change places."""
        return not (self.moves or self.relights or self.composes or self.blur or self.noise)


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
