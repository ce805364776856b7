"""Schedule, clamps, frozen parameters and moving averages, against what their formulae say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yogo_jax.checkpoint.store import moving_average
from yogo_jax.config.schema import OptimConfig
from yogo_jax.errors import UserError
from yogo_jax.training.step import learning_rate_schedule, make_optimizer


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
    "block_0": {"conv": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}},
    "block_10": {"conv": {"kernel": jnp.ones((2, 2))}},
    "head": {"kernel": jnp.ones(2)},
}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ((), set()),
        (("block_0",), {"block_0/conv/kernel", "block_0/norm/scale"}),
        (("block_*/conv",), {"block_0/conv/kernel", "block_10/conv/kernel"}),
        (("head", "*/norm/scale"), {"head/kernel", "block_0/norm/scale"}),
    ],
)
def test_frozen_parameters_stay(patterns, frozen):
    # Decay would move them as well.
    tx = make_optimizer(optim_of(freeze=patterns, weight_decay=0.1), optax.constant_schedule(3e-4))
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


def test_young_averages_forget_faster():
    averaged, expected = {"w": jnp.asarray(5.0)}, 5.0
    for step in range(40):
        latest, now = float(step % 3), jnp.asarray(step)
        averaged = moving_average(averaged, {"w": jnp.asarray(latest)}, now, decay=0.7)
        kept = min(0.7, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * latest
        assert float(averaged["w"]) == pytest.approx(expected, rel=1e-5)
