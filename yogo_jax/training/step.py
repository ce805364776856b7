"""One step of training on a batch: pure functions, jitted by their callers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from yogo_jax.checkpoint.store import TrainState, moving_average
from yogo_jax.config.schema import AugmentConfig
from yogo_jax.data.thumbnails import Thumbnails
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import LossTerms, imitation_loss, label_loss
from yogo_jax.detector.network import train_outputs
from yogo_jax.detector.spec import ModelSpec, served_spec
from yogo_jax.training.augment import augment_batch
from yogo_jax.training.pasting import on_device
from yogo_jax.training.rare_cells import CutCells


Batch = dict[str, Any]


class StepMetrics(NamedTuple):
    """Scalars of one step, before its update; the terms are means over the valid images."""

    loss: jax.Array
    terms: LossTerms
    grad_norm: jax.Array
    param_norm: jax.Array
    learning_rate: jax.Array


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
# The steps of one call, as a pure function of (state, inputs): their metrics have an axis of steps.
Steps = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]


class Teacher(NamedTuple):
    """A trained network that another one imitates."""

    spec: ModelSpec
    variables: Any


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
    loss: LossWeights,
    augment: AugmentConfig,
    seed: int,
    compute_dtype: DTypeLike = jnp.float32,
    ema_decay: float = 0.0,
    steps_with_paste: int | None = None,
    teacher: Teacher | None = None,
    imitation: float = 0.0,
    thumbnails: Thumbnails | None = None,
    rare_cells: CutCells | None = None,
    rematerialize: bool = False,
) -> TrainStep:
    """The training step: augment, bin, forward, loss, update.

    Its randomness is drawn from (seed, step), so that a continued run draws the same. Convolutions
    compute in `compute_dtype`; parameters, statistics of batch norm, loss and update are float32.

    Args:
      tx: the optimizer.
      schedule: its learning rate, to be reported.
      loss: weights and forms of the terms.
      augment: what happens to the images.
      ema_decay: of the moving averages of the weights, which the state then has; 0 is none.
      steps_with_paste: so many first steps see images with holes and pasted cells; None is all.
      teacher: whose predictions are imitated, of the same grid.
      imitation: share of the loss that does so.
      thumbnails: what is pasted into the images, if anything is.
      rare_cells: what is put in the place of frequent cells, if anything is.
      rematerialize: takes less memory and more time, see `train_outputs`.
    """
    network = spec.network(compute_dtype)
    if augment.vertical_crop < 1:
        spec = served_spec(spec, crop_height=augment.vertical_crop)
        if teacher is not None:
            teacher = teacher._replace(
                spec=served_spec(teacher.spec, crop_height=augment.vertical_crop)
            )
    pasted = None if thumbnails is None else on_device(thumbnails)
    image_loss = functools.partial(label_loss, weights=loss)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, dropout_key = jax.random.split(step_key)
        image_valid = batch["image_valid"]
        images, labels = augment_batch(
            augment_key,
            batch["image"],
            (batch["boxes_cxcywh"], batch["class_ids"], batch["valid"]),
            augment,
            paste_enabled=True if steps_with_paste is None else state.step < steps_with_paste,
            thumbnails=pasted,
            rare_cells=rare_cells,
        )

        # Outside of what is differentiated.
        taught = None if teacher is None else teacher.spec.predict(teacher.variables, images)

        def loss_of(params: Any) -> tuple[jax.Array, tuple[LossTerms, Any]]:
            raw, batch_stats = train_outputs(
                network,
                {"params": params, "batch_stats": state.batch_stats},
                images,
                image_valid=image_valid,
                dropout_key=dropout_key,
                rematerialize=rematerialize,
            )
            predictions = spec.decode(raw)
            terms = jax.vmap(image_loss)(predictions, *labels)
            if taught is not None:
                imitated = jax.vmap(functools.partial(imitation_loss, weights=loss))
                terms = terms.mixed(imitated(predictions, taught), imitation)
            means = mean_over_images(terms, image_valid)
            return means.total(), (means, batch_stats)

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
        if ema_decay:
            averaged = moving_average(
                state.averaged, new_state.trained, state.step, decay=ema_decay
            )
            new_state = dataclasses.replace(new_state, averaged=averaged)
        return new_state, metrics

    return train_step
