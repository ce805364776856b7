"""Milliseconds a frame of decode, NMS and the instrument's array, against a loop.

    python benchmarks/postprocess.py [--frames 20] [--rounds 5] [--json FILE]

Also the selection alone on the host (NumPy, as `infer` does it) against the compiled one of the
device, which an evaluation uses, for several numbers of candidates; both give the same boxes.

The grid is that of a whole frame, 97x129 with seven classes. Each of 60 cells of blood has a box in
its own grid cell and in the four beside it, nearly of one size, so that NMS has work to do. The
loop is plain Python over cells and boxes, as one would write it down from the paper; both find the
same.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.detections import Detections, Thresholds
from yogo_jax.detector.nms import PaddedDetections, select
from yogo_jax.detector.postprocess import detections_of, select_cells
from yogo_jax.detector.spec import ModelSpec


SPEC = ModelSpec(
    architecture="base_model",
    class_names=("healthy", "ring", "trophozoite", "schizont", "gametocyte", "wbc", "misc"),
    image_hw=(772, 1032),
    anchor_wh=(0.0425, 0.0555),
    rgb=False,
    normalize_images=True,
)
CELLS = 60
OBJECTNESS, IOU = 0.5, 0.5


def draw_raw(rng: np.random.Generator) -> np.ndarray:
    """Raw channels of the head for a frame, float32 [gh gw 12]."""
    rows, columns = SPEC.grid_hw
    raw = rng.normal(0, 1, (rows, columns, 5 + len(SPEC.class_names))).astype(np.float32)
    raw[..., 2:4] *= 0.02
    raw[..., 4] = rng.uniform(-9, -4, (rows, columns))
    at_rows, at_columns = rng.integers(1, rows - 1, CELLS), rng.integers(1, columns - 1, CELLS)
    for row, column in zip(at_rows, at_columns, strict=True):
        raw[row - 1 : row + 2, column, 4] = rng.uniform(0.5, 3, 3)
        raw[row, column - 1 : column + 2, 4] = rng.uniform(0.5, 3, 3)
        raw[row, column, 4] = 5
    return raw


def as_array(found: Detections, image_id: int) -> np.ndarray:
    """The columns of the instrument's array, float32 [15 n]."""
    rows, columns = SPEC.image_hw
    scale = np.asarray((columns, rows, columns, rows), np.float32).reshape(4, 1)
    return np.concatenate(
        [
            np.full((1, len(found.objectness)), image_id, np.float32),
            found.boxes_xyxy.T * scale,
            found.objectness[None],
            found.class_ids[None],
            found.class_probs.max(-1, initial=0)[None],
            found.class_probs.T,
        ]
    )


_outputs = jax.jit(
    lambda raw: jnp.concatenate(
        [
            (decoded := SPEC.decode(raw[None])).boxes_cxcywh[0],
            decoded.objectness[0, ..., None],
            jax.nn.softmax(decoded.class_logits[0]),
        ],
        axis=-1,
    ).transpose(2, 0, 1)
)


def ours(raw: np.ndarray, image_id: int) -> np.ndarray:
    """As `infer` does it."""
    return as_array(
        detections_of(
            np.asarray(_outputs(raw)),
            Thresholds(),
            class_names=SPEC.class_names,
            image_hw=SPEC.image_hw,
        ),
        image_id,
    )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _overlap(a: list[float], b: list[float]) -> float:
    width = min(a[3], b[3]) - max(a[1], b[1])
    height = min(a[4], b[4]) - max(a[2], b[2])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[3] - a[1]) * (a[4] - a[2]) + (b[3] - b[1]) * (b[4] - b[2])
    return width * height / (area - width * height)


def by_loop(raw: list, image_id: int) -> list[list[float]]:
    """The same cell by cell and box by box; a row a detection."""
    rows, columns = SPEC.grid_hw
    height, width = SPEC.image_hw
    boxes = []
    for row in range(rows):
        for column in range(columns):
            tx, ty, tw, th, to, *logits = raw[row][column]
            x, y = (column + _sigmoid(tx)) / columns, (row + _sigmoid(ty)) / rows
            w, h = SPEC.anchor_wh[0] * math.exp(tw), SPEC.anchor_wh[1] * math.exp(th)
            largest = max(logits)
            powers = [math.exp(each - largest) for each in logits]
            probs = [each / sum(powers) for each in powers]
            objectness = _sigmoid(to)
            if objectness > OBJECTNESS:
                corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                best = max(probs)
                called = probs.index(best)
                boxes.append([image_id, *corners, objectness, called, best, *probs])
    boxes.sort(key=lambda box: -box[5] * box[7])
    kept: list[list[float]] = []
    for box in boxes:
        if all(_overlap(box, other) <= IOU for other in kept):
            kept.append(box)
    for box in kept:
        box[1], box[3] = box[1] * width, box[3] * width
        box[2], box[4] = box[2] * height, box[4] * height
    return kept


# Cells of blood of which each has five candidates.
CANDIDATE_CELLS = (30, 60, 200, 600, 2400)
_FEWEST_CANDIDATES = 64


def draw_outputs(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Outputs of a frame in which `cells` cells of blood have about five candidates each."""
    rows, columns = SPEC.grid_hw
    outputs = np.empty((5 + len(SPEC.class_names), rows, columns), np.float32)
    outputs[0] = (np.arange(columns) + rng.random((rows, columns))) / columns
    outputs[1] = (np.arange(rows)[:, None] + rng.random((rows, columns))) / rows
    outputs[2:4] = np.reshape(SPEC.anchor_wh, (2, 1, 1)) * rng.normal(1, 0.02, (2, rows, columns))
    outputs[4] = 0.01
    at_rows, at_columns = rng.integers(1, rows - 1, cells), rng.integers(1, columns - 1, cells)
    for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        outputs[4, at_rows + down, at_columns + right] = rng.uniform(0.6, 1, cells)
    probs = rng.dirichlet(np.ones(len(SPEC.class_names)), (rows, columns))
    outputs[5:] = probs.transpose(2, 0, 1)
    return outputs


@jax.jit
def _select(rows: jax.Array) -> PaddedDetections:
    return select(
        cxcywh_to_xyxy(rows[:, :4]),
        rows[:, 4],
        rows[:, 5:],
        Thresholds(objectness=OBJECTNESS, iou=IOU),
        max_detections=len(rows),
    )


def by_device(outputs: np.ndarray) -> np.ndarray:
    """Boxes by the compiled selection; candidates are padded to a power of two."""
    cells = outputs.reshape(len(outputs), -1)
    rows = cells[:, cells[4] > OBJECTNESS].T
    size = max(_FEWEST_CANDIDATES, 1 << max(len(rows) - 1, 0).bit_length())
    padded = np.zeros((size, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    found = _select(padded)
    return np.asarray(found.boxes_xyxy)[np.asarray(found.valid)]


def by_host(outputs: np.ndarray) -> np.ndarray:
    """Boxes by NumPy."""
    return select_cells(outputs, Thresholds(objectness=OBJECTNESS, iou=IOU)).boxes_xyxy


def compare_with_device(frames: int, rounds: int) -> None:
    """Prints the milliseconds a frame of both, by number of candidates."""
    print("candidates  detections  host ms  compiled ms  compiled / host")
    for cells in CANDIDATE_CELLS:
        drawn = [draw_outputs(np.random.default_rng(i), cells) for i in range(frames)]
        for outputs in drawn:
            np.testing.assert_array_equal(by_host(outputs), by_device(outputs))
        times: dict[str, list[float]] = {"host": [], "compiled": []}
        for _ in range(rounds):
            for name, work in (("host", by_host), ("compiled", by_device)):
                began = time.perf_counter()
                for outputs in drawn:
                    work(outputs)
                times[name].append(1e3 * (time.perf_counter() - began) / frames)
        candidates = statistics.mean(int((outputs[4] > OBJECTNESS).sum()) for outputs in drawn)
        host, compiled = (statistics.median(each) for each in times.values())
        print(
            f"{candidates:10.0f}{len(by_host(drawn[0])):12d}{host:9.2f}{compiled:13.2f}"
            f"{compiled / host:17.2f}",
            flush=True,
        )


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    frames = [draw_raw(rng) for _ in range(args.frames)]
    lists = [frame.tolist() for frame in frames]
    for index, (frame, values) in enumerate(zip(frames, lists, strict=True)):
        found, expected = ours(frame, index), np.transpose(by_loop(values, index))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-2)
    kept = statistics.mean(ours(frame, 0).shape[1] for frame in frames)
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(args.rounds):
        for name, work, each in (("ours", ours, frames), ("loop", by_loop, lists)):
            began = time.perf_counter()
            for index, frame in enumerate(each):
                work(frame, index)
            seconds[name].append((time.perf_counter() - began) / args.frames)
    ratios = [loop / own for own, loop in zip(seconds["ours"], seconds["loop"], strict=True)]
    print(f"{kept:.0f} detections a frame")
    for name, times in seconds.items():
        print(f"{name}: {1e3 * statistics.median(times):.2f} ms a frame")
    print(
        f"ratio {statistics.median(ratios):.0f} (median of {args.rounds} rounds, "
        f"{min(ratios):.0f} to {max(ratios):.0f})"
    )
    compare_with_device(args.frames, args.rounds)
    if args.json:
        result = {"seconds": seconds, "ratios": ratios, "ratio": statistics.median(ratios)}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
