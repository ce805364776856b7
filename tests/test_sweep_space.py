"""Search spaces: what is drawn, what is refused, and that every corner of a space is a run."""

import importlib
import json

import pytest

from sweeps import SPACE, space_of, sweep_values
from yogo_jax.errors import UserError
from yogo_jax.sweeping.space import Parameter, position, read_space


def test_the_config_of_the_repository_searches_what_it_should():
    values = importlib.import_module("configs.sweep").get_config().to_dict()
    with pytest.raises(UserError, match=r"synthetic frames .* set --config.data.definition=FILE"):
        read_space(values)
    values["data"]["definition"] = "d.yml"
    space = read_space(values)
    assert {each.field for each in space.parameters} == {
        "data.image_hw",
        "model.name",
        "loss.no_object_weight",
        "loss.label_smoothing",
        "optim.learning_rate",
        "optim.lr_decay_factor",
        "optim.weight_decay",
        "train.batch_size",
    }
    assert space.settings.maximize


def test_a_trial_has_its_own_values_and_shares_the_rest():
    space = space_of()
    config = space.config_of(
        {
            "data.image_hw": "48,64",
            "model.name": "half_filters",
            "loss.no_object_weight": 0.2,
            "optim.learning_rate": 2e-3,
            "train.batch_size": 3,
        }
    )
    assert config.data.image_hw == (48, 64)
    assert config.model.name == "half_filters"
    assert (config.loss.no_object_weight, config.optim.learning_rate) == (0.2, 2e-3)
    assert (config.train.batch_size, config.train.epochs) == (3, 2)
    assert space.base["data"]["image_hw"] == [64, 96]


def test_a_space_survives_json():
    space = space_of(space={**SPACE, "seed": {"choice": (1, 2, 3)}})
    values = json.loads(json.dumps(space.to_dict()))
    sweep = {**values["settings"], "space": values["space"]}
    again = read_space({**values["config"], "sweep": sweep})
    assert again == space
    assert [each.field for each in again.parameters][-1] == "seed"


RATE = {"optim": {"learning_rate": {"log": (1e-4, 1e-2)}}}
BAD = [
    ("no such field", {"optim": {"learning_rte": {"log": (1, 2)}}}, "did you mean 'optim.learning"),
    ("no such group", {"optimizer": {}}, "did you mean 'optim'"),
    ("a field for a group", {"optim": {"log": (1, 2)}}, "optim.log is not a field"),
    ("no group", {"optim": 3}, "optim must be a group of fields, got 3"),
    ("nothing", {}, "space is empty"),
    ("a bare range", {"optim": {"learning_rate": (1e-4, 1e-2)}}, "must be one of {uniform or log"),
    (
        "two kinds",
        {"optim": {"learning_rate": {"log": (1.0, 2.0), "uniform": (1.0, 2.0)}}},
        "must be one of {uniform or log",
    ),
    ("a kind", {"optim": {"learning_rate": {"logg": (1e-4, 1e-2)}}}, "did you mean 'log'"),
    ("no values", {"optim": {"learning_rate": {"log": 3}}}, "values in parentheses, got 3"),
    ("one end", {"optim": {"learning_rate": {"log": (1e-4,)}}}, "LOW below HIGH"),
    ("turned round", {"optim": {"learning_rate": {"log": (1.0, 0.1)}}}, "LOW below HIGH"),
    ("log from 0", {"optim": {"weight_decay": {"log": (0.0, 0.1)}}}, "must begin above 0"),
    ("int of floats", {"optim": {"weight_decay": {"int": (0, 1)}}}, "use 'uniform' or 'log'"),
    ("uniform of ints", {"train": {"batch_size": {"uniform": (2, 4)}}}, "use 'int' or 'log'"),
    ("a range of names", {"model": {"name": {"log": ("a", "b")}}}, "use 'choice'"),
    ("floats for ints", {"train": {"batch_size": {"int": (2.0, 4.0)}}}, "must be of type int"),
    ("a size of one", {"data": {"image_hw": {"choice": ((64,), (32, 48))}}}, "must be 2 values"),
    ("one choice", {"model": {"name": {"choice": ("base_model",)}}}, "two different values"),
    ("twice", {"train": {"batch_size": {"choice": (4, 4)}}}, "two different values"),
    (
        "unknown architecture",
        {"model": {"name": {"choice": ("base_model", "resnet")}}},
        "allows model.name=resnet, but model.name: unknown",
    ),
    (
        "an end out of range",
        {"train": {"batch_size": {"int": (0, 4)}}},
        "allows train.batch_size=0",
    ),
    (
        "a pair that does not fit",
        {
            "data": {"image_hw": {"choice": ((16, 16), (64, 96))}},
            "model": {"name": {"choice": ("quarter_filters", "convnext_small")}},
        },
        "allows data.image_hw=16,16 and model.name=convnext_small, but",
    ),
    ("other data", {"data": {"definition": {"choice": ("a", "b")}}}, "judged on different images"),
    ("other boxes", {"data": {"min_box_area": {"uniform": (0.0, 0.1)}}}, "judged on different"),
    ("workers", {"data": {"workers": {"int": (0, 4)}}}, "does not change what is learned"),
    ("tracking", {"track": {"name": {"choice": ("a", "b")}}}, "does not change what is learned"),
    ("resume", {"train": {"resume": {"choice": ("auto", "never")}}}, "its own workdir"),
]


@pytest.mark.parametrize(("space", "message"), [each[1:] for each in BAD], ids=[b[0] for b in BAD])
def test_a_space_that_cannot_be_is_refused(space, message):
    with pytest.raises(UserError) as error:
        space_of(space=space)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trials": 0}, "config.sweep.trials must be 1 or more"),
        ({"objective": "map"}, "config.sweep.objective must be one of mAP50, mAP50_95, loss"),
        ({"objective": "loss"}, "cannot be compared between trials that differ in loss.no_object"),
        ({"pruner": {"name": "median"}}, "config.sweep.pruner lacks startup_trials, warmup_epochs"),
        (
            {"pruner": {"name": "best", "startup_trials": 1, "warmup_epochs": 0}},
            "pruner.name must be one of median, none",
        ),
        ({"sampler": "random"}, "config.sweep.sampler is not a field"),
        ({"train__resume": "never"}, "config.train.resume must be 'auto' in a sweep"),
        ({"train__from_pretrained": "runs/x"}, "take model.name out"),
    ],
    ids=str,
)
def test_a_search_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(UserError) as error:
        space_of(**overrides)
    assert message in str(error.value)


def test_a_config_without_a_space_is_refused():
    values = sweep_values()
    del values["sweep"]
    with pytest.raises(UserError, match=r"expected config.sweep.space as in configs/sweep.py"):
        read_space(values)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (Parameter("a", "uniform", (1.0, 3.0)), 2.0, 0.5),
        (Parameter("a", "log", (1e-4, 1e-2)), 1e-3, 0.5),
        (Parameter("a", "int", (2, 10)), 4, 0.25),
        (Parameter("a", "choice", ((1, 2), (3, 4), (5, 6))), "3,4", 0.5),
    ],
    ids=lambda value: str(value),
)
def test_places_between_the_ends(parameter, value, expected):
    assert position(parameter, value) == pytest.approx(expected)
