"""One training step: what padding, flips, dropout, jit and other architectures do to it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.store import CheckpointStore, create_state, find_checkpoint, restore_state
from yogo_jax.config.schema import AugmentConfig, LossConfig
from yogo_jax.detector import architectures
from yogo_jax.detector.architectures import ConvBackbone, ConvBlock, ConvNextBackbone
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.training.step import make_train_step


# Small, to compile fast. The second drops channels out, the third keeps no statistics.
BACKBONES = {
    "tiny": ConvBackbone(
        blocks=(
            ConvBlock(channels=4, stride=2, bias=False, norm=True),
            ConvBlock(channels=8, stride=2, norm=True),
        )
    ),
    "tiny_dropout": ConvBackbone(
        blocks=(ConvBlock(channels=4, stride=2, bias=False, norm=True, dropout=0.3),)
    ),
    "tiny_convnext": ConvNextBackbone(depths=(1, 1), channels=(8, 16)),
}
SPEC = ModelSpec(
    architecture="tiny",
    class_names=("healthy", "ring"),
    image_hw=(32, 32),
    anchor_wh=(0.2, 0.25),
    rgb=True,
    normalize_images=True,
)
DROPOUT_SPEC = dataclasses.replace(SPEC, architecture="tiny_dropout")
LOSS = LossConfig(no_object_weight=0.5, iou_weight=5.0, classify_weight=1.0, label_smoothing=0.01)
# Updates in proportion to the gradients. Adam would scale the rounding noise of a gradient that is
# truly 0 (that of a bias before a batch norm) up to full steps.
TX = optax.sgd(0.001, momentum=0.9)
SCHEDULE = optax.linear_schedule(1.0, 0.0, 10)


@pytest.fixture(scope="module", autouse=True)
def _tiny_backbones():
    with pytest.MonkeyPatch.context() as patch:
        for name, backbone in BACKBONES.items():
            patch.setitem(architectures.BACKBONES, name, backbone)
        yield


@functools.cache
def fresh_state(spec):
    return create_state(spec, TX, seed=0)


@pytest.fixture
def state():
    return fresh_state(SPEC)


def batch_of(count):
    """Noise of a brightness of its own in each image, which has 1, 2 or 3 boxes, then 1 again."""
    rng = np.random.default_rng(0)
    ceiling = 60 + 40 * (np.arange(count) % 5).reshape(-1, 1, 1, 1)
    centres = rng.uniform(0.15, 0.85, (count, 3, 2))
    sizes = rng.uniform(0.1, 0.3, (count, 3, 2))
    valid = np.arange(3) <= (np.arange(count) % 3).reshape(-1, 1)
    boxes = np.where(valid[..., None], np.concatenate([centres, sizes], -1), 0)
    return {
        "image": rng.integers(0, ceiling, (count, 32, 32, 3)).astype(np.uint8),
        "boxes_cxcywh": boxes.astype(np.float32),
        "class_ids": np.where(valid, rng.integers(0, 2, (count, 3)), 0).astype(np.int32),
        "valid": valid,
        "image_valid": np.ones(count, bool),
        "record_index": np.arange(count, dtype=np.int32),
    }


def padded(batch, at):
    """The batch with images of nonsense put in before the indices `at`."""
    nonsense = {
        "image": np.full((32, 32, 1), 255, np.uint8) * (np.indices((32, 32)).sum(0)[..., None] % 2),
        "boxes_cxcywh": np.asarray([(np.nan, 2, -1, 0), (0.5, 0.5, 1e30, 1), (-7, 9, 0, np.inf)]),
        "class_ids": np.asarray((-3, 1, 99)),
        "valid": False,
        "image_valid": False,
        "record_index": -1,
    }
    return {name: np.insert(array, at, nonsense[name], axis=0) for name, array in batch.items()}


def step_of(spec=SPEC, *, horizontal=0.0, seed=0):
    return make_train_step(
        spec,
        TX,
        SCHEDULE,
        loss=LOSS,
        augment=AugmentConfig(horizontal_flip=horizontal, vertical_flip=0.0),
        seed=seed,
    )


def jitted_step_of(spec=SPEC, *, horizontal=0.0, seed=0):
    """One compilation for all tests that ask for the same."""
    return _jitted_step_of(spec, horizontal, seed)


@functools.cache
def _jitted_step_of(spec, horizontal, seed):
    return jax.jit(step_of(spec, horizontal=horizontal, seed=seed))


def assert_close_trees(found, expected, *, rtol=1e-5):
    """Leaf by leaf, with an absolute tolerance that is small beside the largest of all values."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * min(largest, 1.0))


def assert_equal_trees(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close_states(found, expected):
    for field in ("step", "params", "batch_stats", "opt_state"):
        assert_close_trees(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize(
    "at", [pytest.param([3, 3], id="at the end"), pytest.param([0, 2], id="in between")]
)
def test_padding_images_change_nothing(state, at):
    batch = batch_of(3)
    expected_state, expected = jitted_step_of()(state, batch)
    found_state, found = jitted_step_of()(state, padded(batch, at))
    assert float(expected.loss) == pytest.approx(float(expected.terms.total()))
    assert min(float(term) for term in expected.terms) > 0.01
    changed = jax.tree.map(lambda new, old: (new != old).any(), expected_state, state)
    assert all(jax.tree.leaves(changed))
    assert_close_trees(found, expected)
    assert_close_states(found_state, expected_state)


def test_the_metrics_are_those_before_the_update(state):
    at_step_3 = state.replace(step=jnp.asarray(3, jnp.int32))
    new_state, metrics = jitted_step_of()(at_step_3, batch_of(3))
    assert int(new_state.step) == 4
    assert float(metrics.learning_rate) == pytest.approx(0.7)
    # The first momentum is the gradient itself.
    assert float(metrics.grad_norm) == pytest.approx(float(optax.tree.norm(new_state.opt_state)))


def test_a_batch_of_padding_alone_is_zeros_and_finite(state):
    batch = padded(batch_of(2), [0, 0, 0])
    batch = {name: array[:3] for name, array in batch.items()}
    new_state, metrics = jitted_step_of()(state, batch)
    assert float(metrics.loss) == 0
    assert [float(term) for term in metrics.terms] == [0, 0, 0]
    assert float(metrics.grad_norm) == 0
    assert int(new_state.step) == 1
    assert_equal_trees(new_state.params, state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new_state))


def losses_of_steps(run, state, steps, batch):
    """Losses that the same weights and images have in several steps."""
    states = (state.replace(step=jnp.asarray(step, jnp.int32)) for step in steps)
    return [float(run(each, batch)[1].loss) for each in states]


@pytest.mark.parametrize(
    ("spec", "flip"),
    [pytest.param(SPEC, 0.5, id="flips"), pytest.param(DROPOUT_SPEC, 0.0, id="dropout")],
)
def test_draws_follow_from_seed_and_step(spec, flip):
    state, batch = fresh_state(spec), batch_of(3)
    losses = losses_of_steps(jitted_step_of(spec, horizontal=flip), state, range(4), batch)
    assert len(set(losses)) > 1
    # As in a process of its own that continues the run.
    newly_made = jax.jit(step_of(spec, horizontal=flip))
    assert losses_of_steps(newly_made, state, (3, 1), batch) == [losses[3], losses[1]]
    of_another_seed = jitted_step_of(spec, horizontal=flip, seed=1)
    assert losses_of_steps(of_another_seed, state, range(4), batch) != losses


def left_right(batch, flipped):
    """The batch with the images where `flipped` is True mirrored by hand."""
    boxes = batch["boxes_cxcywh"] * (-1, 1, 1, 1) + (1, 0, 0, 0)
    image = batch["image"][:, :, ::-1]
    flipped = np.reshape(flipped, (-1, 1, 1, 1))
    return batch | {
        "image": np.where(flipped, image, batch["image"]),
        "boxes_cxcywh": np.where(flipped[..., 0], boxes, batch["boxes_cxcywh"]).astype(np.float32),
    }


def test_flips_take_boxes_along_and_each_image_tosses_its_own_coin(state):
    batch = batch_of(3)
    coins = list(itertools.product((False, True), repeat=3))
    by_hand = [jitted_step_of()(state, left_right(batch, each))[1].loss for each in coins]
    by_hand = np.asarray(by_hand)
    assert np.diff(np.sort(by_hand)).min() > 1e-3
    seen = set()
    for loss in losses_of_steps(jitted_step_of(horizontal=0.5), state, range(8), batch):
        (match,) = np.flatnonzero(np.isclose(by_hand, loss, rtol=1e-5))
        seen.add(coins[match])
    assert any(len(set(each)) == 2 for each in seen)


def test_without_flips_and_dropout_nothing_is_drawn(state):
    losses = losses_of_steps(jitted_step_of(), state, range(3), batch_of(3))
    assert len(set(losses)) == 1


@pytest.mark.slow
def test_the_step_is_a_pure_function():
    state = fresh_state(DROPOUT_SPEC)
    batch = jax.tree.map(jnp.asarray, padded(batch_of(2), [2]))
    before = jax.tree.map(np.array, (jax.tree.leaves(state), batch))
    jitted_state, jitted = jitted_step_of(DROPOUT_SPEC)(state, batch)
    plain_state, plain = step_of(DROPOUT_SPEC)(state, batch)
    assert_close_trees(plain, jitted)
    assert_close_states(plain_state, jitted_state)
    assert_equal_trees((jax.tree.leaves(state), batch), before)


def train(spec, batch, *, steps):
    """The state after some steps on one batch, and the losses before each."""
    state, losses = fresh_state(spec), []
    for _ in range(steps):
        state, metrics = jitted_step_of(spec)(state, batch)
        losses.append(float(metrics.loss))
    return state, losses


def test_rgb_images_train():
    batch = batch_of(3)
    state, losses = train(SPEC, batch, steps=4)
    assert state.params["block_0"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    assert int(state.step) == 4
    assert losses[-1] < losses[0]
    # All three channels are looked at.
    _, metrics = jitted_step_of()(state, batch)
    for channel in range(3):
        image = batch["image"].copy()
        image[..., channel] = 0
        _, without = jitted_step_of()(state, batch | {"image": image})
        assert float(without.loss) != pytest.approx(float(metrics.loss), rel=1e-4)


@pytest.mark.slow
def test_a_network_without_batch_statistics_is_trained_saved_and_restored(tmp_path):
    spec = dataclasses.replace(SPEC, architecture="tiny_convnext")
    batch = batch_of(3)
    state, losses = train(spec, batch, steps=3)
    assert jax.tree.leaves(state.batch_stats) == []
    assert losses[-1] < losses[0]

    metadata = Metadata(
        model=spec,
        config={},
        step=3,
        epoch=1,
        position=9,
        data_fingerprint="f",
        validation={"loss": losses[-1]},
        git_revision="g",
    )
    with CheckpointStore(tmp_path / "checkpoints") as store:
        store.save(state, metadata)
    restored = restore_state(find_checkpoint(tmp_path), spec, TX)
    assert_equal_trees(restored, state)
    # It goes on as the saved one would.
    step = jitted_step_of(spec)
    assert_equal_trees(step(restored, batch), step(state, batch))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPEC, dataclasses.replace(SPEC, architecture="tiny_convnext")])
def test_half_precision_is_in_the_convolutions_alone(spec):
    batch = batch_of(8)
    state = fresh_state(spec)
    half = make_train_step(
        spec,
        TX,
        SCHEDULE,
        loss=LOSS,
        augment=AugmentConfig(horizontal_flip=0.0, vertical_flip=0.0),
        seed=0,
        compute_dtype="bfloat16",
    )
    jaxpr = str(jax.make_jaxpr(half)(state, batch))
    convolutions = [line for line in jaxpr.splitlines() if "conv_general_dilated" in line]
    assert convolutions
    assert all("f32" not in line.split("=")[0] for line in convolutions)
    ours, metrics = jax.jit(half)(state, batch)
    expected, expected_metrics = jitted_step_of(spec)(state, batch)
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert found.dtype == wanted.dtype
    for found, wanted in zip(metrics.terms, expected_metrics.terms, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0.02)
        assert found != wanted
    # Statistics over some thousand pixels: a sum in bfloat16 would be off by whole percents.
    for found, wanted in zip(
        jax.tree.leaves(ours.batch_stats), jax.tree.leaves(expected.batch_stats), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=5e-3 * np.abs(wanted).max())
