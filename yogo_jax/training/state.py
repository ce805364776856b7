"""The state of a run on the device."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. No key is in it: randomness is a function of (seed, step)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `network.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(spec: ModelSpec, tx: optax.GradientTransformation, *, seed: int) -> TrainState:
    """A fresh state at step 0; the seed alone decides its weights."""

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        variables = init_variables(
            spec.network(), key, image_hw=spec.image_hw, channels=spec.channels
        )
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(params),
        )

    return create(jax.random.key(seed))
