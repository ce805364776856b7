"""How a network learns, as the schema of a config has it: loss, optimizer and augmentation."""

import dataclasses
from collections.abc import Sequence

from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.schema import require


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
