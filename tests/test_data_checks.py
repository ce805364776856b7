"""Data from which nothing, or another thing, would be learnt: refused or told before a training."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from runs import tiny_config
from tiny_data import spoil_labels, write_dataset
from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.run_data import evaluation_data, prepare_data
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata
from yogo_jax.data.headers import header_hw, stretch_of
from yogo_jax.data.images import decode_image
from yogo_jax.errors import UserError
from yogo_jax.inspect_data import main as inspect_main
from yogo_jax.training.trainer import train_and_evaluate


def prepared(definition, **overrides):
    config = tiny_config(definition, **overrides)
    return prepare_data(config.data, config.augment, config.train)


def refusal(definition, **overrides) -> str:
    with pytest.raises(UserError) as error:
        prepared(definition, **overrides)
    return str(error.value)


def label_files(definition):
    return sorted(definition.parent.glob("labels/*/*.txt"))


def drop_rows(definition, keep):
    """Leaves those rows in the label files for which `keep(path, class)` is true."""
    for path in label_files(definition):
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if keep(path, row.split()[0])))


# Small boxes ------------------------------------------------------------------------------------


def test_training_boxes_that_are_all_too_small_are_refused(tmp_path):
    definition = write_dataset(tmp_path, images=8, published=True)
    areas = [
        float(row.split()[3]) * float(row.split()[4])
        for path in definition.parent.glob("labels/train/*.txt")
        for row in path.read_text().splitlines()
    ]
    message = refusal(definition, data__min_box_area=0.9)
    assert message.startswith(f"{definition}: all 24 boxes of the training split are smaller than")
    assert f"the largest has {max(areas):.4g}; expected larger boxes" in message
    assert message.endswith("set --config.data.min_box_area=0 to use all of them")
    assert prepared(definition, data__min_box_area=max(areas)).splits.report.boxes >= 1


@pytest.mark.parametrize(
    ("tiny", "told"),
    [(24, "24 of 24"), (13, "13 of 24"), (12, None), (1, None), (0, None)],
    ids=["all", "most", "half", "one", "none"],
)
def test_a_class_that_loses_most_of_its_boxes_is_told(tmp_path, capsys, tiny, told):
    definition = write_dataset(tmp_path, images=16, published=True)
    left = tiny
    for path in sorted(definition.parent.glob("labels/train/*.txt")):
        rows = path.read_text().splitlines()
        for i, row in enumerate(rows):
            if row.startswith("1 ") and left:
                rows[i], left = "1 0.5 0.5 0.001 0.001", left - 1
        path.write_text("\n".join(rows))
    lines = [line for line in prepared(definition).lines if line.startswith("warning")]
    inspect_main([str(definition), "--grid-hw", "8", "12"])
    inspected = capsys.readouterr().out
    if told is None:
        assert lines == []
        assert "training boxes of ring are too small" not in inspected
        return
    (line,) = lines
    assert line.startswith(f"warning: {told} training boxes of ring are smaller than")
    assert "--config.data.min_box_area=0 uses all of them" in line
    assert f"{told} training boxes of ring are too small" in inspected


def test_training_images_without_any_box_are_refused(tmp_path):
    definition = write_dataset(tmp_path, images=8)
    drop_rows(definition, lambda path, class_id: False)
    assert "the training split has no box, so there is nothing to learn" in refusal(definition)


def test_boxes_that_look_like_corners_are_told(tmp_path):
    definition = write_dataset(tmp_path, images=12)
    assert not any(line.startswith("warning") for line in prepared(definition).lines)
    spoil_labels(definition, "corners")
    (line,) = (line for line in prepared(definition).lines if line.startswith("warning"))
    assert "look like corners x1 y1 x2 y2" in line
    assert f"yogo-jax inspect {definition}" in line


# Validation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_best", ["mAP50", "mAP50_95"])
@pytest.mark.parametrize(
    ("boxes", "found"), [(True, "no image"), (False, "2 images without a box")]
)
def test_a_best_checkpoint_by_mean_ap_takes_boxes_to_validate_on(tmp_path, keep_best, boxes, found):
    definition = write_dataset(tmp_path, images=8, published=True)
    if boxes:
        text = definition.read_text()
        start, end = text.index("val_paths:"), text.index("test_paths:")
        definition.write_text(text[:start] + text[end:])
    else:
        drop_rows(definition, lambda path, class_id: path.parent.name != "val")
    message = refusal(definition, train__keep_best=keep_best)
    assert message.startswith(f"{definition}: train.keep_best is {keep_best}, but the validation")
    assert f"split has {found}" in message
    assert message.endswith("or set --config.train.keep_best=loss")
    lines = prepared(definition, train__patience=3).lines
    told = "the last checkpoint will be the best, and train.patience does not act"
    assert any(told in line for line in lines) == boxes


def test_a_training_is_refused_before_it_makes_anything(tmp_path):
    definition = write_dataset(tmp_path / "data", images=8, published=True)
    drop_rows(definition, lambda path, class_id: path.parent.name != "val")
    with pytest.raises(UserError, match=r"train\.keep_best is mAP50"):
        train_and_evaluate(tiny_config(definition, train__keep_best="mAP50"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ((64, 96), (64, 96), None),
        ((64, 96), (128, 192), None),
        ((64, 96), (64, 104), None),
        ((64, 96), (64, 112), "by up to 1.17"),
        ((64, 96), (64, 64), "by up to 1.50"),
        ((64, 64), (64, 96), "by up to 1.50"),
        ((64, 96), (32, 192), "by up to 4.00"),
        ((64, 96), (96, 64), "turned"),
        ((64, 96), (192, 128), "turned"),
        ((96, 64), (64, 96), "turned"),
        ((64, 66), (66, 64), None),
        ((64, 72), (72, 64), "turned"),
    ],
    ids=str,
)
def test_images_of_another_shape_than_image_hw(tmp_path, stored, asked, expected):
    definition = write_dataset(tmp_path, images=4, image_hw=stored)
    height, width = asked
    if expected == "turned":
        message = refusal(definition, data__image_hw=asked)
        assert message.startswith(
            f"data.image_hw={height},{width} is height, width, but the images"
        )
        assert f"are {stored[0]} px high and {stored[1]} px wide" in message
        assert message.endswith(f"did you mean --config.data.image_hw={width},{height}?")
        return
    lines = [line for line in prepared(definition, data__image_hw=asked).lines if "warning" in line]
    if expected is None:
        assert lines == []
    else:
        (line,) = lines
        assert f"100% of the images have another shape than {height}x{width} px" in line
        assert expected in line


def test_images_of_several_shapes_are_told_and_not_refused(tmp_path):
    paths = []
    for i in range(300):
        paths.append(str(tmp_path / f"{i:03}.png"))
        Image.new("L", (96, 64) if i % 4 else (64, 96)).save(paths[-1])
    (tmp_path / "000.png").write_bytes(b"broken")
    found = stretch_of(paths, (96, 64))
    assert found.turned == pytest.approx(found.share)
    assert 0.6 < found.share < 0.9
    assert found.factor == pytest.approx(2.25)
    assert stretch_of([], (96, 64)) is None
    assert stretch_of(paths[:1], (96, 64)) is None


def test_inspect_tells_of_images_that_would_be_stretched(tmp_path, capsys):
    definition = write_dataset(tmp_path, images=4)
    inspect_main([str(definition)])
    assert "stretched" not in capsys.readouterr().out
    inspect_main([str(definition), "--image-hw", "96", "64"])
    assert "have another shape than 96x64 px and are stretched" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", [None, *range(1, 9)], ids=str)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_the_header_says_the_size_of_what_is_decoded(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    options = {} if suffix == ".bmp" or orientation is None else {"exif": exif}
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path, **options)
    turned = (30, 20) if suffix != ".bmp" and (orientation or 1) >= 5 else (20, 30)
    for applied, expected in ((True, turned), (False, (20, 30))):
        found = header_hw(path, apply_orientation=applied)
        decoded = decode_image(path, rgb=False, apply_orientation=applied)
        assert found == decoded.shape[:2] == expected


# No split ---------------------------------------------------------------------------------------


def write_plain(folder, images):
    """A set without any split."""
    definition = write_dataset(folder, images=images)
    text = "class_names: [healthy, ring]\nimage_path: images/all\nlabel_path: labels/all\n"
    definition.write_text(text)
    return definition


def test_a_set_without_a_split_gets_one_and_says_so(tmp_path, capsys):
    definition = write_plain(tmp_path, 20)
    data = prepared(definition, train__keep_best="mAP50")
    sizes = [len(split) for split in (data.splits.train, data.splits.val, data.splits.test)]
    assert sizes == [16, 2, 2]
    told = f"{definition} names no split: its images are split at random, 0.8 train, 0.1 val, 0.1"
    assert any(line.startswith(told) for line in data.lines)
    inspect_main([str(definition), "--grid-hw", "8", "12"])
    assert told in capsys.readouterr().out
    override = prepared(definition, data__split_override=(0.5, 0.25, 0.25))
    assert len(override.splits.train) == 10
    assert not any("names no split" in line for line in override.lines)


@pytest.mark.parametrize(("images", "val"), [(1, 0), (4, 0), (5, 0), (6, 1), (10, 1)])
def test_a_set_that_is_too_small_to_split(tmp_path, images, val):
    definition = write_plain(tmp_path, images)
    data = prepared(definition)
    assert len(data.splits.val) == val
    told = "no validation split in this data set: the last checkpoint will be the best"
    assert (told in data.lines) == (val == 0)
    if not val:
        assert "validation split has no image" in refusal(definition, train__keep_best="mAP50")


def test_a_run_of_today_has_its_split_whatever_else_it_saw(tmp_path):
    definition = write_plain(tmp_path / "data", 10)
    train_and_evaluate(tiny_config(definition, train__epochs=1), tmp_path / "run")
    metadata = read_metadata(find_checkpoint(tmp_path / "run"))
    assert metadata.split_is_usual
    # A checkpoint within an epoch has no validation. The fingerprint is another with thumbnails, or
    # when labels were mended.
    stopped = dataclasses.replace(metadata, validation=None, data_fingerprint="other")
    said = []
    for seen in (metadata, stopped, Metadata.from_dict(stopped.to_dict(), tmp_path)):
        splits = evaluation_data(seen, None, said.append)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 1, 1)
    assert not said


def test_a_run_from_before_sets_without_a_split_got_one(tmp_path):
    definition = write_plain(tmp_path / "data", 10)
    plain = definition.read_text()
    definition.write_text(f"{plain}dataset_split_fractions: {{train: 1}}\n")
    config = tiny_config(definition, train__epochs=1)
    train_and_evaluate(config, tmp_path / "run")
    definition.write_text(plain)
    with pytest.raises(UserError, match="was trained on other data") as error:
        train_and_evaluate(config, tmp_path / "run")
    assert f"write `dataset_split_fractions: {{train: 1}}` into {definition}" in str(error.value)
    # Its images are no test for it.
    said = []
    metadata = read_metadata(find_checkpoint(tmp_path / "run"))
    splits = evaluation_data(metadata, None, said.append)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 0, 0)
    assert len(said) == 1
    assert re.search("this run is from before .*were its training split", said[0])
    definition.write_text(f"{plain}dataset_split_fractions: {{train: 1}}\n")
    train_and_evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["epochs"] == 1
