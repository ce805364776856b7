"""Fields of a config on the command line, and the files that they change."""

import json

import pytest

from runs import tiny_values
from sweeps import space_of, sweep_values
from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.command import Parser
from yogo_jax.config.fields import (
    RENAMED,
    differences,
    fields_of,
    with_current_names,
    with_defaults,
    with_fields,
)
from yogo_jax.config.overrides import add_config_flags, overrides_in, read_values
from yogo_jax.config.schema import Config, from_mapping
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.sweep import make_parser as sweep_parser
from yogo_jax.sweep import sweep_fields
from yogo_jax.sweeping.space import read_space
from yogo_jax.sweeping.study import load_study, open_study


def given(*arguments: str) -> dict:
    parser = Parser(prog="x", allow_abbrev=False)
    add_config_flags(parser)
    return overrides_in(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.optim.learning_rate=1e-3"], {"optim.learning_rate": 1e-3}),
        (["--config.optim.learning_rate", "2"], {"optim.learning_rate": 2.0}),
        (["--config.train.epochs=3", "--config.train.epochs=4"], {"train.epochs": 4}),
        (["--config.seed", "7"], {"seed": 7}),
        (["--config.data.rgb=True"], {"data.rgb": True}),
        (["--config.data.rgb=false"], {"data.rgb": False}),
        (["--config.data.rgb"], {"data.rgb": True}),
        (["--noconfig.data.rgb"], {"data.rgb": False}),
        (["--config.data.image_hw=240,320"], {"data.image_hw": (240, 320)}),
        (["--config.data.image_hw", "(240, 320)"], {"data.image_hw": (240, 320)}),
        (["--config.augment.zoom=0.8,1.25"], {"augment.zoom": (0.8, 1.25)}),
        (["--config.optim.freeze=('block_0',)"], {"optim.freeze": ("block_0",)}),
        (["--config.track.tags=a, b"], {"track.tags": ("a", "b")}),
        (["--config.data.split_override=()"], {"data.split_override": ()}),
        (["--config.data.cache=disk"], {"data.cache": "disk"}),
        (["--config.model.anchor=0.1,0.2"], {"model.anchor": "0.1,0.2"}),
        (["--config.track.note=100 %"], {"track.note": "100 %"}),
        (["--config.loss.usual_objects=3"], {"loss.usual_objects": 3.0}),
        ([], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_have_the_type_of_their_field(arguments, expected):
    found = given(*arguments)
    assert found == expected
    assert list(map(type, found.values())) == list(map(type, expected.values()))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.epochs=1.5", "expected a whole number, got '1.5'"),
        ("--config.data.rgb=maybe", "expected True or False, got 'maybe'"),
        ("--config.data.image_hw=a,b", "a whole number, or several with commas between them"),
        ("--config.optim.learning_rte=1", "did you mean --config.optim.learning_rate?"),
    ],
)
def test_mistakes_are_named(argument, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        given(argument)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def write_config(folder, body: str) -> str:
    path = folder / "own.py"
    path.write_text(f"from configs import base\n\n{body}")
    return str(path)


def test_a_file_of_the_user_may_refer_to_fields_and_take_an_argument(tmp_path):
    path = write_config(
        tmp_path,
        "def get_config(size='10'):\n"
        "    config = base.get_config()\n"
        "    config.train.epochs = int(size)\n"
        "    config.train.eval_every_epochs = config.train.get_ref('epochs')\n"
        "    config.lock()\n"
        "    return config\n",
    )
    train = read_values(f"{path}:20")["train"]
    assert (train["epochs"], train["eval_every_epochs"]) == (20, 20)
    train = read_values(path, {"train.epochs": 5})["train"]
    assert (train["epochs"], train["eval_every_epochs"]) == (5, 5)


def test_a_file_may_return_plain_values(tmp_path):
    path = write_config(tmp_path, "def get_config():\n    return base.get_config().to_dict()\n")
    assert from_mapping(read_values(path, {"seed": 3})).seed == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_config():\n    return 3\n", "whose get_config.. returns a ConfigDict.*found 3"),
        ("raise ValueError('no')\n", "found ValueError: no"),
        ("value = 3\n", "found AttributeError: .*get_config"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        read_values(write_config(tmp_path, body))


def test_old_names_in_a_file_and_in_flags_are_told_once_each(tmp_path):
    path = write_config(
        tmp_path,
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.loss.usual_objects = 20.0\n"
        "    return config\n",
    )
    said: list[str] = []
    loss = read_values(path, say=said.append)["loss"]
    assert loss["reference_count"] == 20
    assert "usual_objects" not in loss
    new = "config.loss.usual_objects is now called config.loss.reference_count"
    assert said == [f"{new}; the old name is still read"]
    # A flag goes before the file, whichever names they use.
    for name in ("loss.reference_count", "loss.usual_objects"):
        assert read_values(path, {name: 5.0}, say=said.append)["loss"]["reference_count"] == 5


def test_ranges_of_a_search_space():
    flags = [
        "--config.sweep.space.optim.learning_rate.log=1e-3,1e-2",
        "--config.sweep.space.model.name.choice=yogo_n,yogo_s",
        "--config.sweep.space.data.image_hw.choice=(64,96),(96,128)",
        "--config.data.definition=d.yml",
        "--config.sweep.trials=3",
    ]
    overrides = overrides_in(sweep_parser().parse_args(flags))
    space = read_space(read_values("sweep", overrides, more_fields=sweep_fields()))
    chosen = {each.field: each.values for each in space.parameters}
    assert chosen["optim.learning_rate"] == (1e-3, 1e-2)
    assert chosen["model.name"] == ("yogo_n", "yogo_s")
    assert chosen["data.image_hw"] == ((64, 96), (96, 128))
    assert space.settings.trials == 3


def of_an_earlier_version(values: dict) -> dict:
    """Nested values under the names that fields had before."""
    values = with_fields(values, {})
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        values[group][name] = values[group].pop(new.partition(".")[2])
    return values


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    values = tiny_values("d.yml", loss__reference_count=4.0, augment__epochs_without_paste=1)
    config = from_mapping(values).to_dict()
    spec = ModelSpec(
        architecture="base_model",
        image_hw=(64, 96),
        anchor_wh=(0.1, 0.1),
        class_names=("a", "b"),
        rgb=False,
        normalize_images=False,
    )
    written = {
        "model": spec.to_dict(),
        "config": of_an_earlier_version(config),
        "step": 3,
        "epoch": 1,
        "position": 12,
        "data_fingerprint": "x",
        "validation": None,
        "git_revision": "y",
        "format_version": 1,
    }
    assert written["config"]["loss"]["usual_objects"] == 4
    metadata = Metadata.from_dict(json.loads(json.dumps(written)), tmp_path)
    assert metadata.config == config
    assert metadata.trained_loss_weights([1, 1]).reference_count == 4
    # Also where fields came later.
    del written["config"]["loss"]["by_fullness"]
    recorded = with_current_names(written["config"])
    assert differences(with_defaults(Config, recorded), config) == []


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path):
    space = space_of(space={"loss": {"reference_count": {"uniform": (1.0, 9.0)}}})
    study = open_study(tmp_path / "study", space, stale_after=60)
    path = study.folder / "study.json"
    values = json.loads(path.read_text())
    values["config"] = of_an_earlier_version(values["config"])
    values["space"] = {"loss.usual_objects": values["space"].pop("loss.reference_count")}
    path.write_text(json.dumps(values))
    assert load_study(study.folder, stale_after=60).space == study.space
    assert open_study(study.folder, space, stale_after=60).space == study.space
    chosen = study.space.config_of({"loss.usual_objects": 2.0})
    assert chosen.loss.reference_count == 2
    old = sweep_values(space={"loss": {"usual_objects": {"uniform": (1.0, 9.0)}}})
    assert read_space(old).parameters == space.parameters


def test_every_field_is_explained_by_the_help(capsys):
    parser = Parser(prog="x")
    add_config_flags(parser)
    text = parser.format_help()
    for name in fields_of(Config):
        assert f"--config.{name} " in text
    assert "--config.loss.usual_objects" not in text
    assert "noconfig" not in text
