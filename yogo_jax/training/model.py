"""The model of a run: its description, the weights of its loss, and the teacher it imitates."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from yogo_jax.checkpoint.run_data import RunData
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.config.schema import Config
from yogo_jax.data.records import Records, mean_anchor
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import given_path


def prepare_spec(config: Config, train: Records) -> ModelSpec:
    """The model of a run."""
    return ModelSpec(
        architecture=config.model.name,
        class_names=train.class_names,
        image_hw=config.data.image_hw,
        anchor_wh=config.model.anchor_wh() or mean_anchor(train),
        rgb=config.data.rgb,
        normalize_images=config.data.normalize_images,
        apply_orientation=config.data.apply_orientation,
    )


def prepare_loss(config: Config, train: Records) -> LossWeights:
    """The weights of a run's loss.

    Raises:
      UserError: they do not fit the classes of its data.
    """
    counts = np.bincount(train.class_ids, minlength=len(train.class_names))
    return config.loss.for_data(counts.tolist(), len(train))


class Teacher(NamedTuple):
    """A trained network that another one imitates."""

    spec: ModelSpec
    variables: Any

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that its predictions follow from."""
        digest = hashlib.sha256(repr(self.spec).encode())
        for leaf in jax.tree.leaves(self.variables):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()


def load_teacher(
    config: Config, spec: ModelSpec, place: jax.sharding.Sharding | None = None
) -> Teacher | None:
    """The network that `train.teacher` names, None if it names none.

    Args:
      config: of the run.
      spec: of the network in training.
      place: where its weights go; the first device of this process if None.

    Raises:
      UserError: it has another grid, other classes or other pixels.
    """
    if not config.train.teacher:
        return None
    folder = find_checkpoint(given_path(config.train.teacher))
    teacher = read_metadata(folder).model
    for field in ("class_names", "image_hw", "rgb", "grid_hw"):
        ours, theirs = getattr(spec, field), getattr(teacher, field)
        if ours != theirs:
            raise UserError(
                f"train.teacher: {folder} has {field} {theirs}, this run {ours}: they must be the "
                "same"
            )
    return Teacher(teacher, restore_variables(folder, teacher, place))


def with_teacher_fingerprint(data: RunData, teacher: Teacher | None) -> RunData:
    """The data with a fingerprint that holds the teacher, too: a run goes on with the same one."""
    if teacher is None:
        return data
    both = f"{data.fingerprint}{teacher.fingerprint()}".encode()
    return dataclasses.replace(data, fingerprint=hashlib.sha256(both).hexdigest())


def run_summary(data: RunData, spec: ModelSpec) -> list[str]:
    """Lines on the data and the model of a run, before it starts."""
    splits = data.splits
    counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "val", "test"))
    rows, columns = spec.grid_hw
    return [
        *data.lines,
        f"images: {counts}; {spec.architecture} on {spec.image_hw[0]}x{spec.image_hw[1]} px, grid "
        f"{rows}x{columns}, anchor {spec.anchor_wh[0]:.4f},{spec.anchor_wh[1]:.4f}, up to "
        f"{data.max_boxes} boxes an image",
    ]
