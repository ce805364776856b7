"""Growth of seconds and peak memory with the data: frames, boxes per frame, classes, image size.

    python benchmarks/growth.py [--kinds startup metrics step] [--frames 100 1000 10000 100000]
        [--labels 200000] [--rounds 3] [--json FILE]

Each figure comes from a process of its own, the median of rounds; its peak memory is that of the
whole process, so what Python, JAX and other libraries take alone is printed as "nothing".

startup   reads a definition with that many label files, as every run does before its first step.
metrics   matches simulated detections with true boxes and computes mean AP, as validations do.
step      one training step of base_model, four images, after compilation.

The exponent is that of a power of the input between the smallest and the largest size: 1 grows as
its input does, less grows slower.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yogo_jax.startup import start_jax


FRAMES, BOXES, CLASSES, IMAGE_HW = 1000, 40, 7, (240, 320)
BOX_COUNTS, CLASS_COUNTS = (10, 100, 1000), (1, 7, 80)
IMAGE_SIZES = ((120, 160), (240, 320), (386, 516), (772, 1032))


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres and sizes of cells that lie apart like those of blood, [count 4]."""
    side = 0.7 / math.sqrt(count)
    return np.concatenate(
        [rng.uniform(side / 2, 1 - side / 2, (count, 2)), np.full((count, 2), side)], axis=1
    )


def write_labels(folder: Path, frames: int, boxes: int) -> Path:
    """A definition with that many label files; all images are one file by other names."""
    rng = np.random.default_rng(0)
    images, labels = folder / "images", folder / "labels"
    images.mkdir()
    labels.mkdir()
    frame, texts = folder / "frame.png", []
    for _ in range(20):
        rows = [
            f"{i % CLASSES} {x:.6f} {y:.6f} {w:.6f} {h:.6f}"
            for i, (x, y, w, h) in enumerate(random_boxes(rng, boxes))
        ]
        texts.append("\n".join(rows) + "\n")
    for index in range(frames):
        if index % 50_000 == 0:  # a file has so many names at most
            frame.unlink(missing_ok=True)
            Image.fromarray(np.zeros((24, 32), np.uint8)).save(frame)
        os.link(frame, images / f"{index:07d}.png")
        (labels / f"{index:07d}.txt").write_text(texts[index % len(texts)])
    definition = folder / "definition.yml"
    names = "".join(f"  - class_{index}\n" for index in range(CLASSES))
    definition.write_text(
        f"class_names:\n{names}dataset_split_fractions:\n  train: 0.8\n  val: 0.1\n  test: 0.1\n"
        "dataset_paths:\n  all:\n    image_path: images\n    label_path: labels\n"
    )
    return definition


def startup(definition: str) -> float:
    """Seconds to read a definition."""
    from configs import base
    from yogo_jax.checkpoint.run_data import prepare_data
    from yogo_jax.config.schema import from_mapping

    values = base.get_config().to_dict()
    values["data"].update(definition=definition, min_box_area=0.0)
    config = from_mapping(values)
    began = time.perf_counter()
    prepare_data(config.data)
    return time.perf_counter() - began


def metrics(frames: int, boxes: int, classes: int) -> float:
    """Seconds to match the boxes of all frames and to compute mean AP."""
    from yogo_jax.metrics.confusion import DetectionMetrics
    from yogo_jax.metrics.mean_ap import MeanAveragePrecision, OriginalMeanAveragePrecision

    names = tuple(f"class_{index}" for index in range(classes))
    # The first match of a process imports what it takes, which does not grow.
    box = np.asarray([[0.0, 0.0, 1.0, 1.0]])
    DetectionMetrics(names).update(box, np.full((1, classes), 1 / classes), box, np.zeros(1, int))
    counts = DetectionMetrics(names)
    mean_aps = MeanAveragePrecision(names), OriginalMeanAveragePrecision(names)
    rng = np.random.default_rng(0)
    seconds = 0.0
    for _ in range(frames):
        cxcywh = random_boxes(rng, boxes)
        labels = np.concatenate(
            [cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], 1
        )
        ids = rng.integers(0, classes, boxes)
        found = labels + rng.normal(0, 0.05, labels.shape) * cxcywh[:, 2:3]
        probs = np.full((boxes, classes), 0.2 / classes)
        probs[np.arange(boxes), ids] += 0.8
        objectness = rng.uniform(0.05, 1, boxes)
        began = time.perf_counter()
        counts.update(found, probs, labels, ids)
        for mean_ap in mean_aps:
            mean_ap.update(found, objectness, probs, labels, ids)
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    counts.compute()
    for mean_ap in mean_aps:
        mean_ap.compute()
    return seconds + time.perf_counter() - began


def step(boxes: int, classes: int, image_hw: tuple[int, int]) -> float:
    """Seconds of a training step, the median of five."""
    from step import Ours

    from configs import base
    from yogo_jax.config.schema import from_mapping

    ours = Ours(from_mapping(base.get_config().to_dict()), 4, image_hw, boxes, classes)
    return statistics.median(ours.step() for _ in range(5))


KINDS: dict[str, Callable[..., float]] = {"startup": startup, "metrics": metrics, "step": step}


def measure(kind: str, rounds: int, **size: Any) -> dict[str, float]:
    """Median seconds and peak memory of a kind of work, in processes of their own."""
    times, peaks = [], []
    for _ in range(rounds):
        command = [sys.executable, __file__, "--one", json.dumps([kind, size])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds, peak = json.loads(done.stdout.splitlines()[-1])
        times.append(seconds)
        peaks.append(peak)
    return {"seconds": statistics.median(times), "peak_mib": statistics.median(peaks)}


def measure_one(kind: str, size: dict[str, Any]) -> None:
    """Prints the seconds and the peak memory of this process."""
    if "image_hw" in size:
        size["image_hw"] = tuple(size["image_hw"])
    # As commands do.
    start_jax()
    seconds = KINDS[kind](**size) if kind in KINDS else 0.0
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def print_group(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of one input that grows, and the exponents."""
    print(f"\n{title:<26}{'seconds':>10}{'peak MiB':>10}")
    for row in rows:
        print(f"{row['name']:<26}{row['seconds']:>10.3f}{row['peak_mib']:>10.0f}")
    first, last = rows[0], rows[-1]
    growth = math.log(last["size"] / first["size"])
    if growth > 0:
        of = [math.log(last[key] / first[key]) / growth for key in ("seconds", "peak_mib")]
        print(f"{'exponent':<26}{of[0]:>10.2f}{of[1]:>10.2f}", flush=True)


def group(
    kind: str, title: str, sizes: list[tuple[str, float, dict[str, Any]]], rounds: int
) -> list[dict[str, Any]]:
    """Rows of one kind over sizes given as (name, amount, arguments)."""
    rows = [
        {"name": name, "size": amount, **measure(kind, rounds, **arguments)}
        for name, amount, arguments in sizes
    ]
    print_group(f"{kind}: {title}", rows)
    return rows


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """All groups that were asked for."""
    rounds = args.rounds
    nothing = measure("nothing", 1)
    print(f"nothing: {nothing['peak_mib']:.0f} MiB")
    result: dict[str, Any] = {"nothing": nothing}
    if "startup" in args.kinds:
        sizes = []
        with tempfile.TemporaryDirectory() as scratch:
            for frames in sorted({*args.frames, *([args.labels] if args.labels else [])}):
                folder = Path(scratch) / str(frames)
                folder.mkdir()
                definition = write_labels(folder, frames, BOXES)
                sizes.append((f"{frames:,}", float(frames), {"definition": str(definition)}))
            result["startup by frames"] = group("startup", "label files", sizes, rounds)
    same = {"frames": FRAMES, "boxes": BOXES, "classes": CLASSES}
    if "metrics" in args.kinds:
        for title, name, values in (
            ("frames", "frames", args.frames),
            ("boxes of a frame", "boxes", BOX_COUNTS),
            ("classes", "classes", CLASS_COUNTS),
        ):
            sizes = [(f"{value:,}", float(value), {**same, name: value}) for value in values]
            result[f"metrics by {name}"] = group("metrics", title, sizes, rounds)
    same = {"boxes": BOXES, "classes": CLASSES, "image_hw": IMAGE_HW}
    if "step" in args.kinds:
        for title, name, numbers in (
            ("boxes of a frame", "boxes", BOX_COUNTS),
            ("classes", "classes", CLASS_COUNTS),
        ):
            sizes = [(f"{value:,}", float(value), {**same, name: value}) for value in numbers]
            result[f"step by {name}"] = group("step", title, sizes, rounds)
        sizes = [
            (f"{height}x{width}", float(height * width), {**same, "image_hw": (height, width)})
            for height, width in IMAGE_SIZES
        ]
        result["step by image_hw"] = group("step", "image size", sizes, rounds)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--frames", type=int, nargs="+", default=(100, 1000, 10_000, 100_000))
    parser.add_argument("--labels", type=int, default=200_000, help="largest start; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure_one(*json.loads(args.one))
        return
    result = measure_all(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
