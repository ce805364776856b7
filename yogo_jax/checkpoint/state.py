"""The state of a run on the device."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from yogo_jax.detector.network import ORIGINAL_INITIALIZATION, Initialization, init_variables
from yogo_jax.detector.spec import ModelSpec


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. No key is in it: randomness is a function of (seed, step).

    `step` is a whole number. `averaged` holds moving averages of `params` and `batch_stats`, or
    None where none are kept. While JAX traces and lowers, the leaves are no arrays.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    averaged: Any = None

    @property
    def trained(self) -> dict[str, Any]:
        """The variables that the steps go on from."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that are evaluated and exported: the averages if there are any."""
        return self.trained if self.averaged is None else self.averaged


def moving_average(averaged: Any, latest: Any, step: jax.Array, *, decay: float) -> Any:
    """The averages after one more step; while they are young they forget faster.

    Args:
      averaged: before it.
      latest: what the step made.
      step: its number, from 0.
      decay: share of the old that remains, reached slowly: `min(decay, (1 + step) / (10 + step))`.

    References:
      Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, averaged, latest)


def create_state(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    initialization: Initialization = ORIGINAL_INITIALIZATION,
    averages: bool = False,
) -> TrainState:
    """A fresh state at step 0; the seed alone decides its weights.

    Args:
      spec: of the model.
      tx: the optimizer.
      seed: of the run.
      initialization: how weights are drawn.
      averages: whether moving averages are kept.
    """

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        variables = init_variables(
            spec.network(initialization=initialization),
            key,
            image_hw=spec.image_hw,
            channels=spec.channels,
        )
        return start_from(variables, tx, averages=averages)

    return create(jax.random.key(seed))


def start_from(
    variables: Any, tx: optax.GradientTransformation, *, averages: bool = False
) -> TrainState:
    """The state at step 0 with given `params` and `batch_stats`."""
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=tx.init(variables["params"]),
        # A copy: the step that takes the state may write into either.
        averaged=jax.tree.map(jnp.array, variables) if averages else None,
    )
