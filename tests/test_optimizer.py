"""Schedule, clamps, frozen parameters and moving averages, against what their formulae say."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from drawn_models import make_spec
from yogo_jax.checkpoint.store import create_state, moving_average
from yogo_jax.config.schema import OptimConfig
from yogo_jax.errors import UserError
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer


def optim_of(**fields) -> OptimConfig:
    return OptimConfig(
        **{
            "learning_rate": 0.01,
            "lr_decay_factor": 10.0,
            "weight_decay": 0.0,
            "clip_value": 1e9,
            **fields,
        }
    )


def test_the_warm_up_rises_and_the_cosine_falls():
    schedule = learning_rate_schedule(optim_of(warmup_epochs=2.0), 100, steps_per_epoch=10)
    for step in range(101):
        if step < 20:
            expected = 0.01 * step / 20
        else:
            expected = 0.001 + 0.009 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_without_a_warm_up_the_schedule_is_the_originals():
    plain = optax.cosine_decay_schedule(0.01, 50, alpha=0.1)
    schedule = learning_rate_schedule(optim_of(), 50, steps_per_epoch=10)
    assert [float(schedule(step)) for step in range(51)] == [
        float(plain(step)) for step in range(51)
    ]


def test_a_warm_up_longer_than_the_run_ends_with_it():
    schedule = learning_rate_schedule(optim_of(warmup_epochs=9.0), 4, steps_per_epoch=2)
    assert [float(schedule(step)) for step in range(4)] == pytest.approx(
        [0, 0.01 / 3, 0.02 / 3, 0.01]
    )


PARAMS = {
    "block_0": {"conv": {"kernel": jnp.ones((3, 3, 1, 2))}, "norm": {"scale": jnp.ones(2)}},
    "block_10": {"conv": {"kernel": jnp.ones((3, 3, 2, 2))}},
    "head": {"kernel": jnp.ones((1, 1, 2, 6))},
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ((), set()),
        (("block_0",), {"block_0/conv/kernel", "block_0/norm/scale"}),
        (("block_*/conv",), {"block_0/conv/kernel", "block_10/conv/kernel"}),
        (("head", "*/norm/scale"), {"head/kernel", "block_0/norm/scale"}),
    ],
)
def test_frozen_parameters_stay(patterns, frozen, name):
    # Decay would move them as well.
    optim = optim_of(name=name, freeze=patterns, weight_decay=0.1)
    tx = make_optimizer(optim, optax.constant_schedule(3e-4))
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    still = {
        "/".join(part.key for part in path)
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if not np.any(update)
    }
    assert still == frozen


def test_a_pattern_that_names_nothing_is_refused():
    tx = make_optimizer(optim_of(freeze=("block_7",)), optax.constant_schedule(3e-4))
    with pytest.raises(UserError, match=r"'block_7' names no parameter; there are block_0, block"):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("clip_value", "clip_norm", "seen"),
    [
        (3.0, 1.0, np.asarray([3.0, 3.0]) / np.sqrt(18)),
        (3.0, 0.0, np.asarray([3.0, 3.0])),
        (0.0, 1.0, np.asarray([30.0, 4.0]) / np.sqrt(916)),
        (0.0, 0.0, np.asarray([30.0, 4.0])),
    ],
)
def test_the_norm_is_clipped_after_the_elements_and_0_is_off(clip_value, clip_norm, seen):
    # Without momentum: the first update of Adam is the sign alone, so its moment is looked at.
    optim = optim_of(clip_value=clip_value, clip_norm=clip_norm)
    tx = make_optimizer(optim, optax.constant_schedule(3e-4))
    params = {"w": jnp.zeros(2)}
    _, state = tx.update({"w": jnp.asarray([30.0, 4.0])}, tx.init(params), params)
    (adam,) = filter(_has_moment, jax.tree.leaves(state, is_leaf=_has_moment))
    np.testing.assert_allclose(adam.mu["w"], 0.1 * seen, rtol=1e-5)


def _has_moment(each) -> bool:
    return isinstance(each, optax.ScaleByAdamState)


def _as_matrix(kernel) -> np.ndarray:
    """A kernel [... inputs outputs] as [inputs at all positions, outputs]."""
    return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("shape", [(3, 3, 1, 16), (3, 3, 8, 16), (1, 1, 4, 16), (8, 16)])
def test_muon_steps_kernels_along_all_directions_of_the_gradient_alike(shape):
    rng = np.random.default_rng(0)
    params = {"block_0": {"kernel": jnp.zeros(shape)}}
    grads = {"block_0": {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}}
    tx = make_optimizer(optim_of(name="muon"), optax.constant_schedule(0.01))
    updates, _ = tx.update(grads, tx.init(params), params)
    # From the singular value decomposition, which the optimizer approximates by a polynomial.
    left, values, right = np.linalg.svd(_as_matrix(grads["block_0"]["kernel"]), full_matrices=False)
    inputs, outputs = math.prod(shape[:-1]), shape[-1]
    scale = -0.01 * 0.2 * math.sqrt(max(inputs, outputs))
    along = left.T @ _as_matrix(updates["block_0"]["kernel"]) @ right.T / scale
    np.testing.assert_allclose(along, np.diag(np.diag(along)), atol=1e-3)
    assert values.max() / values.min() > 1.5
    assert 0.6 < np.diag(along).min() <= np.diag(along).max() < 1.3
    rms = math.sqrt(np.mean(np.square(updates["block_0"]["kernel"])))
    assert rms == pytest.approx(0.01 * 0.2, rel=0.3)


def test_beside_muon_the_rest_is_nadamws():
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda each: jnp.asarray(rng.normal(size=each.shape)), PARAMS)
    updates = []
    for tx in (
        optax.nadamw(0.01, weight_decay=0.1),
        make_optimizer(optim_of(name="muon", weight_decay=0.1), optax.constant_schedule(0.01)),
    ):
        update, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
        updates.append(update)
    same = jax.tree.map(lambda *each: bool(np.allclose(*each, rtol=1e-4)), *updates)
    assert same == {
        "block_0": {"conv": {"kernel": False}, "norm": {"scale": True}},
        "block_10": {"conv": {"kernel": False}},
        "head": {"kernel": True},
    }


@pytest.mark.parametrize(
    ("architecture", "with_muon", "others"),
    [
        ("yogo_n", 7, {"head"}),
        # The first layer, three that halve the grid, and two dense ones in each of 36 units.
        ("convnext_small", 4 + 2 * 36, {"depthwise", "head", "upsample"}),
    ],
)
def test_kernels_that_muon_takes(architecture, with_muon, others):
    spec = make_spec(architecture)
    params = jax.eval_shape(functools.partial(create_state, spec, optax.identity(), seed=0)).params
    tx = make_optimizer(optim_of(name="muon"), optax.constant_schedule(0.01))
    states = jax.tree.leaves(jax.eval_shape(tx.init, params), is_leaf=_is_muon)
    (muon,) = filter(_is_muon, states)
    taken = {path for path, _ in jax.tree.leaves_with_path(muon.mu)}
    kernels = [path for path, _ in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(taken) == with_muon
    assert {path[-2].key for path in kernels if path not in taken} == others


def _is_muon(each) -> bool:
    return isinstance(each, contrib.MuonState)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_all_parameters_decay(name):
    tx = make_optimizer(optim_of(name=name, weight_decay=0.1), optax.constant_schedule(0.01))
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.01 * 0.1, rtol=1e-5)


def test_young_averages_forget_faster():
    averaged, expected = {"w": jnp.asarray(5.0)}, 5.0
    for step in range(40):
        latest, now = float(step % 3), jnp.asarray(step)
        averaged = moving_average(averaged, {"w": jnp.asarray(latest)}, now, decay=0.7)
        kept = min(0.7, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * latest
        assert float(averaged["w"]) == pytest.approx(expected, rel=1e-5)
