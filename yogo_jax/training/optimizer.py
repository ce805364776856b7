"""The optimizer: clamp, AdamW, cosine; and what a stronger recipe adds to it.

References:
  Loshchilov and Hutter 2017, Decoupled Weight Decay Regularization, arXiv:1711.05101.
  Loshchilov and Hutter 2016, SGDR, arXiv:1608.03983, equation 5 (cosine, without restarts).
  Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, section 2.2 (warm-up).
  Pascanu et al. 2012, On the difficulty of training RNNs, arXiv:1211.5063, algorithm 1 (norm).
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import optax

from yogo_jax.config.schema import OptimConfig
from yogo_jax.errors import UserError


def learning_rate_schedule(
    optim: OptimConfig, total_steps: int, *, steps_per_epoch: int = 1
) -> optax.Schedule:
    """Linear from 0 over the warm-up, then cosine from the learning rate to its last fraction.

    Args:
      optim: with `learning_rate`, `lr_decay_factor` and `warmup_epochs`.
      total_steps: of the run, the warm-up among them.
      steps_per_epoch: makes steps of the warm-up's epochs.
    """
    warmup_steps = min(round(optim.warmup_epochs * steps_per_epoch), total_steps - 1)
    end = 1 / optim.lr_decay_factor
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(optim.learning_rate, total_steps, alpha=end)
    return optax.warmup_cosine_decay_schedule(
        0.0, optim.learning_rate, warmup_steps, total_steps, end_value=optim.learning_rate * end
    )


def make_optimizer(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clamp of the gradients, by element and by norm, then AdamW on what is not frozen.

    Args:
      optim: see `configs/base.py`.
      schedule: of the learning rate.
    """
    parts = [optax.clip(optim.clip_value)]
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(optim.clip_norm))
    parts.append(optax.adamw(schedule, weight_decay=optim.weight_decay))
    tx = optax.chain(*parts)
    if not optim.freeze:
        return tx

    def labels(params: Any) -> Any:
        return jax.tree.map(
            lambda frozen: "frozen" if frozen else "trained", _frozen(params, optim.freeze)
        )

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _frozen(params: Any, patterns: Sequence[str]) -> Any:
    """Of each parameter, whether one of the patterns names it or a group that it is in.

    Raises:
      UserError: a pattern names nothing.
    """
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(str(part.key) for part in path), params
    )

    def matches(name: str, pattern: str) -> bool:
        return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}/*")

    every = jax.tree.leaves(names)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in every):
            raise UserError(
                f"config.optim.freeze: {pattern!r} names no parameter; there are "
                f"{', '.join(sorted({name.split('/')[0] for name in every}))}"
            )
    return jax.tree.map(lambda name: any(matches(name, each) for each in patterns), names)
