"""What a run would learn wrongly from data that can be read, told before it starts."""

from yogo_jax.config.schema import DataConfig, TrainConfig
from yogo_jax.data.headers import stretch_of
from yogo_jax.data.records import Records, boxes_by_class, boxes_look_like
from yogo_jax.data.splits import Splits
from yogo_jax.errors import UserError


# Share of the images that must be nearer to the turned size for it to be a mistake.
TURNED = 0.9


def check_training_data(
    splits: Splits, data: DataConfig, train: TrainConfig | None, *, pasted: bool
) -> list[str]:
    """Refuses data that nothing, or another thing, would be learnt from.

    Args:
      splits: as they are read.
      data: how they are read.
      train: how the best checkpoint is chosen; None where none is.
      pasted: whether thumbnails are pasted into training images.

    Returns:
      Lines on what is doubtful.

    Raises:
      UserError: no training box is used, `train.keep_best` has nothing to go by, or
        `data.image_hw` looks like width, height.
    """
    lines = _check_boxes(splits, data.min_box_area, pasted=pasted)
    lines += _check_image_hw(splits.train, data)
    if train is not None:
        lines += _check_validation(splits, train)
    return lines


def _check_boxes(splits: Splits, min_box_area: float, *, pasted: bool) -> list[str]:
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
