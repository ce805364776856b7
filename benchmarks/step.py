"""Time of a training step against PyTorch, in turn; what binning and loss take of it.

    python benchmarks/step.py --torch-python TORCH_VENV/bin/python [--json FILE]

On a GPU, where a step is to be judged by what the card can do:

    python benchmarks/step.py --torch-python PYTHON --image-hw 772 1032 --batch 64 --dtype bfloat16

The share of the matrix rate is that of the convolutions' operations, three times those of a forward
pass, to what the device reaches in one large matrix product, measured in the same run.

The PyTorch twin (`torch_twin.py`) runs in its own interpreter, with `pip install torch==2.13.0`.
Rounds of ours and of the twin take turns, so that both see the same machine; medians are printed.
Set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 for huge pages, as `make demo` and the job scripts do.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from configs import base
from yogo_jax.checkpoint.store import create_state
from yogo_jax.config.schema import Config, from_mapping
from yogo_jax.detector.architectures import ConvBackbone, get_backbone
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.grid import convolved_hw
from yogo_jax.detector.losses import label_loss
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from yogo_jax.training.step import make_train_step


def make_batch(
    batch: int, image_hw: tuple[int, int], boxes: int, classes: int
) -> dict[str, np.ndarray]:
    """Random images with some boxes."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, *image_hw, 1), np.uint8),
        "boxes_cxcywh": rng.uniform(0.1, 0.9, (batch, boxes, 4)).astype(np.float32),
        "class_ids": rng.integers(0, classes, (batch, boxes), np.int32),
        "valid": np.ones((batch, boxes), bool),
        "image_valid": np.ones(batch, bool),
    }


def timed(run: Callable[[], object]) -> float:
    """Seconds until the device has finished."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


class Ours:
    """The real training step, and its binning and loss alone."""

    def __init__(
        self, config: Config, batch: int, image_hw: tuple[int, int], boxes: int, classes: int = 7
    ) -> None:
        self.spec = ModelSpec(
            architecture=config.model.name,
            class_names=tuple(f"class_{index}" for index in range(classes)),
            image_hw=image_hw,
            anchor_wh=(0.1, 0.1),
            rgb=False,
            normalize_images=True,
        )
        schedule = learning_rate_schedule(config.optim, 1000)
        tx = make_optimizer(config.optim, schedule)
        step = make_train_step(
            self.spec,
            tx,
            schedule,
            loss=config.loss,
            augment=config.augment,
            seed=0,
            compute_dtype=config.model.dtype,
        )
        self._step = jax.jit(step, donate_argnums=0)
        self._state = create_state(self.spec, tx, seed=0)
        self._batch = jax.device_put(make_batch(batch, image_hw, boxes, classes))
        image_loss = functools.partial(label_loss, weights=config.loss)

        def loss_of(raw: jax.Array, batch: dict) -> jax.Array:
            labels = (batch["boxes_cxcywh"], batch["class_ids"], batch["valid"])
            return jax.vmap(image_loss)(self.spec.decode(raw), *labels).total().mean()

        def predictions_of(variables: dict, images: jax.Array) -> Predictions:
            return self.spec.predict(variables, images, compute_dtype=config.model.dtype)

        self._loss = jax.jit(jax.grad(loss_of))
        self._inference = jax.jit(predictions_of)
        self._raw = jax.numpy.zeros((batch, *self.spec.grid_hw, 5 + classes))
        self.step()
        self.loss()
        self.inference()

    def step(self) -> float:
        """Seconds of one step."""

        def run() -> object:
            self._state, metrics = self._step(self._state, self._batch)
            return self._state, metrics

        return timed(run)

    def loss(self) -> float:
        """Seconds of decoding, binning, loss and its gradient."""
        return timed(lambda: self._loss(self._raw, self._batch))

    def inference(self) -> float:
        """Seconds of network and decoding of the same images."""
        images = self._batch["image"]
        return timed(lambda: self._inference(self._state.variables, images))


def operations(spec: ModelSpec) -> float:
    """Multiplications and additions of the convolutions of an image, forward."""
    backbone = get_backbone(spec.architecture)
    assert isinstance(backbone, ConvBackbone)
    total, channels = 0, spec.channels
    for index, block in enumerate(backbone.blocks):
        layers = [layer for each in backbone.blocks[: index + 1] for layer in each.layers()]
        rows, columns = convolved_hw(spec.image_hw, layers)
        total += 2 * rows * columns * 9 * channels * block.channels
        channels = block.channels
    rows, columns = spec.grid_hw
    return total + 2 * rows * columns * channels * (5 + len(spec.class_names))


def matrix_rate(dtype: str) -> float:
    """Operations per second of the device in one large matrix product."""
    size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    matrix = jax.numpy.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    timed(lambda: product(matrix, matrix))
    return 2 * size**3 / min(timed(lambda: product(matrix, matrix)) for _ in range(10))


class Twin:
    """The PyTorch process."""

    def __init__(self, python: str, job: dict, *, huge_pages: bool) -> None:
        script = Path(__file__).with_name("torch_twin.py")
        names = os.environ if huge_pages else os.environ.keys() - {"GLIBC_TUNABLES"}
        self._process = subprocess.Popen(
            [python, str(script)],
            env={name: os.environ[name] for name in names},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._send(json.dumps(job))
        assert self._receive() == "ready"

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _receive(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps."""
        self._send(str(count))
        return json.loads(self._receive())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(args: argparse.Namespace) -> dict:
    """Medians over interleaved rounds."""
    values = base.get_config().to_dict()
    values["model"].update(name=args.model, dtype=args.dtype)
    config = from_mapping(values)
    ours = Ours(config, args.batch, tuple(args.image_hw), args.boxes)
    twin = None
    if args.torch_python:
        backbone = get_backbone(args.model)
        assert isinstance(backbone, ConvBackbone)
        job = {
            "threads": os.cpu_count(),
            "batch": args.batch,
            "dtype": args.dtype,
            "image_hw": args.image_hw,
            "image_channels": 1,
            "outputs": 12,
            "blocks": [dataclasses.asdict(block) for block in backbone.blocks],
        }
        twin = Twin(args.torch_python, job, huge_pages=args.torch_huge_pages)
    ours_seconds, loss_seconds, inference_seconds, twin_seconds, ratios = [], [], [], [], []
    for _ in range(args.rounds):
        # Idle threads of the other process spin for a while before they sleep.
        time.sleep(args.pause)
        round_seconds = [ours.step() for _ in range(args.steps)]
        ours_seconds += round_seconds
        loss_seconds += [ours.loss() for _ in range(args.steps)]
        inference_seconds += [ours.inference() for _ in range(args.steps)]
        if twin is not None:
            time.sleep(args.pause)
            twin_round = twin.steps(args.steps)
            twin_seconds += twin_round
            ratios.append(statistics.median(round_seconds) / statistics.median(twin_round))
    if twin is not None:
        twin.close()
    if args.trace:
        with jax.profiler.trace(args.trace):
            for _ in range(args.steps):
                ours.step()
    step, loss = statistics.median(ours_seconds), statistics.median(loss_seconds)
    rate = matrix_rate(args.dtype)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {jax.devices()[0].device_kind}",
        "model": args.model,
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "torch_huge_pages": args.torch_huge_pages,
        "batch": args.batch,
        "dtype": args.dtype,
        "image_hw": list(args.image_hw),
        "matrix_tera_operations_per_second": rate / 1e12,
        "share_of_matrix_rate": 3 * operations(ours.spec) * args.batch / step / rate,
        "step_seconds": step,
        "step_images_per_second": args.batch / step,
        "binning_and_loss_seconds": loss,
        "binning_and_loss_share": loss / step,
        "inference_images_per_second": args.batch / statistics.median(inference_seconds),
    }
    if ratios:
        result |= {
            "torch_step_seconds": statistics.median(twin_seconds),
            "ratio_to_torch": statistics.median(ratios),
            "ratio_lowest": min(ratios),
            "ratio_highest": max(ratios),
        }
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="interpreter that has PyTorch; without it, no ratio")
    parser.add_argument("--model", default="base_model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-hw", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--boxes", type=int, default=30)
    parser.add_argument(
        "--torch-huge-pages", action="store_true", help="PyTorch gets GLIBC_TUNABLES, too"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12, help="steps of each in a round")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between rounds")
    parser.add_argument(
        "--trace", type=Path, help="also write a profile of some steps here, for xprof"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    result = measure(args)
    for name, value in result.items():
        print(f"{name:<34}{value:.4g}" if isinstance(value, float) else f"{name:<34}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
