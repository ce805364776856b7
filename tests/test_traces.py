"""Traced steps that are kept: the same step, traced once, and never another one's."""

import functools
import importlib
import json
import platform
import sys

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import pytest
from jax import export

from kills import assert_same_runs
from runs import logged_losses, run_command, tiny_config, train_command
from tiny_data import add_thumbnails, write_dataset
from yogo_jax.config import from_mapping
from yogo_jax.detector.losses import LossTerms
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.devices import Devices
from yogo_jax.sources import source_digest
from yogo_jax.training import loop, run, setup, traces
from yogo_jax.training.loop import train_and_evaluate
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.state import TrainState, create_state
from yogo_jax.training.step import StepMetrics, make_train_step
from yogo_jax.training.traces import keep_trace


SOURCES = source_digest()
TX = optax.adam(0.1)


class Step:
    """A small step that counts how often it is traced."""

    def __init__(self) -> None:
        self.traced = 0

    def __call__(self, state, inputs):
        self.traced += 1
        loss = (state.params["w"] * inputs["x"]).sum()
        updates, opt_state = TX.update({"w": inputs["x"]}, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        zero = jnp.zeros(())
        metrics = StepMetrics(loss, LossTerms(loss, zero, zero), zero, zero, zero)
        return TrainState(state.step + 1, params, {}, opt_state), metrics


def a_state():
    params = {"w": jnp.arange(3.0)}
    return TrainState(jnp.zeros((), jnp.int32), params, {}, TX.init(params))


def inputs_of(size=3, dtype=np.float32):
    return {"x": np.linspace(1, 2, size, dtype=dtype)}


def times_traced(inputs=None, *, made_of="a step", sources=SOURCES, say=pytest.fail):
    """Of one start."""
    step = Step()
    inputs = inputs_of() if inputs is None else inputs
    jax.jit(keep_trace(step, sources, made_of, say)).trace(a_state(), inputs)
    return step.traced


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "traces"


def test_the_second_start_does_not_trace(folder):
    assert [times_traced() for _ in range(3)] == [1, 0, 0]
    assert len(list(folder.iterdir())) == 1


def test_results_are_those_of_the_step():
    expected = jax.jit(Step())(a_state(), inputs_of())
    for traced in (1, 0):
        step = Step()
        found = jax.jit(keep_trace(step, SOURCES, "a step", pytest.fail))(a_state(), inputs_of())
        assert step.traced == traced
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


@pytest.mark.parametrize(
    "other",
    [
        {"made_of": "another step"},
        {"inputs": inputs_of(size=1)},
        {"inputs": inputs_of(dtype=np.int32)},
    ],
    ids=["made of something else", "other shapes", "other types"],
)
def test_another_step_is_traced(folder, other):
    assert times_traced() == 1
    assert times_traced(**other) == 1
    assert [times_traced(), times_traced(**other)] == [0, 0]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (jax, "__version__", "0.0.1"),
        (jaxlib, "__version__", "0.0.1"),
        (flax, "__version__", "0.0.1"),
        (optax, "__version__", "0.0.1"),
        (np, "__version__", "0.0.1"),
        (platform, "python_version", lambda: "3.99.0"),
        (export, "default_export_platform", lambda: "cuda"),
    ],
    ids=["jax", "jaxlib", "flax", "optax", "numpy", "python", "platform"],
)
def test_another_version_traces(owner, name, other, folder, monkeypatch):
    assert times_traced() == 1
    monkeypatch.setattr(owner, name, other)
    assert times_traced() == 1
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("config", "name"),
    [(jax.config, "jax_threefry_partitionable"), (flax.config, "flax_fix_rng_separator")],
    ids=["jax", "flax"],
)
def test_another_setting_traces(config, name):
    assert times_traced() == 1
    before = getattr(config, name)
    config.update(name, not before)
    try:
        assert times_traced() == 1
    finally:
        config.update(name, before)
    assert times_traced() == 0


def test_another_structure_of_the_same_shapes_traces():
    """Two names of parameters that lie in the other order."""

    def named(first, second):
        params = {first: jnp.zeros(3), second: jnp.ones(3)}
        return TrainState(jnp.zeros((), jnp.int32), params, {}, TX.init(params))

    def step(state, inputs):
        zero = state.params["b"][0]
        return state, StepMetrics(zero, LossTerms(zero, zero, zero), zero, zero, zero)

    kept = keep_trace(step, SOURCES, "a step", pytest.fail)
    found = [jax.jit(kept)(named(*names), inputs_of())[1].loss for names in ("ab", "bc")]
    assert found == [1, 0]


def test_other_sources_trace(monkeypatch):
    assert times_traced() == 1
    monkeypatch.setattr(traces, "source_digest", lambda: "another")
    assert times_traced(sources="another") == 1


def test_sources_that_change_under_a_start_keep_nothing(folder):
    # What was imported is neither what lies there now nor, for certain, what lay there before.
    said = []
    assert times_traced(sources="before", say=said.append) == 1
    assert said == ["note: sources changed since this start: its traced step is not kept"]
    assert not folder.exists()


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    (folder / "part").mkdir(parents=True)
    (folder / "sources.py").write_text("x = 1\n")
    (folder / "part" / "code.py").write_text("y = 1\n")
    monkeypatch.setattr("yogo_jax.sources.__file__", str(folder / "sources.py"))
    return folder


def test_the_digest_is_that_of_every_source(package):
    seen = {source_digest()}
    for change in (
        lambda: (package / "part" / "code.py").write_text("y = 2\n"),
        lambda: (package / "part" / "code.py").rename(package / "part" / "renamed.py"),
        lambda: (package / "part" / "more.py").write_text(""),
        lambda: (package / "sources.py").unlink(),
    ):
        change()
        assert source_digest() not in seen
        seen.add(source_digest())
    (package / "notes.txt").write_text("no source")
    # As an editor locks a file: a link to nowhere.
    (package / ".#code.py").symlink_to("somebody@somewhere")
    assert source_digest() in seen


def test_sources_that_cannot_be_read_have_no_digest(package):
    (package / "gone.py").symlink_to("nowhere")
    assert source_digest() is None


def test_compiled_files_alone_have_no_digest(package):
    for path in package.rglob("*.py"):
        path.unlink()
    assert source_digest() is None


def test_the_command_looks_at_the_sources_before_it_imports_others():
    script = "import sys, yogo_jax.train; print(*(m for m in sys.modules if 'yogo_jax' in m))"
    done = run_command([sys.executable, "-c", script])
    # In the order in which their imports began, but for the command's own, which ends last.
    names = [each for each in done.stdout.split() if each.startswith("yogo_jax")]
    assert names[:2] == ["yogo_jax", "yogo_jax.sources"]
    assert "yogo_jax.detector.backbones" in names


def test_the_command_keeps_traces(definition, tmp_path):
    script = f"""
import json, sys
from yogo_jax import train
from yogo_jax.training import loop
def report(config, workdir, **given): print(json.dumps(given["sources"]))
loop.train_and_evaluate = report
train.main({train_command(definition, tmp_path / "run")[3:]!r})
"""
    done = run_command([sys.executable, "-c", script])
    assert json.loads(done.stdout) == SOURCES, done.stderr


@pytest.mark.parametrize("setting", ["jax_debug_nans", "jax_debug_infs", "jax_disable_jit"])
def test_nothing_is_kept_for_those_who_look_for_a_mistake(folder, setting):
    jax.config.update(setting, True)
    try:
        assert times_traced() == 1
    finally:
        jax.config.update(setting, False)
    assert not folder.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:20], lambda data: data[:-1], lambda data: data + b"\0"],
    ids=["empty", "no digest", "cut", "longer"],
)
def test_a_damaged_file_is_made_anew(folder, damage):
    assert times_traced() == 1
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert times_traced() == 1
    assert times_traced() == 0


def test_a_bit_that_flips_is_noticed(folder):
    assert times_traced() == 1
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert times_traced() == 1


def test_a_folder_that_cannot_be_written_is_told(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    said = []
    assert times_traced(say=said.append) == 1
    (line,) = said
    assert str(folder) in line
    assert "YOGO_JAX_CACHE moves the folder" in line


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (traces, "cache_folder", RuntimeError("Could not determine home directory.")),
        (export.Exported, "serialize", ImportError("No module named 'flatbuffers'")),
        (export.Exported, "serialize", ValueError("Cannot serialize code with custom calls")),
    ],
    ids=["no home", "no module", "an operation that is not written"],
)
def test_what_cannot_be_kept_is_told_and_traced(folder, monkeypatch, owner, name, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(owner, name, fail)
    said, step = [], Step()
    found = jax.jit(keep_trace(step, SOURCES, "a step", said.append))(a_state(), inputs_of())
    assert said == [f"note: the traced step is not kept: {error}"]
    assert found[0].step == 1
    assert not folder.exists()


def test_the_strongest_recipe_can_be_kept_for_gpus(folder, monkeypatch):
    # Which of their custom calls may be written is JAX's to say; a lowering for them needs none.
    values = importlib.import_module("configs.strong").get_config().to_dict()
    config = from_mapping(values)
    spec = ModelSpec(
        architecture=config.model.name,
        class_names=("a", "b"),
        image_hw=(64, 96),
        anchor_wh=(0.1, 0.1),
        rgb=False,
        normalize_images=False,
    )
    schedule = learning_rate_schedule(config.optim, 10)
    tx = make_optimizer(config.optim, schedule)
    step = make_train_step(
        spec,
        tx,
        schedule,
        loss=config.loss.for_data([1, 1], 1),
        augment=config.augment,
        seed=0,
        ema_decay=config.optim.ema_decay,
        composed_steps=5,
    )
    batch = {
        "image": jax.ShapeDtypeStruct((2, 64, 96, 1), np.uint8),
        "boxes_cxcywh": jax.ShapeDtypeStruct((2, 5, 4), np.float32),
        "class_ids": jax.ShapeDtypeStruct((2, 5), np.int32),
        "valid": jax.ShapeDtypeStruct((2, 5), bool),
        "image_valid": jax.ShapeDtypeStruct((2,), bool),
    }

    for_gpus = functools.partial(export.export, platforms=["cuda"])
    monkeypatch.setattr(export, "export", for_gpus)
    state = create_state(spec, tx, seed=0, averages=True)
    jax.jit(keep_trace(step, SOURCES, "strong", pytest.fail)).trace(state, batch)
    (path,) = folder.iterdir()
    # After its digest.
    assert export.deserialize(bytearray(path.read_bytes()[32:])).platforms == ("cuda",)


class Cut(Exception):
    """Ends a run where its step would be compiled."""


def cut(*_):
    raise Cut


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    path = write_dataset(tmp_path_factory.mktemp("data"), images=8)
    add_thumbnails(path)
    return path


@pytest.fixture(scope="module")
def plain_run(definition, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "test", lambda *_: {})
        train_and_evaluate(tiny_config(definition), workdir)
    return workdir


@pytest.fixture
def no_test(monkeypatch):
    """Nothing of the training is in it, and its page takes seconds."""
    monkeypatch.setattr(run.Run, "test", lambda *_: {})


def step_that_is_not_traced(*_, **__):
    return pytest.fail


def test_a_run_with_a_kept_trace_is_the_same_run(
    plain_run, definition, tmp_path, monkeypatch, folder, no_test
):
    config = tiny_config(definition)
    workdirs = [plain_run, tmp_path / "first", tmp_path / "second"]
    train_and_evaluate(config, workdirs[1], sources=SOURCES)
    monkeypatch.setattr(setup, "make_train_step", step_that_is_not_traced)
    train_and_evaluate(config, workdirs[2], sources=SOURCES)
    assert len(list(folder.iterdir())) == 1
    assert_same_runs(*workdirs[1:], steps=2)
    # Written otherwise for the compiler; as users compile it, see `make acceptance`.
    assert logged_losses(plain_run) == pytest.approx(logged_losses(workdirs[1]), rel=1e-4)


def test_several_steps_a_call_are_kept_too(definition, tmp_path, monkeypatch, no_test):
    config = tiny_config(definition, data__cache="device", train__epochs=1)
    train_and_evaluate(config, tmp_path / "first", sources=SOURCES)
    monkeypatch.setattr(setup, "make_train_step", step_that_is_not_traced)
    train_and_evaluate(config, tmp_path / "second", sources=SOURCES)
    assert_same_runs(tmp_path / "first", tmp_path / "second", steps=1)


def made_of(monkeypatch, config, workdir):
    """What a run would keep its step under; None if it would not keep it."""
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(run, "keep_trace", lambda *given: kept.append(repr(given[2])))
        patch.setattr(run, "compile_train_step", cut)
        with pytest.raises(Cut):
            train_and_evaluate(config, workdir, sources=SOURCES)
    return kept[0] if kept else None


@pytest.mark.parametrize(
    "fields",
    [{"augment__thumbnails": 0.5}, {"train__teacher": "plain", "loss__imitation": 0.5}],
    ids=["thumbnails", "a teacher"],
)
def test_images_and_weights_from_elsewhere_are_not_kept(
    plain_run, definition, tmp_path, monkeypatch, fields
):
    if "train__teacher" in fields:
        fields = {**fields, "train__teacher": str(plain_run)}
    assert made_of(monkeypatch, tiny_config(definition, **fields), tmp_path) is None


def test_steps_on_several_devices_are_not_kept(definition, tmp_path, monkeypatch):
    class Two(Devices):
        def __init__(self):
            super().__init__()
            self.count = 2

    monkeypatch.setattr(loop, "Devices", Two)
    assert made_of(monkeypatch, tiny_config(definition), tmp_path) is None


def test_every_run_has_a_step_of_its_own(definition, tmp_path, monkeypatch):
    configs = {
        "first": tiny_config(definition),
        "another seed": tiny_config(definition, seed=1),
        "another rate": tiny_config(definition, optim__learning_rate=0.1),
        "more epochs": tiny_config(definition, train__epochs=3),
        "on the device": tiny_config(definition, data__cache="device"),
        # Another anchor, found in the data.
        "larger cells": tiny_config(write_dataset(tmp_path / "larger", images=8, seed=1)),
        # Other steps of an epoch.
        "more images": tiny_config(write_dataset(tmp_path / "more", images=30)),
    }
    found = {
        name: made_of(monkeypatch, config, tmp_path / name) for name, config in configs.items()
    }
    assert None not in found.values()
    assert len(set(found.values())) == len(configs)
    # What changes nothing of the step changes nothing here.
    same = tiny_config(
        definition, data__workers=1, train__max_hours=9.0, train__checkpoint_every_minutes=0.1
    )
    assert made_of(monkeypatch, same, tmp_path / "same") == found["first"]
