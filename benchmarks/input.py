"""Frames/s of the input: PNG files decoded at each access, against the same frames from a pack.

    python benchmarks/input.py [--frames 200] [--rounds 5] [--json FILE]

Frames are drawn, 772x1032, and read in one thread in the order of a shuffled epoch, by turns from
the files and from the pack. Both lie in the system's cache of files, as in any epoch but the first
of a data set that fits there.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from yogo_jax.data.images import read_image
from yogo_jax.data.pack import find_pack, make_pack
from yogo_jax.synthetic.flow import CLASS_PROPORTIONS, draw_frame


IMAGE_HW = (772, 1032)


def write_frames(folder: Path, count: int) -> list[str]:
    """PNG files of synthetic frames; returns their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        frame = draw_frame(rng, IMAGE_HW, cells_per_frame=40, class_proportions=CLASS_PROPORTIONS)
        paths.append(str(folder / f"{index:05d}.png"))
        Image.fromarray(frame.image.reshape(IMAGE_HW)).save(paths[-1])
    return paths


def frames_per_second(read: Callable[[int], np.ndarray], order: np.ndarray) -> float:
    """Frames read a second, every byte of them."""
    began = time.perf_counter()
    for index in order:
        read(int(index)).sum()
    return len(order) / (time.perf_counter() - began)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["YOGO_JAX_CACHE"] = scratch
        folder = Path(scratch) / "frames"
        folder.mkdir()
        paths = write_frames(folder, args.frames)
        began = time.perf_counter()
        packed = find_pack(paths, image_hw=IMAGE_HW, rgb=False)
        make_pack(
            packed, paths, image_hw=IMAGE_HW, rgb=False, workers=0, tell=lambda done, total: None
        )
        seconds_to_pack = time.perf_counter() - began

        def decode(index: int) -> np.ndarray:
            return read_image(paths[index], image_hw=IMAGE_HW, rgb=False)

        rng = np.random.default_rng(1)
        rates: dict[str, list[float]] = {"files": [], "pack": []}
        for _ in range(args.rounds):
            order = rng.permutation(args.frames)
            rates["files"].append(
                frames_per_second(
                    lambda i: read_image(paths[i], image_hw=IMAGE_HW, rgb=False), order
                )
            )
            rates["pack"].append(frames_per_second(packed.__getitem__, order))
    ratios = [pack / files for pack, files in zip(rates["pack"], rates["files"], strict=True)]
    result = {
        "frames": args.frames,
        "image_hw": IMAGE_HW,
        "frames_per_second": {name: statistics.median(each) for name, each in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "seconds_to_pack": seconds_to_pack,
    }
    print(f"{'from':<8}{'frames/s':>10}")
    for name, each in rates.items():
        print(f"{name:<8}{statistics.median(each):>10.0f}")
    print(
        f"ratio {result['ratio']:.1f} (median of {args.rounds} rounds, {min(ratios):.1f} to "
        f"{max(ratios):.1f}); packed in {seconds_to_pack:.1f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
