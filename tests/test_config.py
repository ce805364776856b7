import copy
import dataclasses
import importlib
import math
from pathlib import Path

import pytest

from runs import tiny_values
from yogo_jax.config.fields import (
    RENAMED,
    differences,
    fields_of,
    flat,
    with_current_names,
    with_fields,
)
from yogo_jax.config.schema import Config, from_mapping
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.detector.loss_weights import ORIGINAL_WEIGHTS
from yogo_jax.errors import UserError


CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem[0] != "_"
)


@pytest.mark.smoke
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_valid(name):
    values = importlib.import_module(f"configs.{name}").get_config().to_dict()
    # What a sweep has beside a run is tested with sweeps.
    values.pop("sweep", None)
    assert from_mapping(values).to_dict()["model"]["name"]


def test_base_is_the_recipe_of_the_original():
    config = from_mapping(importlib.import_module("configs.base").get_config().to_dict())
    assert config.data.image_hw == (772, 1032)
    assert config.model.anchor_wh() == (0.04250100424705710, 0.05551774140353888)
    assert (config.train.epochs, config.train.batch_size) == (64, 64)
    assert config.train.eval_every_epochs == 4
    assert (config.optim.learning_rate, config.optim.weight_decay) == (3e-4, 0.05)
    assert (config.optim.lr_decay_factor, config.optim.clip_value) == (10, 1)
    assert (config.loss.no_object_weight, config.loss.iou_weight) == (0.5, 5)
    assert (config.loss.classify_weight, config.loss.label_smoothing) == (1, 0.01)
    assert config.data.min_box_area == 200 / (772 * 1032)


def test_every_field_says_its_meaning_in_sentences():
    for name, field in fields_of(Config).items():
        assert field.meaning[:1].isupper() or field.meaning[:1] == '"', name
        assert field.meaning.endswith("."), name


def test_base_has_every_field():
    values = importlib.import_module("configs.base").get_config().to_dict()
    assert set(flat(values)) == set(fields_of(Config))


def test_defaults_for_old_checkpoints_are_those_of_base():
    config = from_mapping(importlib.import_module("configs.base").get_config().to_dict())
    original = dataclasses.asdict(ORIGINAL_WEIGHTS)
    assert {name: getattr(config.loss, name) for name in original} == original
    assert config.loss.for_data([3, 1, 0], 2) == config.loss
    assert config.data.min_box_area == MIN_BOX_AREA


BAD = [
    ("data__image_hw", (240,), "data.image_hw must be 2 values"),
    ("data__image_hw", (240, 8), "data.image_hw must be two sides"),
    ("data__image_hw", (240.0, 320.0), r"data.image_hw\[0\] must be of type int"),
    ("data__definition", "", "data.definition must be a path"),
    ("data__workers", -1, "data.workers must be 0 or more"),
    ("data__cache", "ram", "data.cache must be one of"),
    ("model__dtype", "float16", "model.dtype must be one of"),
    ("data__max_boxes", -1, "data.max_boxes must be 0"),
    ("data__min_box_area", 1.0, "data.min_box_area must be in"),
    ("data__on_bad_label", "ignore", "data.on_bad_label must be one of error, skip"),
    ("data__split_override", (0.5, 0.5), "data.split_override must be empty or three"),
    ("data__split_override", (0.5, 0.6, 0.1), "data.split_override must be empty or three"),
    ("data__rgb", 1, "data.rgb must be of type bool"),
    ("model__name", "resnet", "unknown architecture 'resnet'; known are base_model"),
    ("model__anchor", "0.1", "model.anchor must be 'auto' or two numbers"),
    ("model__anchor", "0.1,wide", "model.anchor must be 'auto' or two numbers"),
    ("model__anchor", "0.1,1.5", "model.anchor must be 'auto' or two numbers"),
    ("loss__iou_weight", -1.0, "loss.iou_weight must be 0 or more"),
    ("loss__label_smoothing", 1.0, "loss.label_smoothing must be in"),
    ("optim__learning_rate", 0.0, "optim.learning_rate must be above 0"),
    ("optim__learning_rate", "fast", "optim.learning_rate must be of type float"),
    ("optim__learning_rate", math.nan, "optim.learning_rate must be a finite number"),
    ("optim__lr_decay_factor", 0.5, "optim.lr_decay_factor must be 1 or more"),
    ("optim__clip_value", -1.0, "optim.clip_value must be 0"),
    ("train__epochs", 0, "train.epochs must be 1 or more"),
    ("train__epochs", True, "train.epochs must be of type int"),
    ("train__batch_size", 0, "train.batch_size must be 1 or more"),
    ("train__checkpoint_every_minutes", 0.0, "checkpoint_every_minutes must be above 0"),
    ("train__resume", "", "train.resume must be 'auto'"),
    ("augment__vertical_flip", 1.5, "augment.vertical_flip must be a probability"),
    ("model__kernel_init", "xavier", "model.kernel_init must be one of fan_out, fan_in"),
    ("model__objectness_prior", 1.0, "model.objectness_prior must be in"),
    ("loss__objectness", "hinge", "loss.objectness must be one of squared, cross_entropy"),
    ("loss__neighbour_weight", -1.0, "loss.neighbour_weight must be 0 or more"),
    ("loss__reference_count", -1.0, "loss.reference_count must be 0 or more"),
    ("loss__class_weights", (1.0, -1.0), "loss.class_weights must be empty, or"),
    ("augment__rare_cells_weights", (1.0, -1.0), "augment.rare_cells_weights must be empty, or"),
    ("augment__rare_cells_weights", (1.0, 2.0), "empty where augment.rare_cells is 0"),
    ("optim__warmup_epochs", -1.0, "optim.warmup_epochs must be 0"),
    ("optim__clip_norm", -1.0, "optim.clip_norm must be 0"),
    ("optim__ema_decay", 1.0, "optim.ema_decay must be in"),
    ("optim__freeze", "head", "optim.freeze must be of type tuple"),
    ("train__keep_best", "recall", "train.keep_best must be one of"),
    ("train__patience", -1, "train.patience must be 0"),
    ("augment__quarter_turns", 0.5, "augment.quarter_turns must be 0 unless data.image_hw is a"),
    ("augment__zoom", (1.5, 0.5), "augment.zoom must be two factors LOW,HIGH"),
    ("augment__zoom", (1.5,), "augment.zoom must be 2 values"),
    ("augment__cutout", 1.5, "augment.cutout must be a probability"),
    ("optim__freeze", ("head",), "optim.freeze must be empty unless train.from_pretrained"),
    ("augment__vertical_crop", 0.0, "augment.vertical_crop must be in .0, 1."),
    ("augment__thumbnails", 2.0, "augment.thumbnails must be a probability"),
    ("augment__thumbnails_plain", -1.0, "augment.thumbnails_plain must be a probability"),
    ("augment__thumbnails_tried", 0, "augment.thumbnails_tried must be 1"),
    ("augment__translation", -0.5, "augment.translation must be a fraction"),
    ("augment__gamma", -0.5, "augment.gamma must be 0"),
    ("augment__blur", 5.0, "augment.blur must be in"),
    ("track__wandb_mode", "maybe", "track.wandb_mode must be one of"),
    ("seed", -1, "seed must be in"),
    ("data", 3, "config.data must be a group of fields"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=[f"{f}={v}" for f, v, _ in BAD])
def test_bad_values_are_named(field, value, message):
    with pytest.raises(UserError, match=message):
        from_mapping(tiny_values("d.yml", **{field: value}))


def test_unknown_and_missing_fields_are_named():
    values = tiny_values("d.yml")
    values["optim"]["learning_rte"] = 1.0
    with pytest.raises(
        UserError, match=r"config.optim.learning_rte .* did you mean 'learning_rate'"
    ):
        from_mapping(values)
    values = tiny_values("d.yml")
    del values["loss"]["iou_weight"]
    with pytest.raises(UserError, match=r"config.loss lacks iou_weight"):
        from_mapping(values)


def test_plain_values_and_back():
    config = from_mapping(tiny_values("d.yml"))
    assert from_mapping(config.to_dict()) == config


def test_differences_name_the_fields():
    a = from_mapping(tiny_values("d.yml")).to_dict()
    b = copy.deepcopy(a)
    b["optim"]["learning_rate"] = 0.5
    assert differences(a, a) == []
    assert differences(a, b) == ["config.optim.learning_rate: 0.0003 != 0.5"]


@pytest.mark.parametrize("name", RENAMED)
def test_old_names_are_read_and_told(name):
    values = tiny_values("d.yml")
    new = RENAMED[name]
    group, _, field = new.partition(".")
    value = {float: 2.0, bool: True, int: 3}[fields_of(Config)[new].kind]
    del values[group][field]
    said: list[str] = []
    old = with_fields(values, {name: value})
    assert with_current_names(old, said.append) == with_fields(values, {new: value})
    assert said == [f"config.{name} is now called config.{new}; the old name is still read"]
    assert from_mapping(old) == from_mapping(with_fields(values, {new: value}))
    assert with_current_names({name: value}) == {new: value}


def test_an_old_name_in_a_file_that_imports_base_goes_before_the_new_one():
    values = with_fields(tiny_values("d.yml"), {"loss.usual_objects": 20.0})
    assert values["loss"]["reference_count"] == 0.0
    assert from_mapping(values).loss.reference_count == 20


def test_groups_are_checked_however_they_are_made():
    config = from_mapping(tiny_values("d.yml"))
    with pytest.raises(UserError, match=r"config.optim.learning_rate must be above 0, got -1.0"):
        dataclasses.replace(config.optim, learning_rate=-1.0)


def test_a_config_from_a_file():
    config = Config.from_file("strong", **{"optim.learning_rate": 1e-3, "data.image_hw": [64, 96]})
    assert (config.model.name, config.optim.learning_rate) == ("yogo_d", 1e-3)
    assert (config.optim.name, config.optim.weight_decay) == ("muon", 0.3)
    assert config.data.image_hw == (64, 96)
    with pytest.raises(UserError, match=r"config.optim.learning_rte .* 'optim.learning_rate'"):
        Config.from_file("strong", **{"optim.learning_rte": 1e-3})
    with pytest.raises(UserError, match=r"config.train.epochs must be 1 or more, got 0"):
        Config.from_file("strong", **{"train.epochs": 0})
