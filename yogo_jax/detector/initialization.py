"""How the weights of a fresh network are drawn.

References:
  He et al. 2015, Delving Deep into Rectifiers, arXiv:1502.01852.
  Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002, section 4.1 (the head's
  prior).
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from yogo_jax.detector.architectures import LEAKY_SLOPE
from yogo_jax.detector.decode import BOX_CHANNELS


# Standard deviation of the head's kernel if it starts from a prior.
_HEAD_STD = 0.01


def drawn_flat(initializer: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """The same numbers, of one axis: most of what four take to compile is their indices."""

    def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return initializer(key, (math.prod(shape),), dtype).reshape(shape)

    return draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initialization:
    """How the weights of a fresh network are drawn.

    Attributes:
      kernel_init: "fan_out", the original's, keeps the variance of the gradients, "fan_in" that of
        the features (He et al. 2015).
      objectness_prior: with what objectness every cell starts, from a head of small weights; 0
        draws the head like the other layers.
    """

    kernel_init: Literal["fan_out", "fan_in"] = "fan_out"
    objectness_prior: float = 0.0

    def kernel(self, slope: float = LEAKY_SLOPE) -> nn.initializers.Initializer:
        """Of a convolution before a leaky activation of that slope."""
        counted = -2 if self.kernel_init == "fan_in" else -1

        def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            fan = math.prod(shape[:-2]) * shape[counted]
            std = jnp.sqrt(jnp.asarray(2 / (1 + slope**2) / fan, dtype))
            return drawn_flat(nn.initializers.normal(std))(key, shape, dtype)

        return draw

    def head_kernel(self) -> nn.initializers.Initializer:
        """Of the head."""
        if not self.objectness_prior:
            return self.kernel()
        return drawn_flat(nn.initializers.normal(_HEAD_STD))

    def head_bias(self) -> nn.initializers.Initializer:
        """Of the head: 0, but for the objectness."""
        if not self.objectness_prior:
            return nn.initializers.zeros
        prior = math.log(self.objectness_prior / (1 - self.objectness_prior))

        def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            del key
            return jnp.zeros(shape, dtype).at[BOX_CHANNELS - 1].set(prior)

        return draw


ORIGINAL_INITIALIZATION = Initialization()
