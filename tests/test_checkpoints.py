import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runs import tiny_config
from yogo_jax.checkpoint.metadata import FORMAT_VERSION, Decision, Metadata
from yogo_jax.checkpoint.store import (
    CheckpointStore,
    TrainState,
    committed_checkpoints,
    create_state,
    find_checkpoint,
    read_metadata,
    record_validation,
    restore_state,
    restore_variables,
)
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.reports.history import History
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer


SPEC = ModelSpec(
    architecture="quarter_filters",
    class_names=("healthy", "ring"),
    image_hw=(32, 32),
    anchor_wh=(0.1, 0.2),
    rgb=False,
    normalize_images=True,
)
CONFIG = tiny_config("d.yml")
TX = make_optimizer(CONFIG.optim, learning_rate_schedule(CONFIG.optim, 10))


@pytest.fixture(scope="module")
def state() -> TrainState:
    return create_state(SPEC, TX, seed=0)


def metadata(step: int, loss: float | None = None, keep_best: str = "loss") -> Metadata:
    return Metadata(
        model=SPEC,
        config=tiny_config("d.yml", train__keep_best=keep_best).to_dict(),
        step=step,
        epoch=0,
        position=4 * step,
        data_fingerprint="f",
        validation=None if loss is None else {"loss": loss},
        git_revision="g",
    )


def steps_in(workdir) -> list[int]:
    return [int(folder.name) for folder in committed_checkpoints(workdir / "checkpoints")]


def save(workdir, state, step, loss=None):
    with CheckpointStore(workdir / "checkpoints") as store:
        store.save(state.replace(step=jnp.asarray(step, jnp.int32)), metadata(step, loss))


@pytest.mark.smoke
def test_state_and_metadata_come_back_bit_for_bit(tmp_path, state):
    save(tmp_path, state, 7, loss=1.5)
    folder = find_checkpoint(tmp_path)
    assert read_metadata(folder) == metadata(7, 1.5)
    restored = restore_state(folder, SPEC, TX)
    assert int(restored.step) == 7
    for found, expected in zip(
        jax.tree.leaves(restored.replace(step=state.step)), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    variables = restore_variables(folder, SPEC)
    assert jax.tree.structure(variables) == jax.tree.structure(state.variables)
    # What a checkpoint is for: it is enough to predict with.
    images = jnp.zeros((1, 32, 32, 1), jnp.uint8)
    read_metadata(folder).model.predict(variables, images)


@pytest.mark.parametrize(
    ("losses", "kept", "best"),
    [
        pytest.param([3.0, 2.0, 1.0], [30], 30, id="ever better"),
        pytest.param([1.0, 2.0, 3.0], [10, 30], 10, id="ever worse"),
        pytest.param([2.0, 1.0, None, None], [20, 40], 20, id="saved by the clock"),
        pytest.param([None, None], [20], 20, id="never validated"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True], ids=["one process", "restarted each time"])
def test_the_best_and_the_latest_are_kept(tmp_path, state, losses, kept, best, restarted):
    if restarted:
        for index, loss in enumerate(losses):
            save(tmp_path, state, 10 * (index + 1), loss)
    else:
        with CheckpointStore(tmp_path / "checkpoints") as store:
            for index, loss in enumerate(losses):
                store.save(state, metadata(10 * (index + 1), loss))
    assert steps_in(tmp_path) == kept
    assert find_checkpoint(tmp_path).name == str(best)
    assert not (tmp_path / "checkpoints" / ".superseded").exists()


def test_a_validation_that_came_late_counts_for_the_best(tmp_path, state):
    save(tmp_path, state, 10)
    folder = tmp_path / "checkpoints" / "10"
    # The second time stands for a kill in the middle.
    for _ in range(2):
        record_validation(folder, metadata(10, 1.0))
    assert read_metadata(folder) == metadata(10, 1.0)
    for step in (20, 30):
        save(tmp_path, state, step, loss=2.0)
    assert steps_in(tmp_path) == [10, 30]
    assert find_checkpoint(tmp_path) == folder
    assert int(restore_state(folder, SPEC, TX).step) == 10


def test_later_steps_do_not_reach_into_a_checkpoint_being_written(tmp_path, state):
    scale = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    current = jax.tree.map(jnp.copy, state)
    expected = jax.device_get(state.params)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        store.save(current, metadata(1))
        for _ in range(5):
            current = scale(current)
        jax.block_until_ready(current)
    restored = restore_state(find_checkpoint(tmp_path), SPEC, TX)
    jax.tree.map(np.testing.assert_array_equal, restored.params, expected)


def test_unfinished_checkpoints_are_never_read(tmp_path, state):
    save(tmp_path, state, 5)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "9.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    (checkpoints / ".superseded" / "3" / "model").mkdir(parents=True)
    assert steps_in(tmp_path) == [5]
    assert find_checkpoint(tmp_path).name == "5"
    save(tmp_path, state, 9)
    assert steps_in(tmp_path) == [9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "found no such folder", id="missing"),
        pytest.param(lambda path: path.mkdir(), "found neither", id="empty folder"),
        pytest.param(lambda path: path.touch(), "found a file", id="file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, message):
    path = tmp_path / "somewhere"
    make(path)
    with pytest.raises(UserError, match=message):
        find_checkpoint(path)


def test_another_format_is_refused(tmp_path, state):
    save(tmp_path, state, 1)
    file = tmp_path / "checkpoints" / "1" / "metadata" / "metadata"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(
        UserError, match=f"checkpoint format {FORMAT_VERSION + 1}, but this version"
    ):
        read_metadata(tmp_path / "checkpoints" / "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"step": -1}, r"metadata\.step must be 0 or more, got -1$", id="range"),
        pytest.param({"step": "7"}, r"metadata\.step must be of type int, got '7'", id="type"),
        pytest.param({"stepp": 7}, r"metadata\.stepp is not a field .*mean 'step'", id="unknown"),
        pytest.param({"config": None}, r"metadata\.config must be of type dict", id="group"),
        pytest.param(
            {"model": {**SPEC.to_dict(), "image_hw": [0, 64]}},
            r"metadata\.model must be a model with .* above 0",
            id="model",
        ),
        pytest.param(
            {"model": {"rgb": False}},
            r"metadata\.model lacks anchor_wh, architecture",
            id="missing",
        ),
        pytest.param(
            {"model": {**SPEC.to_dict(), "anchor_wh": [0.1, "x"]}},
            r"metadata\.model\.anchor_wh\[1\] must be of type float",
            id="inner type",
        ),
    ],
)
def test_metadata_that_cannot_be_is_refused_by_file_and_field(change, message):
    values = {**metadata(7, 1.5).to_dict(), **change}
    with pytest.raises(UserError, match=rf"^runs/x: its metadata cannot be used: {message}"):
        Metadata.from_dict(json.loads(json.dumps(values)), Path("runs/x"))


def test_metadata_of_the_first_version_is_read():
    values = metadata(7, 1.5).to_dict()
    del values["source"]
    values["model"].pop("size_multiplier_wh")
    assert values["format_version"] == 1
    assert Metadata.from_dict(json.loads(json.dumps(values)), Path("a")) == metadata(7, 1.5)


def test_a_checkpoint_says_the_least_format_that_it_takes():
    plain = metadata(1).to_dict()
    assert plain["format_version"] == 1
    # As code before there was a temperature reads it.
    assert "class_temperature" not in plain["model"]
    warm = dataclasses.replace(metadata(1), model=dataclasses.replace(SPEC, class_temperature=1.5))
    assert warm.to_dict()["format_version"] == 2
    split = dataclasses.replace(metadata(1), split_is_usual=True)
    assert "split_is_usual" not in plain
    assert split.to_dict()["format_version"] == 3
    assert dataclasses.replace(warm, split_is_usual=True).to_dict()["format_version"] == 3
    counting = Decision(goal="count", class_thresholds=(0.5,) * len(SPEC.class_names))
    decided = dataclasses.replace(warm, split_is_usual=True, decision=counting)
    assert "decision" not in plain
    assert decided.to_dict()["format_version"] == 4
    assert decided.to_dict()["decision"].keys() == {"goal", "class_thresholds"}
    for each in (metadata(1), warm, split, decided):
        again = Metadata.from_dict(json.loads(json.dumps(each.to_dict())), Path("a"))
        assert again.to_dict() == each.to_dict()
        assert again.decision == each.decision
    assert again.thresholds == Thresholds.of_classes(counting.class_thresholds)
    assert metadata(1).thresholds == Thresholds()


DECISIONS = {
    "another number": ({"goal": "f1", "class_thresholds": [0.5]}, "must be thresholds of"),
    "no goal": ({"class_thresholds": [0.5]}, "metadata.decision lacks goal"),
    "unknown goal": ({"goal": "best", "class_thresholds": []}, "goal must be one of count, f1"),
    "zero": ({"goal": "f1", "class_thresholds": [0.0]}, "must be numbers above 0"),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decisions_that_are_none(case):
    decision, message = DECISIONS[case]
    values = {**metadata(1).to_dict(), "decision": decision}
    with pytest.raises(UserError, match=message):
        Metadata.from_dict(values, Path("a"))


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path, state):
    save(tmp_path, state, 1)
    wider = ModelSpec(**{**SPEC.to_dict(), "architecture": "half_filters"})
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        restore_variables(tmp_path / "checkpoints" / "1", wider)


def test_averages_are_the_model_and_the_run_goes_on_from_what_they_are_made_of(tmp_path, state):
    averaging = create_state(SPEC, TX, seed=0, averages=True)
    averaging = averaging.replace(params=jax.tree.map(lambda each: each + 1, averaging.params))
    save(tmp_path, averaging, 7, loss=1.5)
    folder = find_checkpoint(tmp_path)
    restored = restore_state(folder, SPEC, TX, averages=True)
    for part in ("params", "batch_stats", "opt_state", "averaged"):
        found, expected = getattr(restored, part), getattr(averaging, part)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    variables = restore_variables(folder, SPEC)
    for a, b in zip(
        jax.tree.leaves(variables["params"]), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_best_by_mean_ap_is_kept_and_found(tmp_path, state):
    scores = [(0.2, 1.0), (0.6, 3.0), (None, 0.5), (0.4, 2.0)]
    with CheckpointStore(tmp_path / "checkpoints", "mAP50") as store:
        for step, (score, loss) in enumerate(scores, start=1):
            of_step = metadata(step, keep_best="mAP50")
            of_step = dataclasses.replace(of_step, validation={"loss": loss, "mAP50": score})
            store.save(state.replace(step=jnp.asarray(step, jnp.int32)), of_step)
            store.wait()
        assert store.best_step == 2
    assert steps_in(tmp_path) == [2, 4]
    assert find_checkpoint(tmp_path).name == "2"


def test_of_equal_checkpoints_the_first_is_the_best(tmp_path, state):
    records = []
    with CheckpointStore(tmp_path / "checkpoints", "mAP50") as store:
        for step in (9, 10, 11):
            of_step = metadata(step, keep_best="mAP50")
            of_step = dataclasses.replace(of_step, validation={"loss": 2.0, "mAP50": 0.0})
            records.append({"kind": "validation", "step": step, "loss": 2.0, "mAP50": 0.0})
            store.save(state.replace(step=jnp.asarray(step, jnp.int32)), of_step)
            store.wait()
            assert store.best_step == 9
    assert steps_in(tmp_path) == [9, 11]
    assert find_checkpoint(tmp_path).name == "9"
    assert History("run", records, "mAP50").best["step"] == 9
