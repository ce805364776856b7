"""The config of a run: every field with its type, its range and its meaning.

`configs/*.py` hold values, `yogo-jax train --help` lists the fields. A `ConfigDict` passes
`from_mapping` once, at the entry point; everything behind it sees these dataclasses. A field that
came later has a default that changes nothing: earlier runs and config files go on as they were.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from yogo_jax.config.fields import Rule, Section, at_least, between, checked, with_current_names
from yogo_jax.detector.architectures import get_backbone
from yogo_jax.detector.loss_weights import (
    LossWeights,
    balanced_class_weights,
    effective_number_weights,
    shares_of_classes,
)


Probability = Annotated[float, between(0, 1, what="a probability")]
Fraction = Annotated[float, between(0, 1, what="a fraction")]
Positive = Annotated[float, Rule("above 0", lambda value: value > 0)]
NotNegative = Annotated[float, at_least(0)]
BelowOne = Annotated[float, between(0, 1, "[)")]
OffOrMore = Annotated[float, at_least(0, "0 is off")]
Count = Annotated[int, at_least(1)]
CountOrOff = Annotated[int, at_least(0, "0 is off")]
ClassWeights = Annotated[
    tuple[float, ...],
    Rule("empty, or a number of 0 or more for each class", lambda each: min(each, default=0) >= 0),
]
Seed = Annotated[int, Rule("in [0, 2^32)", lambda seed: 0 <= seed < 2**32)]


def _is_split(fractions: Sequence[float]) -> bool:
    sums = len(fractions) == 3 and math.isclose(sum(fractions), 1, abs_tol=1e-6)
    return not fractions or (sums and all(0 <= each <= 1 for each in fractions))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section, path="config.data"):
    """The images of a run, and their way to the device."""

    definition: Annotated[
        str,
        Rule("a path or 'synthetic'", bool),
        'A data set definition (.yml), or "synthetic" for generated frames of size `image_hw`: '
        'gray ones of a flow cell. Options choose others: "synthetic:smear,imbalance=220,seed=1".',
    ]
    image_hw: Annotated[
        tuple[int, int],
        Rule("two sides HEIGHT,WIDTH of at least 16 px", lambda sides: min(sides) >= 16),
        "Height and width in px. Images of another size are resized, but refused if they would fit "
        "after a turn by 90 degrees.",
    ]
    rgb: Annotated[bool, "Three colour channels instead of one gray channel."]
    normalize_images: Annotated[bool, "Divide pixels by 255 inside the network."]
    split_override: Annotated[
        tuple[float, ...],
        Rule("empty or three fractions TRAIN,VAL,TEST in [0, 1] that sum to 1", _is_split),
        "Fractions TRAIN,VAL,TEST of all images; empty keeps the definition's own split.",
    ]
    workers: Annotated[
        int, at_least(0), "Processes that read images; 0 reads them in threads of the training."
    ]
    cache: Annotated[
        Literal["none", "disk", "device", "auto"],
        'Where decoded images are kept. "none": nowhere. "disk": one file in the cache folder, '
        'mapped into memory. "device": training images also in the memory of every device; several '
        'steps run in one call. "auto": "device" on an accelerator if they take at most 0.4 of its '
        'memory, else "disk" if they take at most half of the free space.',
    ]
    max_boxes: Annotated[
        int, at_least(0, "0 is automatic"), "Padded number of boxes per image; 0: the most of any."
    ]
    min_box_area: Annotated[
        BelowOne,
        "Boxes smaller than this fraction of the image are left out everywhere, and counted. A run "
        "without any training box does not start.",
    ]
    on_bad_label: Annotated[
        Literal["error", "skip"],
        '"error" stops at a label that breaks the rules, "skip" leaves it out and counts it.',
    ]
    repeat_threshold: Annotated[
        Fraction,
        "Training images with a class that is in less than this share of them are seen more often "
        "in an epoch, sqrt(repeat_threshold / share) times; 0 is off.",
    ] = 0.0
    apply_orientation: Annotated[
        bool, "Turn images as their EXIF or TIFF tag says, as viewers do; False: pixels as stored."
    ] = True


def _anchor_numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def _is_anchor(text: str) -> bool:
    numbers = _anchor_numbers(text)
    return text == "auto" or (len(numbers) == 2 and all(0 < each <= 1 for each in numbers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, path="config.model"):
    """The network."""

    name: Annotated[
        str,
        # Unknown names are refused with a list of those that are known.
        Rule("an architecture", lambda name: bool(get_backbone(name))),
        "An architecture of `yogo_jax/detector/architectures.py`.",
    ]
    anchor: Annotated[
        str,
        Rule("'auto' or two numbers W,H in (0, 1]", _is_anchor),
        'Width,height of the prior box as fractions of the image, or "auto": the mean of the '
        "training boxes.",
    ]
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        "Number type of the training's convolutions; accelerators have units for bfloat16. "
        "Parameters, statistics, the loss and every evaluation are float32.",
    ] = "float32"
    kernel_init: Annotated[
        Literal["fan_out", "fan_in"],
        'What initial weights keep the variance of: "fan_out" of gradients, "fan_in" of features.',
    ] = "fan_out"
    objectness_prior: Annotated[
        BelowOne, "Objectness of every cell at the start; 0 draws the head like all other layers."
    ] = 0.0

    def anchor_wh(self) -> tuple[float, float] | None:
        """(w, h) of the prior as fractions of the image; None: the mean of the training boxes."""
        if self.anchor == "auto":
            return None
        width, height = _anchor_numbers(self.anchor)
        return width, height


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Section, LossWeights, path="config.loss"):
    """Weights of the loss; those of the classes may follow from the data."""

    no_object_weight: Annotated[
        NotNegative, "Weight of cells without an object, against 1 for cells with one."
    ]
    iou_weight: Annotated[NotNegative, "Weight of the box term."]
    classify_weight: Annotated[NotNegative, "Weight of the class term."]
    label_smoothing: Annotated[
        BelowOne, "Share of the class target that is spread over all classes."
    ]
    objectness: Annotated[
        Literal["squared", "cross_entropy"], "Form of the error of the objectness term."
    ] = "squared"
    objectness_target: Annotated[
        Literal["one", "iou"],
        'Objectness that a cell with an object learns: "one", or "iou", the overlap of its '
        "predicted box with the label, so that better boxes rank higher.",
    ] = "one"
    neighbour_weight: Annotated[
        NotNegative, "Factor on no_object_weight for the 8 cells around one with an object."
    ] = 1.0
    reference_count: Annotated[
        OffOrMore,
        "Number of objects in an image for which no_object_weight is meant. Other images take it "
        "in proportion to their objects, from a quarter to four times of it.",
    ] = 0.0
    reference_count_from_data: Annotated[
        bool, "Take the mean number of boxes of the training images as reference_count."
    ] = False
    class_weights: Annotated[
        ClassWeights, "Weight of each class in the class term; empty: 1 for all."
    ] = ()
    class_weight_power: Annotated[
        OffOrMore, "Class weights: inverse of each class's share of training boxes, to this power."
    ] = 0.0
    effective_number_beta: Annotated[
        BelowOne,
        "Class weights: inverse of the effective number of training boxes with this beta, as "
        "0.999; 0 is off.",
    ] = 0.0
    logit_adjustment: Annotated[
        OffOrMore,
        "Factor tau of the logit adjustment: in the class term, tau * log(share of the class) is "
        "added to the logits, so that rare classes are learnt as if all were as frequent.",
    ] = 0.0
    class_priors: Annotated[
        tuple[float, ...],
        Rule("empty, or a number above 0 for each class", lambda each: min(each, default=1) > 0),
        "Share of each class for logit_adjustment; empty: its share of the training boxes.",
    ] = ()
    imitation: Annotated[
        float,
        between(0, 1, note="0 is off"),
        "Share of the loss that compares with the output of train.teacher instead of the labels.",
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = "0 where loss.class_weights says each"
        power = "0 where loss.class_weight_power is not"
        for one, other, expected in (
            ("reference_count", "reference_count_from_data", "False where a number is given"),
            ("class_weights", "class_weight_power", weights),
            ("class_weights", "effective_number_beta", weights),
            ("class_weight_power", "effective_number_beta", power),
            # The teacher's probabilities are of classes as frequent as they are.
            ("imitation", "logit_adjustment", "0 where loss.imitation is above 0"),
        ):
            self.require(not (getattr(self, one) and getattr(self, other)), other, expected)
        without = bool(self.logit_adjustment) or not self.class_priors
        self.require(without, "class_priors", "empty where loss.logit_adjustment is 0")

    def for_data(self, boxes_by_class: Sequence[int], images: int) -> LossWeights:
        """The weights of a training, given how many boxes of each class and images it has.

        Raises:
          UserError: there are not as many `class_weights` or `class_priors` as classes.
        """
        for name in ("class_weights", "class_priors"):
            self.require(
                len(getattr(self, name)) in (0, len(boxes_by_class)),
                name,
                f"empty or of {len(boxes_by_class)} numbers, one for each class",
            )
        found: dict[str, Any] = {}
        if self.class_weight_power:
            found["class_weights"] = balanced_class_weights(boxes_by_class, self.class_weight_power)
            found["class_weight_power"] = 0.0
        if self.effective_number_beta:
            beta, found["effective_number_beta"] = self.effective_number_beta, 0.0
            found["class_weights"] = effective_number_weights(boxes_by_class, beta)
        if self.logit_adjustment and not self.class_priors:
            found["class_priors"] = shares_of_classes(boxes_by_class)
        if self.reference_count_from_data:
            found["reference_count"] = sum(boxes_by_class) / images
            found["reference_count_from_data"] = False
        return dataclasses.replace(self, **found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Section, path="config.optim"):
    """The optimizer and its learning rate schedule: `training/optimizer.py`."""

    learning_rate: Annotated[Positive, "Learning rate, at its highest."]
    lr_decay_factor: Annotated[
        float, at_least(1), "The cosine schedule ends at learning_rate / lr_decay_factor."
    ]
    weight_decay: Annotated[NotNegative, "Decoupled weight decay, on all parameters."]
    clip_value: Annotated[
        OffOrMore,
        "Gradients are clamped to [-clip_value, clip_value], element by element; 0 is off.",
    ]
    name: Annotated[
        Literal["adamw", "muon"],
        'Optimizer: "adamw", or "muon" for kernels, but neither depthwise ones nor those that make '
        "the outputs; NAdamW has the rest.",
    ] = "adamw"
    warmup_epochs: Annotated[
        OffOrMore, "Epochs in which the learning rate rises from 0; the cosine takes the others."
    ] = 0.0
    clip_norm: Annotated[
        OffOrMore, "After clip_value, all gradients together are scaled down to at most this norm."
    ] = 0.0
    ema_decay: Annotated[
        float,
        between(0, 1, "[)", note="0 is off"),
        "Decay per step of an average of the weights, which is validated, kept and exported.",
    ] = 0.0
    freeze: Annotated[
        tuple[str, ...],
        'Names of parameters that are not trained, as "block_0" or "block_*/norm"; with '
        "train.from_pretrained.",
    ] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section, path="config.train"):
    """Length of the run, its batches, and its start."""

    epochs: Annotated[Count, "Passes over the training images."]
    batch_size: Annotated[Count, "Images per step; the last step of an epoch is padded."]
    eval_every_epochs: Annotated[
        Count, "Epochs between validations, each with a checkpoint; the last has one too."
    ]
    checkpoint_every_minutes: Annotated[Positive, "A checkpoint is also written after this time."]
    max_hours: Annotated[
        float,
        at_least(0, "0 is no limit"),
        "After this time the command saves and stops; the same command continues. It counts from "
        "the start of the command: allow longer than start-up plus one validation.",
    ]
    from_pretrained: Annotated[
        str,
        "Run, checkpoint or network of the package with the initial weights; empty: random.",
    ]
    resume: Annotated[
        str,
        Rule("'auto', 'never' or a checkpoint", bool),
        '"auto" continues the run in the workdir, "never" refuses a workdir in use, the path of a '
        "checkpoint continues that one in a new workdir.",
    ]
    teacher: Annotated[
        str, "A run or checkpoint that loss.imitation imitates, with the same grid and pixels."
    ] = ""
    keep_best: Annotated[
        Literal["loss", "mAP50", "mAP50_95"],
        "The metric of the validation that chooses the checkpoint for test and export: the lowest "
        '"loss", or the highest "mAP50" or "mAP50_95", which need boxes in the validation split.',
    ] = "loss"
    decision: Annotated[
        Literal["most_probable", "count", "f1", "screening"],
        'How the class of a box is decided: "most_probable", or by thresholds of classes that are '
        'chosen on the validation split after the last epoch: "count" counts each class without '
        'bias, "f1" has the best F1, "screening" 1000 false positives per 1,000,000 red cells.',
    ] = "most_probable"
    patience: Annotated[CountOrOff, "Training ends this many epochs after its best validation."] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section, path="config.augment"):
    """Random changes of each training image on its own, on the device: `training/augment.py`."""

    horizontal_flip: Annotated[Probability, "Probability of exchanging left and right."]
    vertical_flip: Annotated[Probability, "Probability of exchanging top and bottom."]
    quarter_turns: Annotated[
        Probability, "Probability of a turn by 90 degrees; for square images only."
    ] = 0.0
    zoom: Annotated[
        tuple[float, float],
        Rule("two factors LOW,HIGH above 0", lambda factors: 0 < factors[0] <= factors[1]),
        "Range LOW,HIGH of the factor by which images are scaled about their middle.",
    ] = (1.0, 1.0)
    translation: Annotated[Fraction, "Largest shift on each axis, as a share of the image."] = 0.0
    vertical_crop: Annotated[
        float,
        between(0, 1, "(]", note="1 is whole images"),
        "Height of the strip that is cut out of each image at a random place, as a fraction of the "
        "image. The instrument uses strips of 0.25.",
    ] = 1.0
    brightness: Annotated[
        Fraction, "Largest value added to or subtracted from all pixels, as a share of 255."
    ] = 0.0
    contrast: Annotated[
        OffOrMore,
        "Distances of pixels to their mean are scaled by up to 1 + contrast, or its inverse.",
    ] = 0.0
    gamma: Annotated[
        OffOrMore, "The exponent of the light is multiplied or divided by up to 1 + gamma."
    ] = 0.0
    colour: Annotated[
        OffOrMore, "Each colour on its own is multiplied or divided by up to 1 + colour."
    ] = 0.0
    # The kernel of the blur reaches three pixels.
    blur: Annotated[
        float, between(0, 1.5), "Largest standard deviation of a Gaussian blur, in px."
    ] = 0.0
    stain: Annotated[
        OffOrMore,
        "The optical density of each colour is multiplied or divided by up to 1 + stain, that of "
        "all together likewise.",
    ] = 0.0
    noise: Annotated[Fraction, "Largest standard deviation of noise, as a share of 255."] = 0.0
    cutout: Annotated[Probability, "Probability of a hole in the image."] = 0.0
    rare_cells: Annotated[
        Fraction,
        "Share of the cells of the most frequent class that are replaced in each image by cells "
        "cut from the training images, if a class has fewer than a twentieth of its boxes.",
    ] = 0.0
    rare_cells_weights: Annotated[
        ClassWeights,
        "How often rare_cells takes each rare class and the most frequent one, relative to each "
        "other; empty: all as often.",
    ] = ()
    epochs_without_paste: Annotated[CountOrOff, "Last epochs without holes and pasted cells."] = 0
    thumbnails: Annotated[
        Probability, "Probability that thumbnails of the definition are pasted into an image."
    ] = 0.0
    thumbnails_tried: Annotated[
        Count, "Places tried in each of these images; a place is free if no box is there."
    ] = 16
    thumbnails_plain: Annotated[
        Probability, "Share of these images with the pasted cells on a plain ground, and no others."
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        acts = self.rare_cells > 0 or not self.rare_cells_weights
        self.require(acts, "rare_cells_weights", "empty where augment.rare_cells is 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackConfig(Section, path="config.track"):
    """Weights & Biases, besides the workdir."""

    wandb_mode: Annotated[
        Literal["disabled", "auto", "online", "offline"],
        'Weights & Biases: "disabled", "offline", "online", or "auto" (online when logged in).',
    ]
    entity: Annotated[str, "W&B account or team; empty: the default one."]
    project: Annotated[str, "W&B project."]
    name: Annotated[str, "Name of the run; empty: that of the workdir."]
    note: Annotated[str, "A sentence about the run."]
    tags: Annotated[tuple[str, ...], "Words to find the run by."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section, path="config"):
    """All settings of one run: its data, network, loss, optimizer, length, augmentation, tracking.

    `Config.from_file` reads one, `dataclasses.replace` changes one; values are checked either way.
    `yogo-jax train --help` lists every field with its unit and range.

    Attributes:
      seed: of initial weights, order of the data, dropout and augmentation.
      data: images of the run, their size in px, and their way to the device.
      model: architecture of the network, and the size of its prior box.
      loss: weights of the terms of the loss.
      optim: optimizer and learning rate schedule.
      train: epochs, batch size, validation, start and end of the run.
      augment: random changes of the training images.
      track: Weights & Biases.

    Raises:
      UserError: a value is out of range, or two fields contradict each other; the field is named.
    """

    seed: Annotated[
        Seed,
        "Seed of initial weights, order of the data, dropout and augmentation; not of the splits.",
    ]
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    augment: AugmentConfig
    track: TrackConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.data.image_hw
        backbone = get_backbone(self.model.name)
        backbone.grid_hw((height, width))
        backbone.grid_hw((round(self.augment.vertical_crop * height), width))
        self.require(
            bool(self.train.teacher) == (self.loss.imitation > 0),
            "train.teacher",
            "set where loss.imitation is above 0, and only there",
        )
        self.require(
            bool(self.train.from_pretrained) or not self.optim.freeze,
            "optim.freeze",
            "empty unless train.from_pretrained says whose weights stay",
        )
        self.require(
            height == width or not self.augment.quarter_turns,
            "augment.quarter_turns",
            f"0 unless data.image_hw is a square, which {height}x{width} is not",
        )

    @classmethod
    def from_file(cls, name: str | Path, **overrides: Any) -> "Config":
        """Returns the config of a file, with some fields set to other values.

        Args:
          name: a Python file with `get_config()`, or the name of a config of the package ("base",
            "strong", "demo").
          **overrides: values by dotted name: `**{"optim.learning_rate": 1e-3}`.

        Raises:
          UserError: there is no such file, or a field is unknown, of the wrong type or out of
            range; it is named.
        """
        from yogo_jax.config.overrides import read_values

        return from_mapping(read_values(str(name), overrides))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON would give them back (tuples are lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A checked config from nested plain values (`ConfigDict.to_dict()`, or a config.json).

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range; it is named.
    """
    return checked(with_current_names(values), Config)
