"""The optimizer of a training: its schedule, the clamps of its gradients, and what makes its steps.

References:
  Loshchilov and Hutter 2017, Decoupled Weight Decay Regularization, arXiv:1711.05101 (AdamW).
  Dozat 2016, Incorporating Nesterov Momentum into Adam (NAdam).
  Jordan et al. 2024, Muon: An optimizer for hidden layers, https://kellerjordan.github.io/posts/muon
  Liu et al. 2025, Muon is Scalable for LLM Training, arXiv:2502.16982, section 2.2 (its scale).
  Loshchilov and Hutter 2016, SGDR, arXiv:1608.03983, equation 5 (cosine, without restarts).
  Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, section 2.2 (warm-up).
  Pascanu et al. 2012, On the difficulty of training RNNs, arXiv:1211.5063, algorithm 1 (norm).
"""

import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
from optax import contrib

from yogo_jax.config.schema import OptimConfig
from yogo_jax.detector.network import OUTPUT_LAYERS
from yogo_jax.errors import UserError


# Root mean square of the elements of a step of Muon at a learning rate of 1. It is about that of
# AdamW's steps, so that one learning rate serves both.
_MUON_RMS = 0.2
# Layers whose kernels Muon leaves to NAdamW: those that make the outputs, as Jordan et al. do, and
# depthwise ones, whose channels do not mix. Jordan et al. leave out the first layer, too; on small
# smears, boxes gain if Muon has it (one seed, docs/experiments.md).
_WITHOUT_MUON = OUTPUT_LAYERS | {"depthwise"}


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
    """Clamp of the gradients, by element and by norm if asked, then AdamW or Muon.

    Muon orthogonalizes the momentum (0.95) of a kernel, as a matrix of inputs and outputs, by five
    Newton-Schulz iterations. AdamW with Nesterov's momentum (NAdamW) has depthwise kernels, those
    that make the outputs, and all that is no kernel.

    Args:
      optim: which of them, and their settings. Parameters that `freeze` names get no steps.
      schedule: learning rate by step.

    Raises:
      UserError: from `init` of what is returned, if a pattern of `freeze` names no parameter.
    """
    parts = []
    if optim.clip_value:
        parts.append(optax.clip(optim.clip_value))
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(optim.clip_norm))
    if optim.name == "muon":
        steps = contrib.muon(
            schedule,
            weight_decay=optim.weight_decay,
            adam_weight_decay=optim.weight_decay,
            consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    else:
        steps = optax.adamw(schedule, weight_decay=optim.weight_decay)
    tx = optax.chain(*parts, steps)
    if not optim.freeze:
        return tx
    labels = functools.partial(_frozen_or_trained, patterns=optim.freeze)
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _muon_dimensions(params: Any) -> Any:
    """For each parameter: which axes are inputs and outputs of Muon's matrix; None: NAdamW's."""

    def dimensions(path: Sequence[Any], param: jax.Array) -> contrib.MuonDimensionNumbers | None:
        names = [part.key for part in path]
        if names[-1] != "kernel" or not _WITHOUT_MUON.isdisjoint(names):
            return None
        outputs = param.ndim - 1
        return contrib.MuonDimensionNumbers(tuple(range(outputs)), outputs)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _frozen_or_trained(params: Any, patterns: Sequence[str]) -> Any:
    """The word for each parameter: "frozen" if a pattern names it or a group that it is in.

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
    return jax.tree.map(
        lambda name: "frozen" if any(matches(name, each) for each in patterns) else "trained", names
    )
