"""Expected time of a training step on many devices, on paper: what it sends, and how fast.

    python benchmarks/scaling.py --step-seconds SECONDS [--batch N] [--model NAME] [--json FILE]

SECONDS is a step of `--batch` images on one device, as `benchmarks/step.py` measures it. What a
step sends is read from the real one, compiled for two devices. Every device keeps its `--batch`
images, so that n devices take n times as many in a step.

Assumed: all devices are alike and never wait for data; sums go around a ring, in which every device
sends 2 (n - 1) / n of the bytes, in 2 (n - 1) rounds that each cost the latency; of up to
`--node-devices` devices over the links of a node, of more over the slower ones between nodes;
nothing is sent while something is computed. The last is pessimistic.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple


ITEM_BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2, "f16": 2}


class Messages(NamedTuple):
    """Sums over all devices in one step: how many, and of how many bytes in all."""

    count: int
    bytes: int


def messages_of(compiled: str) -> Messages:
    """Messages that a compiled program sends, from its text; it may hold sums over devices only."""
    other = re.search(r"(all-gather|all-to-all|collective-permute|reduce-scatter)\S*\(", compiled)
    assert other is None, f"the step sends more than sums: {other}"
    types = re.findall(r"= (.+?) all-reduce(?:-start)?\(", compiled)
    sizes = [
        ITEM_BYTES[item] * math.prod(int(each) for each in shape.split(",") if each)
        for result in types
        for item, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
    ]
    return Messages(len(types), sum(sizes))


def ring_seconds(messages: Messages, devices: int, *, bytes_per_s: float, latency: float) -> float:
    """Time of the sums of one step around a ring."""
    rounds = 2 * (devices - 1)
    return rounds / devices * messages.bytes / bytes_per_s + messages.count * rounds * latency


def compiled_step(model: str) -> tuple[str, int, int]:
    """The text of the step for two devices, and the sizes of parameters and batch statistics."""
    import jax
    import numpy as np

    from configs import base
    from yogo_jax.checkpoint.store import create_state
    from yogo_jax.config.schema import from_mapping
    from yogo_jax.detector.spec import ModelSpec
    from yogo_jax.parallel import Devices
    from yogo_jax.training.compilation import jit_train_step
    from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
    from yogo_jax.training.step import make_train_step

    config = from_mapping(base.get_config().to_dict())
    # Sums are over images: their size does not matter.
    hw, boxes = (64, 96), 4
    spec = ModelSpec(
        architecture=model,
        class_names=tuple("abcdefg"),
        image_hw=hw,
        anchor_wh=(0.1, 0.1),
        rgb=False,
        normalize_images=True,
    )
    schedule = learning_rate_schedule(config.optim, 10)
    tx = make_optimizer(config.optim, schedule)
    step = make_train_step(spec, tx, schedule, loss=config.loss, augment=config.augment, seed=0)
    devices = Devices()
    n = devices.count
    batch = {
        "image": np.zeros((n, *hw, 1), np.uint8),
        "boxes_cxcywh": np.zeros((n, boxes, 4), np.float32),
        "class_ids": np.zeros((n, boxes), np.int32),
        "valid": np.zeros((n, boxes), bool),
        "image_valid": np.ones(n, bool),
    }
    state = jax.eval_shape(lambda: create_state(spec, tx, seed=0))
    lowered = jit_train_step(step, devices).lower(state, batch, np.zeros((n, 2), bool))
    sizes = [
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    ]
    return lowered.compile().as_text(), *sizes


def table(args: argparse.Namespace, messages: Messages) -> list[dict]:
    """A row for each number of devices."""
    rows = []
    for devices in args.devices:
        inside = devices <= args.node_devices
        seconds = ring_seconds(
            messages,
            devices,
            bytes_per_s=1e9 * (args.node_gbytes_per_s if inside else args.network_gbytes_per_s),
            latency=1e-6 * (args.node_latency_us if inside else args.network_latency_us),
        )
        step = args.step_seconds + seconds
        rows.append(
            {
                "devices": devices,
                "sent_mb": 2 * (devices - 1) / devices * messages.bytes / 1e6,
                "sending_ms": seconds * 1e3,
                "step_ms": step * 1e3,
                "images_per_second": devices * args.batch / step,
                "efficiency": args.step_seconds / step,
                # A device that takes less for a step of its own loses more than a tenth.
                "step_ms_for_90_percent": 9 * seconds * 1e3,
            }
        )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step-seconds", type=float, required=True, help="on one device")
    parser.add_argument("--batch", type=int, default=8, help="images of a device")
    parser.add_argument("--model", default="base_model")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--node-devices", type=int, default=8, help="devices of a node")
    parser.add_argument("--node-gbytes-per-s", type=float, default=20.0)
    parser.add_argument("--node-latency-us", type=float, default=10.0)
    parser.add_argument("--network-gbytes-per-s", type=float, default=10.0)
    parser.add_argument("--network-latency-us", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    text, parameters, statistics = compiled_step(args.model)
    messages = messages_of(text)
    print(
        f"{args.model}: {parameters} parameters, {statistics} batch statistics; a step has "
        f"{messages.count} sums of {messages.bytes} bytes in all"
    )
    rows = table(args, messages)
    print("devices  sent by each (MB)  sending (ms)  step (ms)  images/s  efficiency  90 % if over")
    for row in rows:
        print(
            f"{row['devices']:>7}{row['sent_mb']:>19.2f}{row['sending_ms']:>14.2f}"
            f"{row['step_ms']:>11.1f}{row['images_per_second']:>10.1f}{row['efficiency']:>12.3f}"
            f"{row['step_ms_for_90_percent']:>11.1f} ms"
        )
    if args.json:
        figures = {"arguments": vars(args) | {"json": None}, **messages._asdict(), "rows": rows}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
