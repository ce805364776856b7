"""An image with an orientation is, to every part of a run, the picture that viewers show."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bridge.frames import frames_of_definition
from bridge.quantize import quantization_strips
from drawn_models import make_spec, write_random_checkpoint
from runs import tiny_config
from tiny_data import write_dataset
from yogo_jax import calibrate
from yogo_jax import inspect_data as inspect
from yogo_jax.checkpoint.run_data import prepare_data
from yogo_jax.checkpoint.store import read_metadata, rewrite_metadata
from yogo_jax.config.schema import from_mapping
from yogo_jax.data.definition import load_definition
from yogo_jax.data.images import read_image
from yogo_jax.data.pack import find_pack, make_pack
from yogo_jax.data.pipeline import RecordSource
from yogo_jax.data.splits import load_splits
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.inspection import suspects
from yogo_jax.inspection.findings import Listing
from yogo_jax.inspection.suspects import SUSPECT_KINDS, Suspects
from yogo_jax.training.start import find_start, prepare_spec


ORIENTATION = 0x0112
# As a camera that was held sideways stores them.
STORED = Image.Transpose.ROTATE_90  # counterclockwise; 6 says to turn it clockwise


def turn_files(definition: Path, count: int | None = None) -> list[Path]:
    """Stores images sideways, with the tag that says so; returns their paths."""
    paths = sorted(definition.parent.glob("images/*/*.png"))[:count]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for path in paths:
        with Image.open(path) as image:
            stored = image.transpose(STORED)
        stored.save(path, exif=exif)
    return paths


@pytest.fixture
def definitions(tmp_path):
    """The same data twice, upright and sideways."""
    upright, sideways = (write_dataset(tmp_path / name) for name in ("upright", "sideways"))
    turn_files(sideways)
    return upright, sideways


def records_of(definition: Path):
    return load_splits(load_definition(definition), min_box_area=0.0, on_bad_label="error").train


def test_examples_are_those_of_upright_files(definitions):
    upright, sideways = (
        RecordSource(records_of(each), image_hw=(64, 96), rgb=False, max_boxes=8)
        for each in definitions
    )
    stored = RecordSource(
        records_of(definitions[1]),
        image_hw=(64, 96),
        rgb=False,
        max_boxes=8,
        apply_orientation=False,
    )
    for index in range(len(upright)):
        for name in ("image", "boxes_cxcywh", "class_ids"):
            np.testing.assert_array_equal(upright[index][name], sideways[index][name])
        assert (upright[index]["image"] != stored[index]["image"]).any()


@pytest.mark.parametrize("apply", [True, False])
def test_packs_are_apart(apply, definitions, monkeypatch, tmp_path):
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path / "cache"))
    paths = records_of(definitions[1]).image_paths
    wanted = {"image_hw": (64, 96), "rgb": False}
    packed = find_pack(paths, **wanted, apply_orientation=apply)
    make_pack(packed, paths, **wanted, workers=0, tell=lambda *_: None, apply_orientation=apply)
    assert not find_pack(paths, **wanted, apply_orientation=not apply).made
    for index, path in enumerate(paths):
        expected = read_image(path, **wanted, apply_orientation=apply)
        np.testing.assert_array_equal(packed[index], expected)


def test_the_fingerprint_changes_only_where_pixels_do(definitions):
    # A square, so that the stored pixels are not taken for a mistake in `image_hw`.
    upright, sideways = (tiny_config(each, data__image_hw=(64, 64)).data for each in definitions)
    applied, stored = (
        prepare_data(dataclasses.replace(sideways, apply_orientation=apply))
        for apply in (True, False)
    )
    assert applied.fingerprint != stored.fingerprint
    plain = prepare_data(upright)
    off = prepare_data(dataclasses.replace(upright, apply_orientation=False))
    assert plain.fingerprint == off.fingerprint
    # As runs of versions before the field have it.
    for data in (plain, stored):
        splits = data.splits
        prints = [splits.train.fingerprint()]
        prints += [each.fingerprint(with_image_sizes=False) for each in (splits.val, splits.test)]
        assert data.fingerprint == hashlib.sha256("".join(prints).encode()).hexdigest()
    assert not [line for line in plain.lines if "orientation" in line]
    assert "12 images have an orientation (EXIF or TIFF tag), by which" in "\n".join(applied.lines)
    assert "12 images have an orientation (EXIF or TIFF tag) that is not" in "\n".join(stored.lines)


def test_the_field_has_a_default_for_old_configs(definitions):
    values = tiny_config(definitions[0]).to_dict()
    assert values["data"].pop("apply_orientation") is True
    assert from_mapping(values).data.apply_orientation


def test_a_model_says_it_only_where_it_is_off():
    spec = make_spec("quarter_filters")
    assert "apply_orientation" not in spec.to_dict()
    off = dataclasses.replace(spec, apply_orientation=False)
    for each in (spec, off):
        assert ModelSpec.from_dict(json.loads(json.dumps(each.to_dict()))) == each


@pytest.mark.parametrize("apply", [True, False])
def test_a_run_from_before_the_field_goes_on_where_its_data_is_the_same(apply, tmp_path):
    config = tiny_config("a.yml", data__apply_orientation=apply)
    recorded = config.to_dict()
    del recorded["data"]["apply_orientation"]
    folder = write_random_checkpoint(tmp_path / "checkpoint")
    metadata = read_metadata(folder)
    rewrite_metadata(
        folder, dataclasses.replace(metadata, config=recorded, data_fingerprint="the same")
    )
    train = dataclasses.replace(config.train, resume=str(folder))
    config = dataclasses.replace(config, train=train)
    start = find_start(config, tmp_path / "run", "the same")
    assert start is not None
    assert start.folder == folder
    with pytest.raises(UserError, match=r"trained on other data: .*\(data\.apply_orientation\)"):
        find_start(config, tmp_path / "run", "turned")


def test_the_model_of_a_run_knows_how_its_images_were_read(definitions):
    config = tiny_config(definitions[0], data__apply_orientation=False)
    assert not prepare_spec(config, records_of(definitions[0])).apply_orientation


@pytest.mark.parametrize("apply", [True, False])
def test_every_command_that_reads_labelled_images_says_it(apply, tmp_path, capsys):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint")
    metadata = read_metadata(checkpoint)
    spec = dataclasses.replace(metadata.model, apply_orientation=apply)
    metadata = dataclasses.replace(metadata, model=spec)
    rewrite_metadata(checkpoint, metadata)
    names = spec.class_names
    definition = write_dataset(tmp_path / "data", image_hw=(96, 128), class_names=names)
    turn_files(definition)
    told = "turned" if apply else "not applied"

    with pytest.raises(SystemExit):  # too few boxes are found
        calibrate.main([str(checkpoint), "--definition", str(definition)])
    said = capsys.readouterr().out
    assert re.search(f"3 images have an orientation .*{told}", said)

    frames_of_definition(definition, spec, spec)
    assert re.search(f"3 images have an orientation .*{told}", capsys.readouterr().out)

    quantization_strips(str(definition), metadata, spec)
    assert re.search(f"9 images have an orientation .*{told}", capsys.readouterr().out)


@pytest.mark.slow
def test_evaluations_of_turned_and_upright_files_are_the_same(tmp_path, capsys):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint")
    names = make_spec("quarter_filters").class_names
    figures = []
    for name in ("upright", "sideways"):
        definition = write_dataset(tmp_path / name, image_hw=(96, 128), class_names=names, images=4)
        if name == "sideways":
            turn_files(definition)
        output = tmp_path / f"results of {name}"
        flags = ["--definition", str(definition), "--output", str(output), "--split", "train"]
        evaluate_command([str(checkpoint), *flags, "--pictures", "1", "--obj-thresh", "0.4"])
        said = capsys.readouterr().out
        assert ("2 images have an orientation (EXIF or TIFF tag), by which" in said) == (
            name == "sideways"
        )
        (picture,) = (output / "pictures").iterdir()
        figures.append(
            json.loads((output / "metrics.json").read_text()) | {"picture": picture.read_bytes()}
        )
    assert figures[0] == figures[1]


@pytest.mark.parametrize("apply", [True, False])
def test_an_inspection_lists_the_files(apply, tmp_path, capsys):
    definition = write_dataset(tmp_path / "data")
    turned = turn_files(definition, count=2)
    flag = [] if apply else ["--no-apply-orientation"]
    inspect.main([str(definition), "--output", str(tmp_path / "out"), *flag])
    found = json.loads((tmp_path / "out" / "inspection.json").read_text())
    listed = found["findings"]["oriented_image"]["listed"]
    assert sorted(each["place"] for each in listed) == [str(path.resolve()) for path in turned]
    assert [each["orientation"] for each in listed] == [6, 6]
    expected = {"64x96": 12} if apply else {"64x96": 10, "96x64": 2}
    assert found["images"]["by_size"] == expected
    assert "images with an orientation (EXIF or TIFF tag): 2" in capsys.readouterr().out


@pytest.mark.parametrize("apply", [True, False, None])
def test_a_detector_inspects_the_images_as_the_rest_of_the_inspection_does(
    apply, tmp_path, monkeypatch
):
    definition = write_dataset(tmp_path / "data", images=4)
    checkpoint = write_random_checkpoint(
        tmp_path / "checkpoint", class_names=("healthy", "ring"), image_hw=(64, 96)
    )
    flag = {True: ["--apply-orientation"], False: ["--no-apply-orientation"], None: []}[apply]
    asked = []

    def find(inspection, spec, *_, **__):
        asked.append((inspection.scanned.apply_orientation, spec.apply_orientation))
        return Suspects({kind: Listing() for kind in SUSPECT_KINDS})

    monkeypatch.setattr(suspects, "find_suspects", find)
    inspect.main([str(definition), "--checkpoint", str(checkpoint), *flag])
    assert asked == [(apply is not False,) * 2]
