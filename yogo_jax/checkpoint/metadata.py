"""The description of a checkpoint, in plain values, and of what computed it."""

import dataclasses
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import yogo_jax
from yogo_jax.config.fields import Rule, Section, at_least, checked, with_current_names
from yogo_jax.config.schema import LossConfig
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.loss_weights import ORIGINAL_WEIGHTS, LossWeights
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError


# What SLURM says of the job, by the names under which it is logged.
_SLURM = {
    "slurm_job_id": "SLURM_JOB_ID",
    "slurm_array_job_id": "SLURM_ARRAY_JOB_ID",
    "slurm_array_task_id": "SLURM_ARRAY_TASK_ID",
    "slurm_restart_count": "SLURM_RESTART_COUNT",
    "slurm_nodes": "SLURM_JOB_NODELIST",
}


def environment(devices: object) -> dict[str, Any]:
    """Plain values: git revision, host, devices, versions, and under SLURM the job's numbers.

    Args:
      devices: its text says which they are.
    """
    slurm = {name: os.environ[key] for name, key in _SLURM.items() if key in os.environ}
    return {
        "git_revision": git_revision(),
        "host": socket.gethostname(),
        "devices": str(devices),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("yogo_jax", "jax", "flax")},
        **slurm,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its folder, not installed
        return "unknown"


# Raised whenever older code could not read a checkpoint, or would read it wrongly. A checkpoint
# says the least version that its own content takes: 2 is for a class temperature, 3 for a split
# that nobody named, which older code would take for training images, 4 for a decision.
FORMAT_VERSION = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The part of a run's data config, any version's, that an evaluation takes over."""

    definition: str = ""
    split_override: tuple[float, ...] = ()
    min_box_area: float = MIN_BOX_AREA
    on_bad_label: str = "error"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision(Section, path="metadata.decision"):
    """The rule that decides the class of a box, and its goal; see `metrics/decisions.py`."""

    goal: Annotated[
        Literal["count", "f1", "screening", "precision"], "What the thresholds were chosen for."
    ]
    class_thresholds: Annotated[
        tuple[float, ...],
        Rule("numbers above 0", lambda each: min(each, default=0) > 0),
        "Least score of each class.",
    ]
    false_positives: Annotated[
        float | None, "Per 1,000,000 red cells, for each other class: of screening."
    ] = None
    precision: Annotated[float | None, "Of the goal of that name."] = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what the goal does not have."""
        values = dataclasses.asdict(self) | {"class_thresholds": list(self.class_thresholds)}
        return {name: value for name, value in values.items() if value is not None}


def _is_usable(model: ModelSpec) -> bool:
    sizes = (*model.image_hw, *model.anchor_wh, *model.size_multiplier_wh, model.class_temperature)
    return bool(model.class_names) and all(size > 0 for size in sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata(Section, path="metadata"):
    """The description that every checkpoint carries."""

    model: Annotated[
        ModelSpec,
        Rule(
            "a model with class names, and with sides, anchor and temperature above 0", _is_usable
        ),
        "Everything that using the weights takes.",
    ]
    config: Annotated[
        dict[str, Any], "Fields of the run's config; empty for weights that come from elsewhere."
    ]
    step: Annotated[int, at_least(0), "Updates made."]
    epoch: Annotated[int, at_least(0), "Whole epochs behind it."]
    position: Annotated[int, at_least(0), "Images consumed, from which the data goes on."]
    data_fingerprint: Annotated[str, "Of the records of all splits."]
    validation: Annotated[
        dict[str, Any] | None, "Metrics of the validation that this checkpoint belongs to, if any."
    ]
    git_revision: Annotated[str, "Of the code that wrote it."]
    source: Annotated[
        str, "File that the weights were converted from; empty for those of a run."
    ] = ""
    rematerialized: Annotated[
        bool,
        "Whether the step computed some features twice, for want of memory. Its numbers are then "
        "rounded otherwise, and a run that goes on stays with it.",
    ] = False
    split_is_usual: Annotated[
        bool,
        "Whether nobody said how to split the data, so that it was done as usual; runs of versions "
        "that took all of such data for training do not have it.",
    ] = False
    decision: Annotated[
        Decision | None,
        "Thresholds of classes that detections are decided by; None: the most probable class.",
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        classes = len(self.model.class_names)
        self.require(
            self.decision is None or len(self.decision.class_thresholds) == classes,
            "decision",
            f"thresholds of {classes} classes",
        )

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of its detections."""
        if self.decision is None:
            return Thresholds()
        return Thresholds.of_classes(self.decision.class_thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the format version that they take."""
        values = {**dataclasses.asdict(self), "model": self.model.to_dict()}
        # The lowest version that reads it: what has its default is left out.
        version = 1
        if self.model.class_temperature == 1:
            del values["model"]["class_temperature"]
        else:
            version = 2
        for name in ("split_is_usual", "rematerialized"):
            if values[name]:
                version = 3
            else:
                del values[name]
        if self.decision is None:
            del values["decision"]
        else:
            values["decision"], version = self.decision.to_dict(), 4
        return {**values, "format_version": version}

    @property
    def keep_best(self) -> str:
        """By which metric of the validation the run keeps its best checkpoint."""
        return self.config.get("train", {}).get("keep_best", "loss")

    def data_settings(self) -> DataSettings:
        """The settings that the run read its data by; defaults for fields of later versions.

        Raises:
          UserError: a value is of the wrong type.
        """
        recorded = self.config.get("data", {})
        known = {field.name for field in dataclasses.fields(DataSettings)} & recorded.keys()
        return checked({name: recorded[name] for name in known}, DataSettings, "config.data")

    def loss_weights(self) -> LossWeights:
        """Weights of the run's loss in evaluations.

        Fields that the run's version did not have are the original's.
        """
        return LossWeights(**self._loss_fields(LossWeights)).for_evaluation()

    def trained_loss_weights(self, boxes_by_class: Sequence[int]) -> LossWeights:
        """Weights of the loss of a label as the run was trained by them, those of classes included.

        Args:
          boxes_by_class: of the training images, from which `loss.class_weight_power` follows.

        Raises:
          UserError: the config's class weights are of another number than the classes.
        """
        # How full images are is no matter of a label.
        fields = {**self._loss_fields(LossConfig), "reference_count_from_data": False}
        return LossConfig(**fields).for_data(boxes_by_class, images=1)

    def _loss_fields(self, kind: type[LossWeights]) -> dict[str, Any]:
        """The config's fields of the loss, and the original's where it lacks them."""
        known = {field.name for field in dataclasses.fields(kind)}
        loss = self.config.get("loss", {})
        # JSON has no tuples.
        values = {
            name: tuple(loss[name]) if isinstance(loss[name], list) else loss[name]
            for name in known & loss.keys()
        }
        return {**dataclasses.asdict(ORIGINAL_WEIGHTS), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path) -> "Metadata":
        """The metadata from what `to_dict` gave, after JSON.

        Raises:
          UserError: it was written by a newer version, or a field is missing, unknown, of the wrong
            type or out of range; folder and field are named.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{folder}: its metadata is no mapping, so it is no checkpoint of ours")
        values = dict(values)
        version = values.pop("format_version", None)
        if version not in range(1, FORMAT_VERSION + 1):
            raise UserError(
                f"{folder}: checkpoint format {version!r}, but this version of yogo_jax reads "
                f"formats up to {FORMAT_VERSION}: use the version that wrote it"
            )
        try:
            metadata = checked(values, cls)
        except UserError as error:
            raise UserError(f"{folder}: its metadata cannot be used: {error}") from error
        return dataclasses.replace(metadata, config=with_current_names(metadata.config))


def git_revision() -> str:
    """Revision of this code, with `-dirty` if it was changed since; "unknown" outside of git."""
    folder = Path(yogo_jax.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # Installed below somebody else's repository, the revision would be theirs.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
