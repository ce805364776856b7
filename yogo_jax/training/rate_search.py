"""The range test of the learning rate: how the loss takes steps that grow and grow.

References:
  Smith 2015, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from yogo_jax.config import Config
from yogo_jax.data.pipeline import EpochOrder, open_batches
from yogo_jax.data.source import RecordSource
from yogo_jax.errors import UserError
from yogo_jax.training.optimizer import make_optimizer
from yogo_jax.training.run_data import Say, prepare_data
from yogo_jax.training.setup import (
    initial_state,
    load_teacher,
    prepare_loss,
    prepare_spec,
    prepare_train_step,
)


# Of a running mean, so that single batches do not decide.
SMOOTHING = 0.9
# Where the loss is so many times its least it has left for good.
DIVERGED = 4.0
# Steps at the borders of which no slope is known.
FEWEST_STEPS = 20


class Tried(NamedTuple):
    """One learning rate, and the smoothed loss when it was used."""

    learning_rate: float
    loss: float


def rates_between(lowest: float, highest: float, steps: int) -> list[float]:
    """So many learning rates at equal ratios."""
    return np.geomspace(lowest, highest, steps).tolist()


def try_rates(config: Config, rates: Sequence[float], say: Say) -> list[Tried]:
    """Trains from the start of a run, one step at each learning rate, until the loss diverges.

    The steps are those of the run in all but the learning rate.

    Args:
      config: of the run.
      rates: ascending.
      say: is told of the data and the model.

    Raises:
      UserError: data or config cannot be used.
    """
    data = prepare_data(config.data, config.augment)
    for line in data.lines:
        say(line)
    spec = prepare_spec(config, data.splits.train)
    table = jnp.asarray(rates)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return table[count]

    tx = make_optimizer(config.optim, schedule)
    state = initial_state(config, spec, tx, say)
    train_step = prepare_train_step(
        config,
        spec,
        data,
        tx,
        schedule,
        loss=prepare_loss(config, data.splits.train),
        teacher=load_teacher(config, spec),
    )
    order = EpochOrder(
        num_records=len(data.splits.train), batch_size=config.train.batch_size, seed=config.seed
    )
    source = RecordSource(
        data.splits.train,
        image_hw=spec.image_hw,
        rgb=spec.rgb,
        max_boxes=data.max_boxes,
        apply_orientation=spec.apply_orientation,
    )
    epochs = -(-len(rates) // order.steps_per_epoch)
    step = jax.jit(train_step, donate_argnums=0)

    def losses() -> Iterator[float]:
        nonlocal state
        with open_batches(source, order, epochs=epochs, workers=config.data.workers) as batches:
            for batch in batches:
                state, metrics = step(state, batch)
                yield float(metrics.loss)

    return smoothed(rates, losses())


def smoothed(rates: Sequence[float], losses: Iterable[float]) -> list[Tried]:
    """Running means of the losses, up to the last that has not diverged."""
    tried: list[Tried] = []
    mean, least = 0.0, math.inf
    for count, (rate, loss) in enumerate(zip(rates, losses, strict=False), start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        unbiased = mean / (1 - SMOOTHING**count)
        if not math.isfinite(unbiased) or unbiased > DIVERGED * least:
            break
        least = min(least, unbiased)
        tried.append(Tried(float(rate), unbiased))
    return tried


def fastest(tried: Sequence[Tried]) -> Tried:
    """Where the loss falls fastest with the logarithm of the learning rate, before its least.

    Raises:
      UserError: it never fell, or diverged after too few steps.
    """
    least = int(np.argmin([each.loss for each in tried])) if tried else 0
    if len(tried) < FEWEST_STEPS or least < FEWEST_STEPS // 2:
        raise UserError(
            f"the loss did not fall over the first of {len(tried)} learning rates; expected a fall "
            "and then a rise: start at a lower rate by --lowest, or look at the data "
            "(`yogo_jax.inspect`)"
        )
    logs = np.log([each.learning_rate for each in tried[: least + 1]])
    losses = np.log([each.loss for each in tried[: least + 1]])
    # Over a tenth of the way at a time: the mean of a batch goes up and down.
    reach = max(len(tried) // 20, 1)
    slopes = [
        (losses[min(i + reach, least)] - losses[max(i - reach, 0)])
        / (logs[min(i + reach, least)] - logs[max(i - reach, 0)])
        for i in range(least + 1)
    ]
    return tried[int(np.argmin(slopes))]
