"""Checkpoints: written by Orbax in the background, read only when committed, self-describing.

A run keeps the latest checkpoint and the best by validation loss. A checkpoint is a folder with
the items `model` (params and batch_stats), `optimizer` (its state and the step) and `metadata`.
"""

import dataclasses
import functools
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

import yogo_jax
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.detector.losses import ORIGINAL_WEIGHTS, LossWeights
from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.training.state import TrainState


# Raised whenever older code could not read a checkpoint, or would read it wrongly.
FORMAT_VERSION = 1

# Orbax renames a superseded checkpoint into this folder, which is then emptied: a kill in the
# middle of a deletion must not leave half a checkpoint under a name that counts as committed.
_SUPERSEDED = ".superseded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What an evaluation takes over from the data part of a run's config, any version's."""

    definition: str = ""
    split_override: tuple[float, ...] = ()
    min_box_area: float = MIN_BOX_AREA
    on_bad_label: str = "error"

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> "DataSettings":
        """Settings from plain values; unknown fields are left out."""
        known = {field.name for field in dataclasses.fields(cls)} & values.keys()
        plain: dict[str, Any] = {name: values[name] for name in known}
        if "split_override" in plain:
            plain["split_override"] = tuple(plain["split_override"])
        return cls(**plain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a checkpoint says of itself.

    Attributes:
      model: everything that using the weights takes.
      config: fields of the run's config; empty for weights that come from elsewhere.
      step: updates made.
      epoch: whole epochs behind it.
      position: images consumed, from which the data goes on.
      data_fingerprint: of the records of all splits.
      validation: metrics of the validation that this checkpoint belongs to, if any.
      git_revision: of the code that wrote it.
      format_version: see `FORMAT_VERSION`.
    """

    model: ModelSpec
    config: dict[str, Any]
    step: int
    epoch: int
    position: int
    data_fingerprint: str
    validation: dict[str, Any] | None
    git_revision: str
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def data_settings(self) -> DataSettings:
        """How the run read its data; defaults for fields that its version did not have."""
        return DataSettings.from_fields(self.config.get("data", {}))

    def loss_weights(self) -> LossWeights:
        """Weights of the run's loss; the original's for fields that its version did not have."""
        known = {field.name for field in dataclasses.fields(LossWeights)}
        loss = self.config.get("loss", {})
        return dataclasses.replace(
            ORIGINAL_WEIGHTS, **{name: loss[name] for name in known & loss.keys()}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path) -> "Metadata":
        """The metadata from what `to_dict` gave, after JSON.

        Raises:
          UserError: it was written by a newer version, or is no metadata of ours.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{folder}: its metadata is no mapping, so it is no checkpoint of ours")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder}: checkpoint format {version!r}, but this version of yogo_jax reads "
                f"format {FORMAT_VERSION}: use the version that wrote it"
            )
        try:
            return cls(**{**values, "model": ModelSpec.from_dict(values["model"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{folder}: its metadata cannot be used ({error})") from error


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


class CheckpointStore:
    """The `checkpoints/` folder of a run that is being written.

    Use as a context manager: leaving it waits until what was saved is committed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._empty_superseded()
        keep_best = checkpoint_managers.BestN(
            # Orbax ranks ascending and keeps the end of the list: reversed, the lowest loss.
            get_metric_fn=_validation_loss,
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(1), keep_best]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=_validation_loss,
            best_mode="min",
            preservation_policy=keep,
            todelete_subdir=_SUPERSEDED,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._manager.close()

    def save(self, state: TrainState, metadata: Metadata) -> None:
        """Starts to write a checkpoint; returns once the arrays are safe from later changes."""
        self.wait()
        validation = metadata.validation
        self._manager.save(
            metadata.step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(state.variables),
                optimizer=ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
                metadata=ocp.args.JsonSave(metadata.to_dict()),
            ),
            metrics=None if validation is None else {"loss": validation["loss"]},
        )

    def wait(self) -> None:
        """Returns when everything saved is committed."""
        self._manager.wait_until_finished()
        self._empty_superseded()

    def _empty_superseded(self) -> None:
        shutil.rmtree(self._folder / _SUPERSEDED, ignore_errors=True)


def _validation_loss(metrics: Mapping[str, float]) -> float:
    return metrics["loss"]


def committed_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the `checkpoints/` folder of a run, in order of their steps."""
    if not folder.is_dir():
        return []
    steps = ocp.utils.checkpoint_steps(folder.absolute())
    return [folder / str(step) for step in sorted(steps)]


def read_metadata(folder: Path) -> Metadata:
    """The metadata of one checkpoint.

    Raises:
      UserError: the folder is no checkpoint, or of another format version.
    """
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    return Metadata.from_dict(_restore(folder, args)["metadata"], folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or the best one of a run's workdir.

    The best has the lowest validation loss; a run that never validated has its latest instead.

    Raises:
      UserError: neither a checkpoint nor a workdir that holds one.
    """
    if (path / "metadata").is_dir():
        return path
    candidates = committed_checkpoints(path / "checkpoints")
    if not candidates:
        raise UserError(
            f"{path}: expected a run's workdir with checkpoints/ or one checkpoint folder, found "
            f"{'neither' if path.is_dir() else 'no such folder'}"
        )
    validated = [
        (metadata.validation["loss"], folder)
        for folder in candidates
        if (metadata := read_metadata(folder)).validation is not None
    ]
    return min(validated)[1] if validated else candidates[-1]


def restore_variables(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """`params` and `batch_stats` of one checkpoint, on the default device.

    Raises:
      UserError: it cannot be read, or its weights do not fit its description.
    """
    abstract = _on_device(_abstract_variables(spec))
    return _restore(folder, ocp.args.Composite(model=ocp.args.StandardRestore(abstract)))["model"]


def restore_state(folder: Path, spec: ModelSpec, tx: optax.GradientTransformation) -> TrainState:
    """The whole state of a run from one of its checkpoints, bit for bit.

    Raises:
      UserError: it cannot be read, or does not fit the model or the optimizer.
    """
    variables = _abstract_variables(spec)
    optimizer = {
        "opt_state": jax.eval_shape(tx.init, variables["params"]),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    args = ocp.args.Composite(
        model=ocp.args.StandardRestore(_on_device(variables)),
        optimizer=ocp.args.StandardRestore(_on_device(optimizer)),
    )
    restored = _restore(folder, args)
    return TrainState(
        step=restored["optimizer"]["step"],
        params=restored["model"]["params"],
        batch_stats=restored["model"]["batch_stats"],
        opt_state=restored["optimizer"]["opt_state"],
    )


def _abstract_variables(spec: ModelSpec) -> dict[str, Any]:
    draw = functools.partial(
        init_variables, spec.network(), image_hw=spec.image_hw, channels=spec.channels
    )
    return jax.eval_shape(draw, jax.random.key(0))


def _on_device(abstract: Any) -> Any:
    """Shapes with a place: checkpoints of any device are read onto the default one."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def _restore(folder: Path, args: ocp.args.Composite) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(folder.absolute(), args=args)
        except Exception as error:
            # Damaged files come as errors of many kinds, from three libraries.
            raise UserError(f"{folder}: cannot be read as a checkpoint ({error})") from error
