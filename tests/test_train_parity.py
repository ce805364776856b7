"""Twelve training steps of the original, repeated: losses, schedule, statistics, parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bridge.converted import to_variables
from bridge.torch_archive import read_torch_archive
from parity import load, parity_file
from yogo_jax.checkpoint.store import TrainState
from yogo_jax.config.schema import AugmentConfig, LossConfig, OptimConfig
from yogo_jax.detector import architectures
from yogo_jax.detector.boxes import xyxy_to_cxcywh
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.step import make_train_step


STEPS = 12


@pytest.fixture
def without_dropout(monkeypatch):
    plain = architectures.get_backbone("half_filters")
    blocks = tuple(dataclasses.replace(block, dropout=0.0) for block in plain.blocks)
    plain = dataclasses.replace(plain, blocks=blocks)
    monkeypatch.setitem(architectures.BACKBONES, "half_filters", plain)


def batch_of(recorded: dict[str, np.ndarray], step: int) -> dict[str, jax.Array]:
    rows = jnp.asarray(recorded["boxes"][step])
    valid = ~jnp.isnan(rows[..., 0])
    rows = jnp.where(valid[..., None], rows, 0)
    return {
        "image": jnp.asarray(recorded["x"][step].transpose(0, 2, 3, 1)),
        "boxes_cxcywh": xyxy_to_cxcywh(rows[..., 1:]),
        "class_ids": rows[..., 0].astype(jnp.int32),
        "valid": valid,
        "image_valid": jnp.ones(4, bool),
    }


@pytest.mark.smoke
@pytest.mark.optimized
@pytest.mark.usefixtures("without_dropout")
def test_twelve_recorded_steps():
    recorded = load("train.npz")
    weights = read_torch_archive(parity_file("train_init.pth"))["model_state_dict"]
    variables = jax.tree.map(jnp.asarray, to_variables(weights, "half_filters"))
    optim = OptimConfig(
        learning_rate=float(recorded["lrs"][0]),
        lr_decay_factor=10.0,
        weight_decay=0.05,
        clip_value=1.0,
    )
    schedule = learning_rate_schedule(optim, STEPS)
    tx = make_optimizer(optim, schedule)
    spec = ModelSpec(
        architecture="half_filters",
        class_names=tuple("abcdefg"),
        image_hw=(96, 128),
        anchor_wh=(float(weights["anchor_w"]), float(weights["anchor_h"])),
        rgb=False,
        normalize_images=False,
    )
    step = make_train_step(
        spec,
        tx,
        schedule,
        loss=LossConfig(
            no_object_weight=0.5, iou_weight=5.0, classify_weight=1.0, label_smoothing=0.01
        ),
        augment=AugmentConfig(horizontal_flip=0.0, vertical_flip=0.0),
        seed=0,
    )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
    )
    run, losses, rates = jax.jit(step), [], []
    for index in range(STEPS):
        state, metrics = run(state, batch_of(recorded, index))
        losses.append(float(metrics.loss))
        rates.append(float(metrics.learning_rate))
    np.testing.assert_allclose(rates, recorded["lrs"], rtol=1e-5)
    np.testing.assert_allclose(losses, recorded["losses"], rtol=1e-5)
    assert float(optax.tree.norm(state.params)) == pytest.approx(
        float(recorded["param_norm"]), rel=1e-5
    )
    for index, name in ((0, "mean"), (0, "var"), (4, "mean"), (4, "var"), (5, "var")):
        expected = recorded[f"final_model.{index}.1.running_{name}"]
        found = state.batch_stats[f"block_{index}"]["norm"][name]
        np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max(), rtol=1e-5)
    # Block 5 has a bias before its batch norm. The norm takes it out again, so its true gradient is
    # 0; what Adam sees is rounding noise scaled up to full steps, in the original as here. The
    # running mean follows that bias and nothing else does: it may differ by those steps, not more.
    expected = recorded["final_model.5.1.running_mean"]
    drift = np.abs(np.asarray(state.batch_stats["block_5"]["norm"]["mean"]) - expected)
    assert drift.max() <= 2 * recorded["lrs"].sum()
