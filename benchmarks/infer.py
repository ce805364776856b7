"""Frames/s of `infer` against the bare model and against decoding alone; its memory.

    python benchmarks/infer.py [--model MODEL.xml] [--json FILE] [--memory]

In rounds: the IR alone on frames in memory (the queue always full), the frames read and decoded
alone by as many threads, and the whole of `infer` with counts and the table of detections, from
the first frame to the last file. The ratio is to the slower of the two parts, of the same round.
Where other work on the machine comes and goes, the CPU time of a frame tells more: it is measured
too, and its ratio is that of the bare model to `infer`, on cores that are all busy the same. Of the
cores' time while `infer` runs, `cores_busy` is what anything takes, `network_share_of_cores` what
the bare network would.
Without `--model` a base_model of random weights is exported, and the objectness threshold set so
that some 60 cells a frame are above it.

`--memory` runs the command on 500 and on 5,000 frames with a small network instead.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from bridge import to_openvino
from bridge.converted import write_converted
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.inference.frame_sources import open_images
from yogo_jax.inference.models import Model, ModelOptions, load_model
from yogo_jax.inference.pipeline import view_of
from yogo_jax.inference.run import Running, Wanted, infer_frames
from yogo_jax.synthetic.cells import CLASS_NAMES
from yogo_jax.synthetic.flow import CLASS_PROPORTIONS, draw_frame


IMAGE_HW = (772, 1032)
DRAWN = 20  # frames; the others are these, shifted
CANDIDATES = 60
BARE_FRAMES = 60


def write_frames(folder: Path, count: int) -> None:
    """PNG files of synthetic frames."""
    rng = np.random.default_rng(0)
    drawn = [
        draw_frame(rng, IMAGE_HW, cells_per_frame=40, class_proportions=CLASS_PROPORTIONS).image
        for _ in range(min(DRAWN, count))
    ]
    folder.mkdir()
    for i in range(count):
        shifted = np.roll(drawn[i % len(drawn)], 37 * (i // len(drawn)), axis=1)
        Image.fromarray(shifted).save(folder / f"{i:05d}.png")


def export_random(folder: Path, architecture: str) -> Path:
    """The FP32 IR of a network with random weights."""
    spec = ModelSpec(
        architecture=architecture,
        class_names=CLASS_NAMES,
        image_hw=IMAGE_HW,
        anchor_wh=(0.0425, 0.0555),
        rgb=False,
        normalize_images=True,
    )
    variables = init_variables(spec.network(), jax.random.key(0), image_hw=(64, 64), channels=1)
    write_converted(folder / "checkpoint", spec, variables, source="random")
    to_openvino.main([str(folder / "checkpoint"), "--output", str(folder), "--precision", "fp32"])
    return folder / "model.xml"


def fitting_threshold(model: Model, image: np.ndarray) -> float:
    """An objectness that some cells of an image lie above."""
    (outputs,) = model.stream([image[None]])
    return float(np.sort(outputs[0, 4].ravel())[-CANDIDATES])


class Cost(NamedTuple):
    """The cost of a frame: seconds on the clock, and of all cores together."""

    seconds: float
    cpu_seconds: float


@contextmanager
def cost_of(frames: int) -> Iterator[Callable[[], Cost]]:
    """Times a block that goes through a number of frames."""
    began, cpu = time.perf_counter(), time.process_time()
    cost: list[Cost] = []
    yield lambda: cost[0]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    cost.append(Cost(seconds / frames, cpu_seconds / frames))


def bare_cost(model: Model, images: list[np.ndarray]) -> Cost:
    """Of the network alone."""

    def batches() -> Iterator[np.ndarray]:
        for i in range(BARE_FRAMES):
            yield images[i % len(images)][None]

    with cost_of(BARE_FRAMES) as cost:
        for _ in model.stream(batches()):
            pass
    return cost()


def decoding_cost(folder: Path, model: Model, workers: int) -> Cost:
    """Of reading and decoding alone."""
    source = open_images(str(folder), rgb=False)
    assert source.count is not None
    with cost_of(source.count) as cost, ThreadPoolExecutor(workers) as pool:

        def load(index: int) -> None:
            view_of(source.read(index), model.serving)

        for _ in pool.map(load, range(source.count)):
            pass
    return cost()


def infer_cost(
    folder: Path, model: Model, output: Path, workers: int, threshold: float
) -> tuple[Cost, int]:
    """Of everything, and boxes found."""
    source = open_images(str(folder), rgb=False)
    assert source.count is not None
    with cost_of(source.count) as cost:
        summary = infer_frames(
            model,
            source,
            output,
            model_name="benchmark",
            thresholds=Thresholds(objectness=threshold),
            wanted=Wanted(counts=True, csv=True),
            running=Running(workers=workers, say=lambda _: None),
        )
    return cost(), summary["total"]


def measure_speed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rates of all rounds."""
    write_frames(folder / "frames", args.frames)
    xml = args.model or export_random(folder, "base_model")
    model = load_model(xml, ModelOptions())
    source = open_images(str(folder / "frames"), rgb=False)
    images = [view_of(source.read(i), model.serving).image for i in range(min(8, args.frames))]
    threshold = 0.5 if args.model else fitting_threshold(model, images[0])
    rows, cores = [], os.cpu_count() or 1
    for number in range(args.rounds):
        before = bare_cost(model, images)
        decoding = decoding_cost(folder / "frames", model, args.workers)
        whole, boxes = infer_cost(
            folder / "frames", model, folder / f"out{number}", args.workers, threshold
        )
        after = bare_cost(model, images)
        bare = Cost(*map(statistics.mean, zip(before, after, strict=True)))
        row = {
            "bare": 1 / bare.seconds,
            "decoding": 1 / decoding.seconds,
            "infer": 1 / whole.seconds,
            "ratio": max(bare.seconds, decoding.seconds) / whole.seconds,
            "cpu_ms_bare": 1e3 * bare.cpu_seconds,
            "cpu_ms_decoding": 1e3 * decoding.cpu_seconds,
            "cpu_ms_infer": 1e3 * whole.cpu_seconds,
            "cpu_ratio": bare.cpu_seconds / whole.cpu_seconds,
            "cores_busy": whole.cpu_seconds / (cores * whole.seconds),
            "network_share_of_cores": bare.cpu_seconds / (cores * whole.seconds),
        }
        rows.append(row)
        print("  ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    return {
        "frames": args.frames,
        "workers": args.workers,
        "boxes_a_frame": boxes / args.frames,
        **{name: statistics.median(row[name] for row in rows) for name in rows[0]},
        "rounds": rows,
    }


def measure_memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory of the command in a process of its own, in MiB by number of frames."""
    write_frames(folder / "frames", 100)
    xml = export_random(folder, "quarter_filters")
    peaks: dict[str, float] = {}
    for count in (500, 5000):
        files = [folder / "frames" / f"{i % 100:05d}.png" for i in range(count)]
        command = [sys.executable, "-m", "yogo_jax.infer", str(xml), "--images", "-", "--csv"]
        command += ["--save-npy", "--coco", "--count", "--output", str(folder / f"out{count}")]
        command += ["--obj-thresh", "0.6", "--workers", str(args.workers)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            process.stdin.write("\n".join(map(str, files)))
            process.stdin.close()
            while process.poll() is None:
                peaks[str(count)] = peak_mib(process.pid) or peaks[str(count)]
                time.sleep(0.05)
        assert process.returncode == 0
    return {"peak_memory_mib": peaks}


def peak_mib(pid: int) -> float | None:
    """Peak memory of a running process; None once it has ended.

    Not `ru_maxrss`, which counts what this process had when it started the other.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) / 2**10 if found else None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an IR instead of random weights")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_memory if args.memory else measure_speed
        result = measure(args, Path(folder))
    for name, value in result.items():
        print(f"{name:<18}{value:.4g}" if isinstance(value, float) else f"{name:<18}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
