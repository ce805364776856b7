"""Memory of the training step: what is free, what it takes, and what is said if it is too much."""

import dataclasses
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import psutil
import pytest

from runs import tiny_config
from tiny_data import write_dataset
from yogo_jax.checkpoint.store import create_state, find_checkpoint, read_metadata, rewrite_metadata
from yogo_jax.config.schema import AugmentConfig, LossConfig
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.parallel import Devices
from yogo_jax.training import compilation
from yogo_jax.training.compilation import (
    CPU_OPTIONS,
    TooLittleMemoryError,
    bytes_needed,
    compile_train_step,
    free_in_cgroups,
    free_on_host,
    jit_train_step,
)
from yogo_jax.training.step import make_train_step
from yogo_jax.training.trainer import train_and_evaluate


# What is free --------------------------------------------------------------------------------


def write_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_a_cgroup_of_version_2_and_those_around_it(tmp_path):
    cached = "anon 5\ninactive_file 20\nactive_file 10\n"
    write_group(tmp_path, memory__max="max", memory__current=500, memory__stat=cached)
    write_group(tmp_path / "job", memory__max=1000, memory__current=400, memory__stat=cached)
    write_group(tmp_path / "job/step", memory__max=900, memory__current=300, memory__stat=cached)
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    # Cached files are given up for a program that asks.
    assert list(free_in_cgroups(tmp_path, own)) == [630, 630]


def test_a_cgroup_of_version_1(tmp_path):
    cached = "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 10"
    root = {"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": 100}
    group = {"memory__limit_in_bytes": 3000, "memory__usage_in_bytes": 1000}
    write_group(tmp_path / "memory", **root, memory__stat=cached)
    write_group(tmp_path / "memory/docker/abc", **group, memory__stat=cached)
    own = tmp_path / "own"
    own.write_text("9:name=systemd:/\n5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    free = list(free_in_cgroups(tmp_path, own))
    assert free == [2030, 2**63 - 4096 - 100 + 30]


@pytest.mark.parametrize("own", ["", "0::/\n", "4:memory:/gone\n"])
def test_no_cgroup_with_a_limit(tmp_path, own):
    (tmp_path / "own").write_text(own)
    assert list(free_in_cgroups(tmp_path, tmp_path / "own")) == []
    assert list(free_in_cgroups(tmp_path, tmp_path / "not there")) == []


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_count(name):
    script = (
        "import resource; from yogo_jax.training.compilation import free_on_host; "
        f"resource.setrlimit(resource.{name}, (8 << 30,) * 2); print(free_on_host())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert 0 < int(result.stdout) < 8 << 30


def test_the_machine_has_no_more_than_it_has():
    assert 0 < free_on_host() <= psutil.virtual_memory().total


# What a step takes ---------------------------------------------------------------------------


BATCH = 16
SPEC = ModelSpec(
    architecture="quarter_filters",
    class_names=("healthy", "ring"),
    image_hw=(192, 256),
    anchor_wh=(0.1, 0.1),
    rgb=False,
    normalize_images=True,
)


def step_of(spec):
    """Of a model: the step by whether it is rematerialised, a state, and shapes of a batch."""
    loss = LossConfig(
        no_object_weight=0.5, iou_weight=5.0, classify_weight=1.0, label_smoothing=0.01
    )
    tx, schedule = optax.sgd(0.1), optax.constant_schedule(0.1)
    state = create_state(spec, tx, seed=0)

    def make(rematerialize):
        return make_train_step(
            spec,
            tx,
            schedule,
            loss=loss,
            augment=AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5),
            seed=0,
            rematerialize=rematerialize,
        )

    def shapes_of(batch_size):
        shapes = {
            "image": ((*spec.image_hw, spec.channels), np.uint8),
            "boxes_cxcywh": ((8, 4), np.float32),
            "class_ids": ((8,), np.int32),
            "valid": ((8,), bool),
            "image_valid": ((), bool),
        }
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=Devices().by_image)
            for name, (shape, dtype) in shapes.items()
        }

    return make, state, shapes_of


def needed_by(step, batch_size, *, rematerialize):
    """Bytes that a step of a model takes."""
    make, state, shapes_of = step
    jitted = jit_train_step(make(rematerialize), Devices())
    requests = jax.ShapeDtypeStruct((1, 2), bool)
    lowered = jitted.lower(state, shapes_of(batch_size), requests)
    return bytes_needed(lowered.compile(compiler_options=CPU_OPTIONS if rematerialize else None))


@pytest.fixture(scope="module")
def compiled():
    """The step of a model, and the bytes that it takes by whether it is rematerialised."""
    step = step_of(SPEC)
    return step, {each: needed_by(step, BATCH, rematerialize=each) for each in (False, True)}


def fitted(compiled, monkeypatch, room, before=None):
    """Bytes of the step that was chosen, whether it computes features twice, and what was said."""
    lines = []
    monkeypatch.setattr(compilation, "bytes_for_step", lambda devices: room)
    make, state, shapes_of = compiled[0]
    step, rematerialized = compile_train_step(
        make,
        state,
        shapes_of(BATCH),
        Devices(),
        batch_size=BATCH,
        image_hw=SPEC.image_hw,
        rematerialized=before,
        say=lines.append,
    )
    return bytes_needed(step), rematerialized, lines


@pytest.mark.slow
def test_a_step_that_fits_is_compiled_as_it_is(compiled, monkeypatch):
    _, needed = compiled
    assert fitted(compiled, monkeypatch, needed[False]) == (needed[False], False, [])


@pytest.mark.smoke
def test_a_step_that_does_not_fit_takes_less(compiled, monkeypatch):
    _, needed = compiled
    # Compiled with few optimizations, as most tests are; as users do it is less than half.
    assert needed[True] < 0.8 * needed[False]
    taken, rematerialized, lines = fitted(compiled, monkeypatch, needed[False] - 1)
    assert (taken, rematerialized, len(lines)) == (needed[True], True, 1)
    assert "computes some features twice" in lines[0]


def test_a_run_stays_with_the_step_it_had(compiled, monkeypatch):
    _, needed = compiled
    assert fitted(compiled, monkeypatch, 2**40, before=True)[:2] == (needed[True], True)
    assert fitted(compiled, monkeypatch, 2**40, before=False)[:2] == (needed[False], False)
    _, rematerialized, lines = fitted(compiled, monkeypatch, needed[True], before=False)
    assert rematerialized
    assert "not bit for bit" in lines[-1]


@pytest.mark.slow
def test_a_step_that_does_not_fit_either_way_names_what_does(compiled, monkeypatch):
    step, needed = compiled
    room = needed[True] // 2
    with pytest.raises(UserError) as caught:
        fitted(compiled, monkeypatch, room)
    message = str(caught.value)
    assert "\n" not in message
    assert "16 images of 192x256 px takes" in message
    found = re.search(r"batch_size=(\d+) \(the largest that fits\).*image_hw=(\d+),(\d+)", message)
    batch, *image_hw = map(int, found.groups())
    assert 4 <= batch < BATCH
    assert needed_by(step, batch, rematerialize=True) <= room
    smaller = step_of(dataclasses.replace(SPEC, image_hw=tuple(image_hw)))
    assert needed_by(smaller, BATCH, rematerialize=True) <= room


def test_memory_for_no_image_at_all(compiled, monkeypatch):
    with pytest.raises(TooLittleMemoryError) as caught:
        fitted(compiled, monkeypatch, 1000)
    message = str(caught.value)
    assert message.endswith("0 MiB are free for it: free memory or take a machine with more")


# In a run ------------------------------------------------------------------------------------


def test_a_run_without_enough_memory_is_refused_before_its_first_step(tmp_path, monkeypatch):
    definition = write_dataset(tmp_path / "data", images=8)
    monkeypatch.setattr(compilation, "free_bytes", lambda devices: 2**20)
    with pytest.raises(TooLittleMemoryError, match=r"takes .* MiB of memory"):
        train_and_evaluate(tiny_config(definition), tmp_path / "run")
    monkeypatch.undo()
    # The same workdir takes the run that fits.
    fits = tiny_config(definition, train__batch_size=2, train__epochs=1)
    train_and_evaluate(fits, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_computes_features_twice_learns_the_same(tmp_path, monkeypatch):
    definition = write_dataset(tmp_path / "data", images=8)
    plain = train_and_evaluate(tiny_config(definition), tmp_path / "plain")
    room = iter([0])
    monkeypatch.setattr(compilation, "bytes_for_step", lambda devices: next(room, 2**40))
    twice = train_and_evaluate(tiny_config(definition), tmp_path / "twice")
    assert "computes some features twice" in (tmp_path / "twice" / "train.log").read_text()
    assert twice["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-4)
    for name, rematerialized in (("plain", False), ("twice", True)):
        metadata = read_metadata(find_checkpoint(tmp_path / name))
        assert metadata.rematerialized == rematerialized
        assert ("rematerialized" in metadata.to_dict()) == rematerialized


@pytest.mark.slow
def test_a_validation_that_is_made_up_for_keeps_what_the_checkpoint_says(tmp_path, monkeypatch):
    config = tiny_config(write_dataset(tmp_path / "data", images=8), train__epochs=1)
    room = iter([0])
    monkeypatch.setattr(compilation, "bytes_for_step", lambda devices: next(room, 2**40))
    train_and_evaluate(config, tmp_path / "run")
    folder = find_checkpoint(tmp_path / "run")
    # As a run that was stopped in its last validation leaves it.
    rewrite_metadata(folder, dataclasses.replace(read_metadata(folder), validation=None))
    train_and_evaluate(config, tmp_path / "run")
    metadata = read_metadata(folder)
    assert metadata.validation is not None
    assert metadata.rematerialized
