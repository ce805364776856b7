"""The data of a run, read and checked before it starts.

Records of its splits, thumbnails that are pasted into them, a fingerprint of both; and the same
splits again for an evaluation.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.checkpoint.metadata import DataSettings, Metadata
from yogo_jax.checkpoint.ready import ready_network
from yogo_jax.config.schema import AugmentConfig, Config, DataConfig, TrainConfig
from yogo_jax.data.definition import DatasetDefinition, SplitFractions, load_definition
from yogo_jax.data.headers import find_oriented, lines_on, orientation_lines, stretch_of
from yogo_jax.data.pipeline import padded_box_count
from yogo_jax.data.records import Records, boxes_by_class, boxes_look_like
from yogo_jax.data.splits import Splits, load_splits
from yogo_jax.data.thumbnails import Thumbnails, load_thumbnails
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import given_path
from yogo_jax.synthetic.options import is_synthetic, named_dataset, read_options


Say = Callable[[str], None]

# Fields that hold a path, and the values of these that are none.
PATHS_OF_TRAIN = ("from_pretrained", "teacher", "resume")
NO_PATHS = {("resume", "auto"), ("resume", "never")}
# Share of the images that must be nearer to the turned size for it to be a mistake.
TURNED = 0.9


def definition_path(definition: str, image_hw: tuple[int, int] | None = None) -> Path:
    """The absolute path of a definition file; the synthetic one is written first if need be.

    Its frames are of `image_hw`, (height, width) in px; None is that of the domain's camera.

    Raises:
      UserError: the synthetic one cannot be drawn or written.
    """
    if is_synthetic(definition):
        return named_dataset(definition, image_hw).resolve()
    return given_path(definition).resolve()


def with_absolute_paths(config: Config) -> Config:
    """The config with paths that mean the same from any folder; for where a command starts.

    Raises:
      UserError: a path begins with `~` and there is no such user, or an option of a synthetic data
        set is unknown.
    """
    data, train = config.data, config.train
    if is_synthetic(data.definition):
        read_options(data.definition)  # a mistake is told before anything else is done
    else:
        path = definition_path(data.definition, data.image_hw)
        data = dataclasses.replace(data, definition=str(path))
    paths = {name: getattr(train, name) for name in PATHS_OF_TRAIN}
    absolute: dict[str, Any] = {
        name: path_or_name(path) for name, path in paths.items() if (name, path) not in NO_PATHS
    }
    return dataclasses.replace(config, data=data, train=dataclasses.replace(train, **absolute))


def path_or_name(text: str) -> str:
    """A path made absolute; the name of a network of the package, and nothing, as they are."""
    if not text or ready_network(text) is not None:
        return text
    return str(given_path(text).resolve())


def same_path(recorded: str, now: str) -> bool:
    """True if a path that a run recorded may be the absolute one that is given now.

    Earlier versions recorded it as it was given: a relative one is then all that is known of it.
    """
    if recorded == now or not recorded or not now:
        return recorded == now
    path = Path(os.path.expanduser(recorded))
    if path.is_absolute() or path.resolve() == Path(now):
        return path.resolve() == Path(now)
    return Path(now).parts[-len(path.parts) :] == path.parts


def with_paths_of(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config, whose paths are written as in the one of now where they are the same.

    One that is no longer there, as where a project was moved, is taken for the one of now.
    """
    train = dict(recorded["train"])
    for name in PATHS_OF_TRAIN:
        old, new = train.get(name), now["train"][name]
        if not old or not new:
            continue
        is_gone = ready_network(old) is None and not given_path(old).exists()
        if is_gone or same_path(old, new):
            train[name] = new
    return {**recorded, "train": train}


def load_data(data: DataConfig) -> Splits:
    """The splits of a run.

    Raises:
      UserError: the definition, a label or an image file does not fit.
    """
    path = definition_path(data.definition, data.image_hw)
    return _splits_of(load_definition(path), data, require_train=True)


def _oriented(splits: Splits) -> list[tuple[str, int]]:
    """Name and orientation of the images that are not stored upright."""
    every = (splits.train, splits.val, splits.test)
    paths = [path for records in every for path in records.image_paths]
    found = find_oriented(paths)
    return sorted((os.path.basename(paths[index]), value) for index, value in found.items())


def _fingerprint(
    splits: Splits, turned: list[tuple[str, int]], thumbnails: Thumbnails | None = None
) -> str:
    """SHA-256 (hex) of the data of a run; `turned` names the images that are turned."""
    # Images of validation and test are read late, after hours perhaps: a broken one must be open to
    # mending without barring the run from going on.
    prints = [splits.train.fingerprint()]
    prints += [each.fingerprint(with_image_sizes=False) for each in (splits.val, splits.test)]
    if thumbnails is not None:
        prints.append(thumbnails.fingerprint())
    if turned:
        # Only where it changes pixels: runs from before there was such a field go on without it.
        prints.append(repr(turned))
    return hashlib.sha256(os.fsencode("".join(prints))).hexdigest()


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


def evaluation_data(
    metadata: Metadata,
    definition: str | None,
    say: Say,
    image_hw: tuple[int, int] | None = None,
) -> Splits:
    """The splits to evaluate a checkpoint on, read as its run read them.

    Args:
      definition: a definition file, or None for the one the run was trained on.
      say: takes a line if the run's split is not used.
      image_hw: rows and columns at which synthetic frames are drawn; None: those of the training.

    Raises:
      UserError: the data has other classes than the checkpoint, or cannot be read.
    """
    data = metadata.data_settings()
    path = data.definition if definition is None else definition
    if not path:
        raise UserError("this checkpoint does not say what data it saw: add --definition FILE.yml")
    image_hw = image_hw or metadata.model.image_hw
    given = definition_path(path, image_hw)
    override = data.split_override
    if override and given != definition_path(data.definition, image_hw):
        # The fractions of the run were meant for its own data set.
        say(f"data.split_override={override} of the run is left out: {path} is another data set")
        data = dataclasses.replace(data, split_override=())
    dataset = load_definition(given)
    splits = _splits_of(dataset, data, require_train=False)
    if splits.split_is_usual and _was_undivided(metadata, given):
        say(
            f"this run is from before data sets without a split got one: all images of {given} "
            "were its training split"
        )
        whole = dataclasses.replace(
            dataset, split_fractions=SplitFractions(1.0, 0.0, 0.0), names_split=True
        )
        splits = _splits_of(whole, data, require_train=False)
    check_same_classes(path, splits.train.class_names, metadata)
    return splits


def check_same_classes(path: str | Path, class_names: Sequence[str], metadata: Metadata) -> None:
    """Raises a `UserError` for data of other classes than a checkpoint has."""
    if tuple(class_names) != metadata.model.class_names:
        raise UserError(
            f"{path} has the classes {', '.join(class_names)}, but the checkpoint was trained on "
            f"{', '.join(metadata.model.class_names)}: they must be the same, in the same order"
        )


def evaluation_records(
    metadata: Metadata, definition: str | None, split: str, spec: ModelSpec, say: Say
) -> Records:
    """The images of one split, "train", "val" or "test", of `evaluation_data`, for the network.

    Says also which of them are stretched or turned.

    Raises:
      UserError: as `evaluation_data`, or the split is empty.
    """
    splits = evaluation_data(metadata, definition, say, spec.image_hw)
    records: Records = getattr(splits, split)
    for line in splits.lines():
        say(line)
    if len(records) == 0:
        raise UserError(f"the {split} split is empty: choose another by --split")
    turned = spec.apply_orientation
    if (stretch := stretch_of(records.image_paths, spec.image_hw, turned)) is not None:
        say(str(stretch))
    for line in lines_on(records.image_paths, applied=turned):
        say(line)
    return records


def _was_undivided(metadata: Metadata, given: Path) -> bool:
    """True if a run was trained on all images of a data set that names no split."""
    trained_on = metadata.data_settings().definition
    return (
        bool(trained_on)
        and given == definition_path(trained_on, metadata.model.image_hw)
        and metadata.validation is None
        and not metadata.split_is_usual
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The records of a run, and what follows from all of them together."""

    splits: Splits
    max_boxes: int
    fingerprint: str
    thumbnails: Thumbnails | None
    lines: tuple[str, ...]

    @property
    def hint_if_changed(self) -> str:
        """The end of a refusal to continue a run on other data."""
        if not self.splits.split_is_usual:
            return ""
        return (
            f". If it is from before data sets without a split got one, it was trained on all "
            f"images: write `dataset_split_fractions: {{train: 1}}` into "
            f"{self.splits.definition.path} to continue it"
        )


def prepare_data(
    data: DataConfig, augment: AugmentConfig | None = None, train: TrainConfig | None = None
) -> RunData:
    """Reads and checks the data of a run.

    Args:
      data: which images, in which size.
      augment: says whether thumbnails are wanted; None is no.
      train: says what the best checkpoint is; None where there is no validation.

    Returns:
      Splits, the rows their boxes are padded to, thumbnails, a fingerprint of all of it, and what
      is to be said of it.

    Raises:
      UserError: the definition, a label, a thumbnail or an image file does not fit; no training
        box is used, `train.keep_best` has nothing to go by, or `data.image_hw` looks like width,
        height.
    """
    definition = load_definition(definition_path(data.definition, data.image_hw))
    splits = _splits_of(definition, data, require_train=True)
    thumbnails, lines = _load_thumbnails(definition, splits.train, data, augment)
    doubts = _check_boxes(splits, data.min_box_area, pasted=thumbnails is not None)
    doubts += _check_image_hw(splits.train, data)
    if train is not None:
        doubts += _check_validation(splits, train)
    oriented = _oriented(splits)
    turned = orientation_lines(len(oriented), applied=data.apply_orientation)
    return RunData(
        splits=splits,
        max_boxes=padded_box_count([splits.train, splits.val, splits.test], data.max_boxes),
        fingerprint=_fingerprint(splits, oriented if data.apply_orientation else [], thumbnails),
        thumbnails=thumbnails,
        lines=(*splits.lines(), *doubts, *turned, *lines),
    )


def _load_thumbnails(
    definition: DatasetDefinition, train: Records, data: DataConfig, augment: AugmentConfig | None
) -> tuple[Thumbnails | None, list[str]]:
    """The thumbnails of a definition if they are wanted, and lines on them."""
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
        apply_orientation=data.apply_orientation,
    )
    counts = np.bincount(thumbnails.class_ids, minlength=len(definition.class_names))
    named = ", ".join(
        f"{count} {name}" for count, name in zip(counts, definition.class_names, strict=True)
    )
    line = f"thumbnails: {named}"
    if thumbnails.left_out:
        line += f"; {thumbnails.left_out} smaller than data.min_box_area are left out"
    return thumbnails, [line]


def _check_boxes(splits: Splits, min_box_area: float, *, pasted: bool) -> list[str]:
    """Refuses data without a box to learn from; gives lines on boxes that are doubtful."""
    used, small = boxes_by_class(splits.train), splits.small_train
    left_out = small.by_class.sum()
    path = splits.definition.path
    if not used.any() and left_out:
        raise UserError(
            f"{path}: all {left_out} boxes of the training split are smaller than "
            f"data.min_box_area, {min_box_area:.4g} of the image; the largest has "
            f"{small.largest_area:.4g}; expected larger boxes; set --config.data.min_box_area=0 to "
            "use all of them"
        )
    if not used.any() and not pasted:
        raise UserError(
            f"{path}: the training split has no box, so there is nothing to learn; expected label "
            "files with rows"
        )
    lines = [
        f"warning: {lost} of {lost + kept} training boxes of {name} are smaller than "
        f"data.min_box_area ({min_box_area:.4g} of the image) and left out; "
        "--config.data.min_box_area=0 uses all of them"
        for name, lost, kept in zip(splits.train.class_names, small.by_class, used, strict=True)
        if lost > kept
    ]
    if (what := boxes_look_like(splits.train.boxes_cxcywh)) is not None:
        lines.append(f"warning: the training boxes {what}: look with yogo-jax inspect {path}")
    return lines


def _check_validation(splits: Splits, train: TrainConfig) -> list[str]:
    """Refuses a choice of the best checkpoint that has nothing to go by."""
    val = splits.val
    if train.keep_best != "loss" and not len(val.class_ids):
        found = f"{len(val)} images without a box" if len(val) else "no image"
        raise UserError(
            f"{splits.definition.path}: train.keep_best is {train.keep_best}, but the validation "
            f"split has {found}; expected boxes, as there is no mean AP without; give it some "
            "(dataset_split_fractions or val_paths), or set --config.train.keep_best=loss"
        )
    if len(val):
        return []
    line = "no validation split in this data set: the last checkpoint will be the best"
    return [f"{line}, and train.patience does not act" if train.patience else line]


def _check_image_hw(train: Records, data: DataConfig) -> list[str]:
    """Refuses a size that looks like width, height; gives a line on images that are stretched."""
    stretch = stretch_of(train.image_paths, data.image_hw, data.apply_orientation)
    if stretch is None:
        return []
    height, width = data.image_hw
    if stretch.turned >= TURNED:
        rows, columns = stretch.found_hw
        raise UserError(
            f"data.image_hw={height},{width} is height, width, but the images are {rows} px high "
            f"and {columns} px wide ({stretch.path}): it looks like width, height; did you mean "
            f"--config.data.image_hw={width},{height}?"
        )
    return [str(stretch)]
