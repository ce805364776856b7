"""What a run reads before it starts: the records of its splits, and what is pasted into them."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.config import SYNTHETIC, Config, DataConfig
from yogo_jax.data.definition import DatasetDefinition, load_definition
from yogo_jax.data.records import Records
from yogo_jax.data.source import boxes_to_pad_to
from yogo_jax.data.splits import Splits, load_splits
from yogo_jax.data.synthetic import ensure_synthetic
from yogo_jax.data.thumbnails import Thumbnails, load_thumbnails
from yogo_jax.errors import UserError
from yogo_jax.given import given_path
from yogo_jax.recipe import AugmentConfig
from yogo_jax.training.metadata import DataSettings, Metadata


Say = Callable[[str], None]

# Fields that hold a path, and the values of these that are none.
PATHS_OF_TRAIN = ("from_pretrained", "teacher", "resume")
NO_PATHS = {("resume", "auto"), ("resume", "never")}


def definition_path(definition: str, image_hw: tuple[int, int]) -> Path:
    """The absolute path of a definition file; the synthetic one is written first if need be."""
    if definition == SYNTHETIC:
        return ensure_synthetic(image_hw).resolve()
    return given_path(definition).resolve()


def with_absolute_paths(config: Config) -> Config:
    """The config with paths that mean the same from any folder; for where a command starts.

    Raises:
      UserError: a path begins with `~` and there is no such user.
    """
    data, train = config.data, config.train
    if data.definition != SYNTHETIC:
        path = definition_path(data.definition, data.image_hw)
        data = dataclasses.replace(data, definition=str(path))
    paths = {name: getattr(train, name) for name in PATHS_OF_TRAIN}
    absolute: dict[str, Any] = {
        name: str(given_path(path).resolve())
        for name, path in paths.items()
        if path and (name, path) not in NO_PATHS
    }
    return dataclasses.replace(config, data=data, train=dataclasses.replace(train, **absolute))


def same_path(recorded: str, now: str) -> bool:
    """Whether a path that a run recorded may be the absolute one that is given now.

    Earlier versions recorded it as it was given: a relative one is then all that is known of it.
    """
    if recorded == now or not recorded or not now:
        return recorded == now
    path = Path(os.path.expanduser(recorded))
    if path.is_absolute() or path.resolve() == Path(now):
        return path.resolve() == Path(now)
    return Path(now).parts[-len(path.parts) :] == path.parts


def with_paths_of(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config, whose paths are written as in the one of now where they are the same."""
    train = dict(recorded["train"])
    for name in PATHS_OF_TRAIN:
        if name in train and same_path(train[name], now["train"][name]):
            train[name] = now["train"][name]
    return {**recorded, "train": train}


def load_data(data: DataConfig) -> Splits:
    """The splits of a run.

    Raises:
      UserError: the definition, a label or an image file does not fit.
    """
    path = definition_path(data.definition, data.image_hw)
    return _splits_of(load_definition(path), data, require_train=True)


def _splits_of(
    definition: DatasetDefinition, data: DataConfig | DataSettings, *, require_train: bool
) -> Splits:
    override = data.split_override
    return load_splits(
        definition,
        min_box_area=data.min_box_area,
        on_bad_label=data.on_bad_label,
        split_override=(override[0], override[1], override[2]) if override else None,
        require_train=require_train,
    )


def evaluation_data(metadata: Metadata, definition: str | None, say: Say) -> Splits:
    """The splits to evaluate a checkpoint on, read as its run read them.

    Args:
      metadata: of the checkpoint.
      definition: a definition file, or None for the one the run was trained on.
      say: takes a line if the run's split is not used.

    Raises:
      UserError: the data has other classes than the checkpoint, or cannot be read.
    """
    data = metadata.data_settings()
    path = data.definition if definition is None else definition
    if not path:
        raise UserError("this checkpoint does not say what data it saw: add --definition FILE.yml")
    given = definition_path(path, metadata.model.image_hw)
    override = data.split_override
    if override and given != definition_path(data.definition, metadata.model.image_hw):
        # The fractions of the run were meant for its own data set.
        say(f"data.split_override={override} of the run is left out: {path} is another data set")
        data = dataclasses.replace(data, split_override=())
    splits = _splits_of(load_definition(given), data, require_train=False)
    if splits.train.class_names != metadata.model.class_names:
        raise UserError(
            f"{path} has the classes {', '.join(splits.train.class_names)}, but the "
            f"checkpoint was trained on {', '.join(metadata.model.class_names)}: they must be the "
            "same, in the same order"
        )
    return splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The records of a run, and what follows from all of them together."""

    splits: Splits
    max_boxes: int
    fingerprint: str
    thumbnails: Thumbnails | None
    lines: tuple[str, ...]


def prepare_data(data: DataConfig, augment: AugmentConfig | None = None) -> RunData:
    """What a run reads before it starts.

    Args:
      data: which images, in which size.
      augment: says whether thumbnails are wanted; None is no.

    Returns:
      Splits, the rows their boxes are padded to, thumbnails, a fingerprint of all of it, and what
      is to be said of it.

    Raises:
      UserError: the definition, a label, a thumbnail or an image file does not fit.
    """
    definition = load_definition(definition_path(data.definition, data.image_hw))
    splits = _splits_of(definition, data, require_train=True)
    every = [splits.train, splits.val, splits.test]
    # Images of validation and test are read late, after hours perhaps: a broken one must be open to
    # mending without barring the run from going on.
    prints = [splits.train.fingerprint()]
    prints += [records.fingerprint(with_image_sizes=False) for records in every[1:]]
    thumbnails, lines = _load_thumbnails(definition, splits.train, data, augment)
    if thumbnails is not None:
        prints.append(thumbnails.fingerprint())
    digest = hashlib.sha256("".join(prints).encode())
    return RunData(
        splits=splits,
        max_boxes=boxes_to_pad_to(every, data.max_boxes),
        fingerprint=digest.hexdigest(),
        thumbnails=thumbnails,
        lines=(*splits.report.lines(), *lines),
    )


def _load_thumbnails(
    definition: DatasetDefinition, train: Records, data: DataConfig, augment: AugmentConfig | None
) -> tuple[Thumbnails | None, list[str]]:
    """The thumbnails of a definition if they are wanted, and what there is to say of them."""
    if augment is None or not augment.thumbnails:
        if not definition.thumbnail_augmentation:
            return None, []
        return None, [
            "thumbnails: those of the definition are not used; --config.augment.thumbnails=0.5 "
            "would paste some into every other training image"
        ]
    if not definition.thumbnail_augmentation:
        raise UserError(
            f"augment.thumbnails is {augment.thumbnails}, but {definition.path} has no "
            "thumbnail_augmentation: add it (class name: folder of cut-out cells), or set "
            "--config.augment.thumbnails=0"
        )
    thumbnails = load_thumbnails(
        definition.thumbnail_augmentation,
        definition.class_names,
        image_paths=train.image_paths,
        image_hw=data.image_hw,
        rgb=data.rgb,
        min_box_area=data.min_box_area,
    )
    counts = np.bincount(thumbnails.class_ids, minlength=len(definition.class_names))
    named = ", ".join(
        f"{count} {name}" for count, name in zip(counts, definition.class_names, strict=True)
    )
    line = f"thumbnails: {named}"
    if thumbnails.left_out:
        line += f"; {thumbnails.left_out} smaller than data.min_box_area are left out"
    return thumbnails, [line]
