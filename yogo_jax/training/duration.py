"""How long a run takes, told before its first step."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from yogo_jax.training.state import TrainState


# A first call that takes less is measured again: it waited for memory that the system hands out.
SHORT_CALL_S = 2.0
# What takes longer is worth a word on what would be faster.
_LONG_EPOCH_S = 3600.0
_LONG_RUN_S = 6 * 3600.0


def seconds_of_call(
    step: Callable[..., Any], state: TrainState, inputs: Any, wishes: jax.Array
) -> float:
    """Seconds of a call of the compiled training step. Its result is not used."""
    # The step writes into the state that it is given.
    copied = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    began = time.monotonic()
    jax.block_until_ready(step(copied, inputs, wishes))
    return time.monotonic() - began


def duration_lines(
    seconds: float,
    *,
    steps_per_epoch: int,
    steps_left: int,
    image_hw: tuple[int, int],
    ways: tuple[str, ...],
) -> list[str]:
    """Lines on how long an epoch and the rest of the run take, and on what is faster.

    Args:
      seconds: of a step.
      steps_per_epoch: of the run.
      steps_left: until its end.
      image_hw: height and width of its images in px.
      ways: other ways to be faster, for a run that takes hours.
    """
    epoch, rest = seconds * steps_per_epoch, seconds * steps_left
    lines = [
        f"an epoch takes about {duration(epoch)} here ({steps_per_epoch} steps of "
        f"{duration(seconds)}), the {steps_left / steps_per_epoch:.3g} that are left about "
        f"{duration(rest)}; reading images and validation come on top"
    ]
    if epoch >= _LONG_EPOCH_S or rest >= _LONG_RUN_S:
        height, width = (side // 2 for side in image_hw)
        smaller = (
            f"smaller images (--config.data.image_hw={height},{width} takes a quarter of the time)"
        )
        lines.append(f"faster: {', or '.join((smaller, *ways))}")
    return lines


def duration(seconds: float) -> str:
    """A time in words: "34 ms", "1.5 s", "45 s", "12 min" or "3.5 h"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
