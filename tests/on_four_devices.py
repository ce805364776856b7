"""Run by a test in a process of its own, as JAX fixes the number of devices when it starts.

    python tests/on_four_devices.py ARGUMENTS.json

Continues a run, evaluates a checkpoint of another, and looks at what the compiled step sends
between devices; prints one JSON object.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax

from benchmarks.scaling import messages_of
from runs import tiny_config
from yogo_jax.checkpoint.run_data import prepare_data
from yogo_jax.checkpoint.store import create_state
from yogo_jax.data.pipeline import RecordSource
from yogo_jax.detector import cpu_conv as conv
from yogo_jax.errors import UserError
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.parallel import Devices
from yogo_jax.training.compilation import jit_train_step
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.start import prepare_spec
from yogo_jax.training.step import make_train_step
from yogo_jax.training.trainer import train_and_evaluate


def messages(config):
    """Kinds of messages between devices in the compiled step, and bytes beside the expected."""
    data = prepare_data(config.data)
    spec = prepare_spec(config, data.splits.train)
    schedule = learning_rate_schedule(config.optim, 10)
    tx = make_optimizer(config.optim, schedule)
    step = make_train_step(spec, tx, schedule, loss=config.loss, augment=config.augment, seed=0)
    source = RecordSource(data.splits.train, image_hw=spec.image_hw, rgb=False, max_boxes=6)
    batch = {
        name: np.stack([source.padding()[name]] * config.train.batch_size)
        for name in source.padding()
    }
    state = jax.eval_shape(lambda: create_state(spec, tx, seed=0))
    compiled = jit_train_step(step, Devices())
    text = compiled.lower(state, batch, np.zeros((4, 2), bool)).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    parameters, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    )
    # Gradients; and of batch norm two sums for two statistics, and two for their gradients.
    more = messages_of(text).bytes - 4 * (parameters + 2 * statistics)
    return sorted(set(re.findall(rf"({kinds})(?:-start)?\(", text))), more


def main():
    arguments = json.loads(Path(sys.argv[1]).read_text())
    config = tiny_config(arguments["definition"], **arguments["overrides"])
    train_and_evaluate(config, Path(arguments["continue"]))
    evaluate_command(
        [arguments["evaluate"], "--output", arguments["output"], "--batch-size", "4"],
    )
    result = {"devices": jax.device_count(), "messages": messages(config)}
    muon = tiny_config(arguments["definition"], **arguments["overrides"], optim__name="muon")
    result["messages_of_muon"] = messages(muon)
    # The other way to compute gradients, that of accelerators.
    conv.lax.platform_dependent = lambda *args, cpu, default: default(*args)
    result["messages_elsewhere"] = messages(config)
    try:
        uneven = tiny_config(arguments["definition"], train__batch_size=6)
        train_and_evaluate(uneven, Path(arguments["output"]) / "none")
    except UserError as error:
        result["refusal"] = str(error)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
