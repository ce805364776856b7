"""One step of training or evaluation on a batch: pure functions, jitted by their callers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from yogo_jax.config import AugmentConfig, LossConfig
from yogo_jax.detector.losses import LossTerms, label_loss
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.training.augment import random_flips
from yogo_jax.training.state import TrainState


Batch = dict[str, Any]


class StepMetrics(NamedTuple):
    """Scalars of one step, before its update; the terms are means over the valid images."""

    loss: jax.Array
    terms: LossTerms
    grad_norm: jax.Array
    param_norm: jax.Array
    learning_rate: jax.Array


def mean_over_images(values: Any, image_valid: jax.Array) -> Any:
    """Means of per-image values, padding images left out; 0 if all of them are padding."""
    weights = image_valid / jnp.maximum(image_valid.sum(), 1)
    # `where` and not a product alone: what a padding image computes may be anything.
    return jax.tree.map(lambda each: (jnp.where(image_valid, each, 0) * weights).sum(), values)


def make_train_step(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    loss: LossConfig,
    augment: AugmentConfig,
    seed: int,
    compute_dtype: DTypeLike = jnp.float32,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The training step: augment, bin, forward, loss, update.

    Its randomness is drawn from (seed, step), so that a continued run draws the same. Convolutions
    compute in `compute_dtype`; parameters, statistics of batch norm, loss and update are float32.
    """
    network = spec.network(compute_dtype)
    image_loss = functools.partial(label_loss, weights=loss)
    flip = functools.partial(
        random_flips, horizontal=augment.horizontal_flip, vertical=augment.vertical_flip
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        flip_key, dropout_key = jax.random.split(step_key)
        keys = jax.random.split(flip_key, batch["image"].shape[0])
        images, boxes_cxcywh = jax.vmap(flip)(keys, batch["image"], batch["boxes_cxcywh"])
        image_valid = batch["image_valid"]

        def loss_of(params: Any) -> tuple[jax.Array, tuple[LossTerms, Any]]:
            raw, mutated = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                image_valid=image_valid,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            terms = jax.vmap(image_loss)(
                spec.decode(raw), boxes_cxcywh, batch["class_ids"], batch["valid"]
            )
            means = mean_over_images(terms, image_valid)
            return means.total(), (means, mutated.get("batch_stats", {}))

        grad_fn = jax.value_and_grad(loss_of, has_aux=True)
        (value, (terms, batch_stats)), grads = grad_fn(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = StepMetrics(
            loss=value,
            terms=terms,
            grad_norm=optax.tree.norm(grads),
            param_norm=optax.tree.norm(state.params),
            learning_rate=jnp.asarray(schedule(state.step)),
        )
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, metrics

    return train_step
