"""Seconds from the command to the end of its first training step: with an empty cache, and again.

    python benchmarks/start.py [--rounds 3] [--json FILE]

Each start is a process of its own that trains base_model on frames of 240x320, batch 8, and ends
after one step. The first of a round traces and compiles everything, the second finds it done. The
frames are drawn before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


FLAGS = ("--config.data.image_hw=240,320", "--config.train.batch_size=8", "--config.data.workers=0")


def train_one_step() -> None:
    """The command `train`, which leaves after a step."""
    from yogo_jax.startup import start_jax
    from yogo_jax.train import main

    # Before the import of what it is to act on, as the command does.
    start_jax()
    import jax

    from yogo_jax.training import trainer

    def leave(_meter: object, _step: int, _steps: int, metrics: object) -> None:
        jax.block_until_ready(metrics)
        os._exit(0)

    trainer.Meter.add = leave  # type: ignore[method-assign]
    main(sys.argv[2:])


def seconds_to_first_step(folder: Path, cache: Path) -> float:
    """Of one start, with what lies in the cache."""
    base = Path(__file__).parents[1] / "configs" / "base.py"
    command = [sys.executable, __file__, "--train", "--config", str(base), *FLAGS]
    command += ["--workdir", str(folder / "run"), "--config.train.resume=never"]
    began = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "YOGO_JAX_CACHE": str(cache)},
    )
    seconds = time.perf_counter() - began
    subprocess.run(["rm", "-r", str(folder / "run")], check=True)
    return seconds


def main() -> None:
    """Prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    times: dict[str, list[float]] = {"compiling": [], "compiled before": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), Path(scratch) / "cache"
        seconds_to_first_step(folder, cache)  # draws the frames
        for _ in range(args.rounds):
            subprocess.run(["rm", "-rf", cache / "compilations"], check=True)
            for each in times.values():
                each.append(seconds_to_first_step(folder, cache))
    for name, each in times.items():
        print(f"{name:<18}{statistics.median(each):>6.1f} s ({min(each):.1f} to {max(each):.1f})")
    if args.json:
        args.json.write_text(json.dumps(times, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_one_step()
    else:
        main()
