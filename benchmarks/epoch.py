"""Share of a training epoch that is spent in the step, compilations, and peak memory.

    python benchmarks/epoch.py --definition FILE.yml [--json FILE]

Trains for a few epochs as the command does, with input, logs and checkpoints. The bare step, on one
batch that stays on the device, is timed before and after each of them, and the share of an epoch is
`bare step / time from step to step`. Left out are the first epoch, which compiles, of each of the
others its first call, and what comes between two epochs: validation, and the bare steps.
"""

import argparse
import itertools
import json
import logging
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from configs import base
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.run_data import prepare_data
from yogo_jax.checkpoint.store import create_state
from yogo_jax.config.schema import Config, from_mapping
from yogo_jax.data.pipeline import EpochOrder, RecordSource, open_batches
from yogo_jax.startup import start_jax
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.start import prepare_loss, prepare_spec
from yogo_jax.training.step import make_train_step
from yogo_jax.training.trainer import train_and_evaluate


# Bare steps before those that are timed: a checkpoint is written and batches are read beside them.
WARM_UP_STEPS = 6


class BareStep:
    """The training step on one real batch that stays on the device."""

    def __init__(self, config: Config) -> None:
        data = prepare_data(config.data)
        if len(data.splits.val) == 0:
            sys.exit("error: the bare step is timed after validations, and no image is for those")
        spec = prepare_spec(config, data.splits.train)
        schedule = learning_rate_schedule(config.optim, 1000)
        tx = make_optimizer(config.optim, schedule)
        step = make_train_step(
            spec,
            tx,
            schedule,
            loss=prepare_loss(config, data.splits.train),
            augment=config.augment,
            seed=config.seed,
            compute_dtype=config.model.dtype,
            ema_decay=config.optim.ema_decay,
            thumbnails=data.thumbnails,
        )
        self._step = jax.jit(step, donate_argnums=0)
        self._state = create_state(spec, tx, seed=0)
        train = data.splits.train
        source = RecordSource(train, image_hw=spec.image_hw, rgb=spec.rgb, max_boxes=data.max_boxes)
        order = EpochOrder(
            num_records=len(train), batch_size=config.train.batch_size, seed=config.seed
        )
        self.steps_per_epoch = order.steps_per_epoch
        with open_batches(source, order) as batches:
            self._batch = jax.device_put(next(batches))
        self.seconds(1)

    def seconds(self, count: int) -> float:
        """Mean seconds of `count` steps, as an epoch's are a mean."""
        began = time.perf_counter()
        for _ in range(count):
            self._state, metrics = self._step(self._state, self._batch)
            jax.block_until_ready((self._state, metrics))
        return (time.perf_counter() - began) / count


class CompilationCounter(logging.Handler):
    """Counts what XLA compiles, by the name of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Counts one message of JAX's log of compilations."""
        found = re.match(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage())
        if found:
            self.counts[found[1]] = self.counts.get(found[1], 0) + 1


def seconds_by_epoch(records: list[dict[str, Any]]) -> list[float]:
    """Of each epoch the mean seconds of a step, from the end of its first call to that of its last.

    The steps of a call are recorded when it ends, at one time. What the first one waits for is the
    validation and the bare steps before it.

    Raises:
      SystemExit: an epoch is a single call.
    """
    ends: dict[int, list[float]] = {}
    for record in records:
        if record["kind"] == "train":
            ends.setdefault(record["epoch"], []).append(record["seconds"])
    means = []
    for epoch, seconds in sorted(ends.items()):
        later = sum(each > seconds[0] for each in seconds)
        if not later:
            sys.exit(f"error: epoch {epoch} is a single call of the host: more images are needed")
        means.append((seconds[-1] - seconds[0]) / later)
    return means


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One run, and bare steps between its epochs."""
    values = base.get_config().to_dict()
    values["data"].update(
        definition=args.definition,
        image_hw=tuple(args.image_hw),
        normalize_images=True,
        workers=args.workers,
        cache=args.cache,
    )
    values["model"].update(name=args.model, anchor="auto", dtype=args.dtype)
    values["train"].update(
        epochs=args.epochs,
        batch_size=args.batch,
        eval_every_epochs=1,
        checkpoint_every_minutes=args.checkpoint_every_minutes,
    )
    config = from_mapping(values)
    bare = BareStep(config)
    times = []

    def take_bare_steps(_epoch: int, _validation: object) -> None:
        bare.seconds(WARM_UP_STEPS)
        times.append(bare.seconds(args.bare_steps))

    counter = CompilationCounter()
    logger = logging.getLogger("jax")
    logger.addHandler(counter)
    logger.propagate = False
    with tempfile.TemporaryDirectory() as folder, jax.log_compiles():
        train_and_evaluate(config, Path(folder), on_validation=take_bare_steps)
        records = read_metrics(Path(folder) / "metrics.jsonl")
    # Those before and after each epoch but the first.
    bare_steps = [(before + after) / 2 for before, after in itertools.pairwise(times)]
    steps = seconds_by_epoch(records)[1:]
    shares = [bare_step / step for bare_step, step in zip(bare_steps, steps, strict=True)]
    return {
        "epoch_seconds": bare.steps_per_epoch * statistics.median(steps),
        "steps_per_epoch": bare.steps_per_epoch,
        "bare_step_seconds": statistics.median(bare_steps),
        "share_in_step": statistics.median(shares),
        "share_lowest": min(shares),
        "share_highest": max(shares),
        "compilations": {name: counter.counts.get(name, 0) for name in ("train_step", "eval_step")},
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--definition", default="synthetic")
    parser.add_argument("--model", default="base_model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-hw", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cache", choices=("auto", "none", "disk", "device"), default="auto")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--checkpoint-every-minutes", type=float, default=0.1)
    parser.add_argument("--bare-steps", type=int, default=12)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs: the first one is left out, so at least 2 are needed")
    start_jax()
    result = measure(args)
    for name, value in result.items():
        print(f"{name:<20}{value:.4g}" if isinstance(value, float) else f"{name:<20}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
