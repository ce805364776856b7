"""A synthetic data set as one text, wherever a definition is taken; and its imbalance."""

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

from configs import base
from sweeps import space_of
from yogo_jax import synthetic_dataset
from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.run_data import (
    definition_path,
    evaluation_records,
    load_data,
    with_absolute_paths,
)
from yogo_jax.config.schema import from_mapping
from yogo_jax.detector.spec import ModelSpec, served_spec
from yogo_jax.errors import UserError
from yogo_jax.synthetic import flow, options, smear
from yogo_jax.synthetic.dataset import STAGES, default_spec, render_frame
from yogo_jax.synthetic.options import is_synthetic, named_dataset, read_options


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("synthetic", True),
        ("synthetic:smear,seed=1", True),
        ("synthetic.yml", False),
        ("/data/synthetic", False),
        ("", False),
    ],
)
def test_what_is_synthetic(definition, expected):
    assert is_synthetic(definition) == expected


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("synthetic", {}),
        ("synthetic:flow", {"domain": "flow"}),
        ("synthetic:smear", {"domain": "smear"}),
        ("synthetic:imbalance=220, smear,seed=1", {"domain": "smear", "imbalance": 220, "seed": 1}),
        (
            "synthetic:train=240,val=44,test=160,cells=7.5",
            {"train": 240, "val": 44, "test": 160, "cells": 7.5},
        ),
    ],
)
def test_options_are_read(definition, expected):
    assert read_options(definition) == expected


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            "synthetic:",
            "expected flow or smear, or one of imbalance, .* found ''; as in synthetic:",
        ),
        ("synthetic:smeer", "found 'smeer'; did you mean smear"),
        ("synthetic:smear,imbalence=3", "found 'imbalence=3'; did you mean imbalance"),
        ("synthetic:smear=1", "found 'smear=1'"),
        ("synthetic:imbalance", "imbalance must be a number of at least 1, found ''; write imbal"),
        ("synthetic:cells=many", "the option cells must be a number above 0, found 'many'"),
        ("synthetic:seed=1.5", "the option seed must be a whole number .* found '1.5'"),
        ("synthetic:smear,flow", "expected domain once, found it twice"),
        ("synthetic:val=1,val=1", "expected val once"),
        ("synthetic:imbalance=0.5", "imbalance must be at least 1, .* got 0.5"),
        ("synthetic:imbalance=nan", "imbalance must be at least 1, .* got nan"),
        ("synthetic:imbalance=inf", "imbalance must be at least 1, .* got inf"),
        ("synthetic:train=0", "train must be at least 1; got 0"),
        ("synthetic:seed=-1", "seed must be 0 or more; got -1"),
        ("synthetic:smear,cells=90", "cells must be more than 0 and at most 85.33"),
    ],
)
def test_options_are_refused(definition, message, tmp_path, monkeypatch):
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message):
        named_dataset(definition)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_domain_and_a_share_that_is_none_are_refused():
    with pytest.raises(UserError, match="domain must be flow or smear; got 'thick'"):
        synthetic_dataset((240, 320), domain="thick")
    spec = default_spec((240, 320), domain="smear")
    with pytest.raises(UserError, match="unlabelled_healthy must be a share"):
        dataclasses.replace(spec, unlabelled_healthy=1.5)


@pytest.mark.parametrize(
    ("definition", "image_hw", "expected"),
    [
        ("synthetic", None, ((772, 1032), {})),
        ("synthetic:smear", None, ((480, 640), {"domain": "smear"})),
        ("synthetic:smear,seed=2", (96, 128), ((96, 128), {"domain": "smear", "seed": 2})),
        ("synthetic:cells=5", (96, 128), ((96, 128), {"cells": 5.0})),
    ],
)
def test_every_option_reaches_the_drawing(definition, image_hw, expected, tmp_path, monkeypatch):
    asked = []

    def record(image_hw, **options):
        asked.append((image_hw, options))
        return tmp_path / "definition.yml"

    monkeypatch.setattr(options, "synthetic_dataset", record)
    assert definition_path(definition, image_hw) == (tmp_path / "definition.yml").resolve()
    assert asked == [expected]


def config_of(definition):
    values = base.get_config().to_dict()
    values["data"] |= {"definition": definition, "image_hw": (96, 128), "rgb": True}
    return from_mapping(values)


def test_a_run_reads_smears_as_any_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path))
    text = "synthetic:smear,train=2,val=1,test=1,cells=2"
    config = with_absolute_paths(config_of(text))
    assert config.data.definition == text
    splits = load_data(config.data)
    assert splits.train.class_names == smear.CLASS_NAMES
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2, 1, 1]


@pytest.mark.parametrize("image_hw", [None, (144, 192)])
def test_frames_are_drawn_at_the_size_that_is_evaluated(image_hw, tmp_path, monkeypatch):
    # Stretched ones would have cells of another size.
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path))
    spec = ModelSpec(
        architecture="quarter_filters",
        class_names=smear.CLASS_NAMES,
        image_hw=(96, 128),
        anchor_wh=(0.3, 0.4),
        rgb=True,
        normalize_images=True,
    )
    metadata = Metadata(
        model=spec,
        config={},
        step=1,
        epoch=1,
        position=1,
        data_fingerprint="f",
        validation=None,
        git_revision="r",
    )
    text = "synthetic:smear,train=1,val=1,test=1,cells=2"
    served = served_spec(spec, image_hw=image_hw)
    records = evaluation_records(metadata, text, "test", served, print)
    with Image.open(records.image_paths[0]) as image:
        assert image.size[::-1] == (image_hw or spec.image_hw)


def test_a_mistake_is_told_at_the_start():
    with pytest.raises(UserError, match="did you mean smear"):
        with_absolute_paths(config_of("synthetic:smeer"))


def test_a_sweep_over_sizes_takes_no_synthetic_frames_of_any_kind():
    with pytest.raises(UserError, match="synthetic frames are generated for one size"):
        space_of("synthetic:smear,imbalance=50")


# Imbalance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("imbalance", [1, 50, 220])
@pytest.mark.parametrize(
    ("domain", "others"),
    [
        ("flow", {"wbc": 0.09 / 0.34, "misc": 0.12 / 0.34}),
        ("smear", {"leukocyte": 1 / 60}),
    ],
    ids=["flow", "smear"],
)
def test_so_many_healthy_cells_come_for_each_of_a_stage(domain, others, imbalance):
    spec = default_spec((240, 320), domain=domain, imbalance=imbalance)
    names = {"flow": flow.CLASS_NAMES, "smear": smear.CLASS_NAMES}[domain]
    shares = dict(zip(names, spec.class_proportions, strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        expected = {"healthy": 1.0, **dict.fromkeys(STAGES, 1 / imbalance), **others}[name]
        assert share / shares["healthy"] == pytest.approx(expected)


def test_drawn_cells_follow_the_imbalance():
    spec = default_spec((480, 640), domain="smear", imbalance=4)
    ids = np.concatenate([render_frame(spec, "test", index).class_ids for index in range(24)])
    counts = np.bincount(ids, minlength=6)
    # About 700 healthy cells and 170 of each stage: three standard deviations.
    assert (abs(counts[1:5] * 4 / counts[0] - 1) < 0.3).all(), counts


# The data set that was there before --------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_hw", "folder"),
    [
        ((240, 320), "synthetic-240x320-12ca32bafdb527cc"),
        ((772, 1032), "synthetic-772x1032-95719224ecd4ed9f"),
        ((96, 128), "synthetic-96x128-dd50ca60ca480b17"),
    ],
    ids=str,
)
def test_folders_of_earlier_versions_stay_in_use(image_hw, folder):
    assert default_spec(image_hw).folder_name == folder


def test_frames_of_earlier_versions_are_drawn_as_they_were():
    """Boxes in pixels by their hash; pixels by their sum, for processors round exp differently."""
    image, boxes, class_ids = render_frame(default_spec((240, 320)), "train", 0)
    rows = np.rint(boxes * [320, 240, 320, 240] * 2).astype(int).tolist()
    digest = hashlib.sha256(repr((rows, class_ids.tolist())).encode()).hexdigest()
    assert (image.shape, digest[:16]) == ((240, 320), "412c134ee0fbc88e")
    assert abs(int(image.sum()) - 16_981_872) <= 20
