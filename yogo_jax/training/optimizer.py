"""The optimizer: clamp, AdamW, cosine.

References:
  Loshchilov and Hutter 2017, Decoupled Weight Decay Regularization, arXiv:1711.05101.
  Loshchilov and Hutter 2016, SGDR, arXiv:1608.03983, equation 5 (cosine, without restarts).
"""

import optax

from yogo_jax.config import OptimConfig


def learning_rate_schedule(optim: OptimConfig, total_steps: int) -> optax.Schedule:
    """Cosine per step, from the learning rate at step 0 to its `lr_decay_factor`-th at the end."""
    return optax.cosine_decay_schedule(
        optim.learning_rate, total_steps, alpha=1 / optim.lr_decay_factor
    )


def make_optimizer(optim: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Element-wise clamp of the gradients, then AdamW on all parameters."""
    return optax.chain(
        optax.clip(optim.clip_value),
        optax.adamw(learning_rate_schedule(optim, total_steps), weight_decay=optim.weight_decay),
    )
