"""Compares exported models with their checkpoint, and tells what half precision does to it.

The reference is the network as it was trained, in JAX: not folded, not transposed. An exported
model gets the same frames. Its outputs are compared cell by cell, and as detections after NMS.
The stick computes in FP16, so the range of each layer is measured, too, before a stick is at hand.
"""

import ctypes
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from bridge.frames import Strips
from bridge.runtime import OnnxModel, OpenVinoModel
from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.postprocess import detections_of, select_cells
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.mean_ap import MEAN_AP_OBJECTNESS, MeanAveragePrecision


# Two boxes of nearly one score may change places in the NMS, and another of them is suppressed:
# found by both is an object on which both have a box. Where that box lies is compared by cells.
_MATCH_IOU = 0.45
_BOXES_AT_A_TIME = 256
# What grows over the largest becomes infinite, what falls under half of the smallest becomes 0.
_FP16_LARGEST = float(np.finfo(np.float16).max)
_FP16_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The largest differences at which a model passes.

    Attributes:
      box: of a corner, as a fraction of the image.
      objectness: of a cell.
      class_prob: of a class in a cell.
      detections: share of them that may be lost, gained or of another class. Where hundreds lie
        over each other, one that changes places in the NMS makes others come and go.
    """

    box: float
    objectness: float
    class_prob: float
    detections: float = 0.01


# Rounding of another order of the same sums, of pixels up to 255 and sizes behind an exponential.
FP32_TOLERANCE = Tolerance(box=1e-3, objectness=1e-3, class_prob=1e-3)
# Kernels of 11 bits. Single cells without an object move most; detections hardly move.
FP16_TOLERANCE = Tolerance(box=3e-2, objectness=1e-1, class_prob=1.5e-1)


def outputs_and_ranges(
    spec: ModelSpec, variables: Mapping[str, Any], frames: UInt8[np.ndarray, "n h w c"]
) -> tuple[Float[np.ndarray, "n outputs gh gw"], list[dict[str, Any]]]:
    """Outputs for frames, the range of each layer's, and what FP16 would make of them.

    Both at once, because a large network takes seconds a frame.

    Args:
      spec: of the frames.
      variables: of the network.
      frames: pixels.

    Returns:
      The outputs in the layout of exported models; and per layer `name`, `largest` (magnitude),
      `overflow_share` of values that would become infinite and `underflow_share` of values other
      than 0 that would become 0.
    """

    # Weights are an argument: as constants of the function a large network would fill the memory.
    @jax.jit
    def run(weights: Mapping[str, Any], frame: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        raw, state = spec.network().apply(
            weights, frame, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        layers = _by_name(state["intermediates"])
        predictions = spec.decode(raw)
        layers["decode/sizes"] = predictions.boxes_cxcywh[..., 2:]
        summaries = {name: _summary(outputs) for name, outputs in layers.items()}
        return spec.layout(predictions), summaries

    # One by one: the activations of all frames at once may not fit.
    both = [jax.device_get(run(variables, frame[None])) for frame in frames]
    per_frame = [summaries for _, summaries in both]
    ranges = []
    for name in per_frame[0]:
        largest, overflow, underflow = np.transpose([each[name] for each in per_frame])
        ranges.append(
            {
                "name": name,
                "largest": float(largest.max()),
                "overflow_share": float(overflow.mean()),
                "underflow_share": float(underflow.mean()),
            }
        )
    return np.concatenate([outputs for outputs, _ in both]), ranges


def _by_name(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Outputs of the layers that an exported network has, in order of their names."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(intermediates))
    named: dict[str, jax.Array] = {}
    for path, outputs in leaves:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        named["/".join(name for name in names if name != "__call__") or "network"] = outputs
    # A convolution before a batch norm is one with it when exported: its own range does not occur.
    normed = {name.removesuffix("/norm") for name in named if name.endswith("/norm")}
    return {
        name: outputs
        for name, outputs in named.items()
        if not (name.endswith("/conv") and name.removesuffix("/conv") in normed)
        and "Dropout" not in name
    }


def _summary(outputs: jax.Array) -> jax.Array:
    """Largest magnitude, and the shares that overflow and underflow."""
    magnitude = jnp.abs(outputs)
    overflow = (magnitude > _FP16_LARGEST).mean()
    underflow = ((magnitude > 0) & (magnitude < _FP16_SMALLEST / 2)).mean()
    return jnp.stack([magnitude.max(), overflow, underflow])


def compare(
    expected: Float[np.ndarray, "n outputs gh gw"],
    found: Float[np.ndarray, "n outputs gh gw"],
    spec: ModelSpec,
    tolerance: Tolerance,
) -> dict[str, Any]:
    """Differences of a model's outputs from the reference, as plain values.

    Boxes are cut at the edges of the image before they are compared: a size behind an exponential
    may be anything in cells without an object.

    Returns:
      `box_px`, `objectness` and `class_prob` with `largest` and `mean`; `detections` of the
      reference and `detections_lost` and `detections_gained` by the model, those left out that lie
      within the tolerance of the threshold; `classes_changed` among the others; `passed`.
    """
    rows, columns = spec.image_hw
    scale = np.asarray((columns, rows, columns, rows), np.float32).reshape(1, 4, 1, 1)
    boxes = np.abs(_corners(found) - _corners(expected))
    objectness = np.abs(found[:, 4] - expected[:, 4])
    class_probs = np.abs(found[:, 5:] - expected[:, 5:])
    detections = _compare_detections(expected, found, tolerance)
    changes = ("detections_lost", "detections_gained", "classes_changed")
    most_changes = tolerance.detections * detections["detections"]
    return {
        "box_px": _largest_and_mean(boxes * scale),
        "objectness": _largest_and_mean(objectness),
        "class_prob": _largest_and_mean(class_probs),
        **detections,
        # Written so that a NaN does not pass.
        "passed": bool(
            boxes.max() <= tolerance.box
            and objectness.max() <= tolerance.objectness
            and class_probs.max() <= tolerance.class_prob
            and max(detections[key] for key in changes) <= most_changes
        ),
    }


def _corners(outputs: np.ndarray) -> np.ndarray:
    """Corners of all cells, cut at the edges of the image, [n 4 gh gw]."""
    return cxcywh_to_xyxy(outputs[:, :4].transpose(0, 2, 3, 1)).clip(0, 1).transpose(0, 3, 1, 2)


def _largest_and_mean(differences: np.ndarray) -> dict[str, float]:
    return {"largest": float(differences.max()), "mean": float(differences.mean())}


def _compare_detections(
    expected: np.ndarray, found: np.ndarray, tolerance: Tolerance
) -> dict[str, int]:
    thresholds = Thresholds()
    counts = {"detections": 0, "detections_lost": 0, "detections_gained": 0, "classes_changed": 0}
    for pair in zip(expected, found, strict=True):
        ours, theirs = (select_cells(outputs, thresholds) for outputs in pair)
        counts["detections"] += len(ours.objectness)
        # Cut at the edges of the image: of a size without bounds the area is infinite. And boxes
        # within the tolerance are the same, though slivers far below a pixel have no overlap.
        a, b = (each.boxes_xyxy.clip(0, 1) for each in (ours, theirs))
        overlap = np.zeros((len(a), len(b)), np.float32)
        distance = np.zeros((len(a), len(b)), np.float32)
        # In parts: of thousands of boxes, all at once would take more memory than the network.
        for start in range(0, len(a), _BOXES_AT_A_TIME):
            rows = slice(start, start + _BOXES_AT_A_TIME)
            overlap[rows] = iou(a[rows, None], b[None])
            distance[rows] = np.abs(a[rows, None] - b[None]).max(-1)
        overlap = np.where(distance <= tolerance.box, 1.0, overlap)
        clear = [
            each.objectness > thresholds.objectness + tolerance.objectness
            for each in (ours, theirs)
        ]
        lost = overlap.max(1, initial=0) < _MATCH_IOU
        counts["detections_lost"] += int((lost & clear[0]).sum())
        gained = overlap.max(0, initial=0) < _MATCH_IOU
        counts["detections_gained"] += int((gained & clear[1]).sum())
        for index in np.flatnonzero(~lost):
            # Cut at the edges, several may be the same box.
            probs = ours.class_probs[index]
            others = theirs.class_probs[overlap[index] == overlap[index].max()]
            second, first = np.sort(probs)[-2:] if len(probs) > 1 else (0.0, probs[0])
            changed = (others.argmax(-1) != probs.argmax()).all()
            counts["classes_changed"] += int(changed and first - second > tolerance.class_prob)
    return counts


def mean_ap_of(
    spec: ModelSpec, model: OnnxModel | OpenVinoModel, labelled: Strips
) -> dict[str, Any]:
    """COCO's mean AP of an exported model over labelled images, as `yogo_jax.evaluate` has it."""
    mean_ap = MeanAveragePrecision(spec.class_names)
    thresholds = Thresholds(objectness=MEAN_AP_OBJECTNESS)
    for start in range(0, len(labelled), model.batch_size):
        indices = range(start, min(start + model.batch_size, len(labelled)))
        outputs = model.run(np.stack([labelled.frame(i) for i in indices]))
        for i, output in zip(indices, outputs, strict=True):
            found = detections_of(
                output, thresholds, class_names=spec.class_names, image_hw=spec.image_hw
            )
            labels = labelled.labels_of(i)
            mean_ap.update(found.boxes_xyxy, found.objectness, found.class_probs, *labels)
    return mean_ap.compute()


def verify_files(
    spec: ModelSpec,
    reference: tuple[Float[np.ndarray, "n outputs gh gw"], list[dict[str, Any]]],
    frames: Mapping[str, UInt8[np.ndarray, "n h w c"]],
    *,
    onnx_path: Path,
    xml_path: Path,
    half_precision: bool,
    for_ncs2: bool,
    quantized_on: Strips | None = None,
    max_map_loss: float,
) -> dict[str, Any]:
    """Runs the written models on frames and compares them with the checkpoint.

    A quantized IR differs in every cell, so it is judged by its mean AP instead, and `passed` of
    its rows is None.

    Args:
      spec: of the images served.
      reference: outputs of the checkpoint for all frames, and the range of each layer, from
        `outputs_and_ranges`.
      frames: of each source of them, by its name.
      onnx_path: computes in FP32.
      xml_path: the IR, run by OpenVINO on this CPU in FP32.
      half_precision: whether the kernels of the IR are FP16, or less.
      for_ncs2: whether an activation out of the range of FP16 is a failure.
      quantized_on: labelled validation images, if the IR is quantized.
      max_map_loss: mAP50 that the IR may lose on them against the ONNX model, which is not.

    Returns:
      Plain values: `passed`, `models` with the differences by model and source of frames,
      `half_precision` with the range of each layer; `mean_ap`, if quantized, with `before`, `after`
      and the `loss` of mAP50.
    """
    outputs, layers = reference
    ends = np.cumsum([len(images) for images in frames.values()])
    expected = dict(zip(frames, np.split(outputs, ends[:-1]), strict=True))
    give_back_freed_memory()
    tolerances = {
        "onnx": FP32_TOLERANCE,
        "openvino": FP16_TOLERANCE if half_precision else FP32_TOLERANCE,
    }
    rows: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    # One after the other: a large network fits into memory a few times only.
    for name, tolerance in tolerances.items():
        model: OnnxModel | OpenVinoModel
        if name == "onnx":
            model = OnnxModel(onnx_path, keep_memory=False)
        else:
            model = OpenVinoModel(xml_path, frames_in_flight=1)
        for source, images in frames.items():
            row = {"model": name, "frames": source, "images": len(images)}
            row |= compare(expected[source], model.run(images), spec, tolerance)
            if name == "openvino" and quantized_on is not None:
                row["passed"] = None
            rows.append(row)
        if quantized_on is not None:
            scores.append(mean_ap_of(spec, model, quantized_on))
        del model
        give_back_freed_memory()
    overflowing = [layer["name"] for layer in layers if layer["overflow_share"] > 0]
    passed = not (for_ncs2 and overflowing) and all(row["passed"] is not False for row in rows)
    verification: dict[str, Any] = {
        "passed": passed,
        "models": rows,
        "half_precision": {"overflowing_layers": overflowing, "layers": layers},
        "tolerances": {name: dataclasses.asdict(each) for name, each in tolerances.items()},
    }
    if quantized_on is not None:
        before, after = scores
        loss = before["mAP50"] - after["mAP50"]
        verification["mean_ap"] = {
            "images": len(quantized_on),
            "before": before,
            "after": after,
            "loss": loss,
        }
        verification["passed"] = passed and loss <= max_map_loss
    return verification


def format_verification(verification: Mapping[str, Any]) -> str:
    """The verification as a table for the terminal."""
    head = f"{'model':<10}{'frames':<12}{'box px':>10}{'objectness':>12}{'class prob':>12}"
    lines = [head + f"{'found':>8}{'lost':>6}{'gained':>8}{'changed':>9}"]
    for row in verification["models"]:
        lines.append(
            f"{row['model']:<10}{row['frames']:<12}{row['box_px']['largest']:>10.2g}"
            f"{row['objectness']['largest']:>12.2g}{row['class_prob']['largest']:>12.2g}"
            f"{row['detections']:>8}{row['detections_lost']:>6}{row['detections_gained']:>8}"
            f"{row['classes_changed']:>9}{'  over tolerance' if row['passed'] is False else ''}"
        )
    if "mean_ap" in verification:
        scores = verification["mean_ap"]
        before, after = (
            f"mAP50 {scores[key]['mAP50']:.3f}, mAP50-95 {scores[key]['mAP50_95']:.3f}"
            for key in ("before", "after")
        )
        lines.append(f"{scores['images']} validation images: {before}; in INT8 {after}")
    layers = verification["half_precision"]["layers"]
    widest = max(layers, key=lambda layer: layer["largest"])
    lines.append(f"largest activation {widest['largest']:.4g} in {widest['name']}")
    for layer in layers:
        if layer["overflow_share"] or layer["underflow_share"] > 0.01:
            lines.append(
                f"in FP16 {layer['name']}: {layer['overflow_share']:.2%} overflow, "
                f"{layer['underflow_share']:.2%} become 0"
            )
    return "\n".join(lines)


def give_back_freed_memory() -> None:
    """Asks the C library for what it keeps of freed memory, where it can be asked.

    The GNU C library keeps small pieces for later. After a large network was written these are as
    much as the network three times over, beside which its verification would need 2 GiB.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
