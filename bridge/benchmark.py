"""Times exported models against each other, fed as the instrument feeds them.

    python -m bridge.benchmark A.xml [B.xml | B.onnx …] [--output FILE.json]

Rounds of all models follow each other in turn, so that what else the machine does falls on all of
them; ratios are to the first model, of the same round.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError, check_at_least
from yogo_jax.files import path_flag


SUFFIXES = (".xml", ".onnx")
WARM_UP_SECONDS = 0.5
PACED_SECONDS = 5.0


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m bridge.benchmark",
        description="Frames/s and latencies of exported models, in interleaved rounds.",
    )
    add = parser.add_argument
    add("models", type=path_flag, nargs="+", metavar="MODEL", help="an IR (.xml) or an .onnx")
    add("--rounds", type=int, default=7, help="default: %(default)s")
    add("--seconds", type=float, default=2.0, help="of one measurement; default: %(default)s")
    add("--frame-rate", type=float, default=30.0, help="of the paced run; default: %(default)s")
    add(
        "--precision",
        choices=("f32", "bf16", "f16"),
        default="f32",
        help="what OpenVINO computes in; kernels of INT8 stay so; default: %(default)s",
    )
    add("--device", default="CPU", help="of OpenVINO; default: %(default)s")
    add("--output", type=path_flag, metavar="FILE.json", help="where to write the figures as well")
    return parser


class InstrumentModel:
    """A model with u8 NHWC frames in and f16 out, as the instrument's software sets it up."""

    def __init__(self, path: Path, *, hint: str, precision: str, device: str) -> None:
        from bridge.quiet_openvino import ov

        core = ov.Core()
        try:
            steps = ov.preprocess.PrePostProcessor(core.read_model(path))
            steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout("NCHW"))
            steps.output().tensor().set_element_type(ov.Type.f16)
            options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": precision}
            self.compiled = core.compile_model(steps.build(), device, options)
            self.frame_shape = tuple(self.compiled.input(0).shape)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: OpenVINO cannot run it on {device} ({reason})") from None
        used = self.compiled.get_property("INFERENCE_PRECISION_HINT")
        if used != getattr(ov.Type, precision):
            raise UserError(
                f"--precision {precision}: {device} computes in {used.get_type_name()} instead; "
                "choose another"
            )
        if self.frame_shape[0] != 1:
            raise UserError(
                f"{path}: takes {self.frame_shape[0]} images a call, but the instrument gives one "
                "frame at a time: export with --batch 1"
            )
        self.queue = ov.AsyncInferQueue(self.compiled)

    def run_queue(self, frames: Any, may_start: Callable[[int], bool | None]) -> list[float]:
        """Latencies of frames that go through the queue.

        Args:
          frames: uint8 [n b h w c], taken in turn.
          may_start: of the number of a frame: True starts it, None passes it over, False ends.
        """
        latencies: list[float] = []
        self.queue.set_callback(lambda _, began: latencies.append(time.perf_counter() - began))
        index = 0
        while (answer := may_start(index)) is not False:
            if answer:
                # Waits for a free request, which is no part of the latency of the frame.
                self.queue.get_idle_request_id()
                self.queue.start_async({0: frames[index % len(frames)]}, time.perf_counter())
            index += 1
        self.queue.wait_all()
        return latencies


def random_frames(model: InstrumentModel, count: int = 4) -> Any:
    """Batches of frames of a model's size, uint8 [count b h w c]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, *model.frame_shape), np.uint8)


def measure_throughput(model: InstrumentModel, frames: Any, seconds: float) -> float:
    """Frames per second with the queue always full."""
    began = time.perf_counter()
    latencies = model.run_queue(frames, lambda _: time.perf_counter() - began < seconds)
    elapsed = time.perf_counter() - began
    return len(latencies) / elapsed


def measure_latency(model: InstrumentModel, frames: Any, seconds: float) -> list[float]:
    """Seconds of frames that are computed one after the other."""
    request = model.compiled.create_infer_request()
    latencies: list[float] = []
    began = time.perf_counter()
    while (start := time.perf_counter()) - began < seconds or not latencies:
        request.infer({0: frames[len(latencies) % len(frames)]})
        latencies.append(time.perf_counter() - start)
    return latencies


def measure_paced(
    model: InstrumentModel, frames: Any, seconds: float, frame_rate: float
) -> tuple[int, list[float]]:
    """Frames dropped by a camera that does not wait, and the latencies of the others."""
    count = max(round(seconds * frame_rate), 1)
    dropped = 0
    began = time.perf_counter()

    def may_start(index: int) -> bool | None:
        nonlocal dropped
        if index == count:
            return False
        delay = began + index / frame_rate - time.perf_counter()
        if delay > 0:
            time.sleep(delay)
        if model.queue.is_ready():
            return True
        dropped += 1
        return None

    latencies = model.run_queue(frames, may_start)
    return dropped, latencies


def benchmark(
    models: Sequence[Path],
    *,
    rounds: int = 7,
    seconds: float = 2.0,
    frame_rate: float = 30.0,
    precision: str = "f32",
    device: str = "CPU",
) -> dict[str, Any]:
    """Figures of all models, as plain values; arguments are the flags.

    Raises:
      UserError: a value is out of range, or OpenVINO cannot run a model.
    """
    check_at_least(1, rounds=rounds)
    check_at_least(0.01, seconds=seconds)
    check_at_least(0.1, frame_rate=frame_rate)
    for path in models:
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: expected a model as .xml or .onnx")
        if not path.is_file():
            raise UserError(f"{path}: does not exist")
    options = {"precision": precision, "device": device}
    names = [str(path) for path in models]
    fast = [InstrumentModel(path, hint="THROUGHPUT", **options) for path in models]
    prompt = [InstrumentModel(path, hint="LATENCY", **options) for path in models]
    frames = [random_frames(model) for model in fast]
    for model, images in zip([*fast, *prompt], [*frames, *frames], strict=True):
        measure_throughput(model, images, WARM_UP_SECONDS)
    rates: list[list[float]] = [[] for _ in names]
    latencies: list[list[float]] = [[] for _ in names]
    for _ in range(rounds):
        for index, images in enumerate(frames):
            rates[index].append(measure_throughput(fast[index], images, seconds))
        for index, images in enumerate(frames):
            latencies[index] += measure_latency(prompt[index], images, seconds)
    rows = []
    for index, name in enumerate(names):
        dropped, paced = measure_paced(fast[index], frames[index], PACED_SECONDS, frame_rate)
        ratios = [own / first for own, first in zip(rates[index], rates[0], strict=True)]
        rows.append(
            {
                "model": name,
                "frames_per_second": statistics.median(rates[index]),
                "ratio": statistics.median(ratios),
                "ratio_lowest": min(ratios),
                "ratio_highest": max(ratios),
                "latency_ms": _percentiles(latencies[index]),
                "paced_dropped": dropped,
                "paced_frames": dropped + len(paced),
                "paced_latency_ms": _percentiles(paced),
                "runtime_nodes": len(fast[index].compiled.get_runtime_model().get_ops()),
            }
        )
    return {"rounds": rounds, "frame_rate": frame_rate, **options, "models": rows}


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in ms; None of nothing."""
    import numpy as np

    points = (50, 95, 99)
    if not seconds:
        return {f"p{point}": None for point in points}
    values = np.percentile(np.asarray(seconds) * 1e3, points)
    return {f"p{point}": float(value) for point, value in zip(points, values, strict=True)}


def format_benchmark(figures: dict[str, Any]) -> str:
    """The figures as a table for the terminal."""
    lines = [
        f"{figures['device']}, {figures['precision']}, {figures['rounds']} interleaved rounds; "
        "ratio to the first (lowest to highest)",
        f"{'frames/s':>9}  {'ratio':<20}{'p50':>8}{'p95':>8}{'p99':>8} ms"
        f"{'dropped':>12}{'nodes':>7}  model",
    ]
    for row in figures["models"]:
        spread = f"{row['ratio']:.3f} ({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        times = "".join(f"{value:>8.2f}" for value in row["latency_ms"].values())
        dropped = f"{row['paced_dropped']}/{row['paced_frames']}"
        lines.append(
            f"{row['frames_per_second']:>9.1f}  {spread:<20}{times}   {dropped:>12}"
            f"{row['runtime_nodes']:>7}  {row['model']}"
        )
    lines.append(
        f"dropped: of frames that came at {figures['frame_rate']:g}/s and found no free request"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        if args.output is not None and not args.output.parent.is_dir():
            raise UserError(f"--output {args.output}: {args.output.parent} is no folder")
        figures = benchmark(
            args.models,
            rounds=args.rounds,
            seconds=args.seconds,
            frame_rate=args.frame_rate,
            precision=args.precision,
            device=args.device,
        )
        print(format_benchmark(figures))
        if args.output is not None:
            from yogo_jax.files import write_json

            write_json(args.output, figures)
            print(f"written {args.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
