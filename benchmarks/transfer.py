"""Recall and precision of a network on frames that are unlike those it was trained on.

    python benchmarks/transfer.py CHECKPOINT --definition FILE.yml [--leave-out misc]

Frames are taken at their own size and the scale that the network was trained at. Classes do not
count: a box is right if it matches a true one (IoU 0.5). What is left out, dirt by default, is left
out on both sides: its labels, detections named so, and detections that lie on its labels.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from yogo_jax.checkpoint.run_data import evaluation_data
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.data.pipeline import padded_box_count
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.spec import served_spec
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.metrics.confusion import match_boxes
from yogo_jax.metrics.evaluator import Evaluator, ImageResult


def count(image: ImageResult, left_out: int) -> tuple[int, int, int]:
    """Boxes of one image that are found, missed, and found where there is none."""
    named, true = image.found.class_ids != left_out, image.label_class_ids != left_out
    boxes = image.found.boxes_xyxy[named]
    matches = match_boxes(boxes, image.label_boxes_xyxy[true])
    on_left_out = match_boxes(boxes[matches.extra], image.label_boxes_xyxy[~true])
    return len(matches.label_index), len(matches.missed), len(on_left_out.extra)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Recall and precision on one split."""
    folder = find_checkpoint(args.checkpoint)
    metadata = read_metadata(folder)
    spec = served_spec(metadata.model, image_hw=tuple(args.image_hw))
    if args.leave_out not in spec.class_names:
        raise UserError(f"--leave-out: the network knows {', '.join(spec.class_names)}")
    records = getattr(evaluation_data(metadata, args.definition, print), args.split)
    evaluator = Evaluator(
        spec,
        loss_weights=metadata.loss_weights(),
        batch_size=1,
        max_boxes=padded_box_count([records], 0),
        workers=0,
        thresholds=Thresholds(args.obj_thresh, 0.5, 0.0),
    )
    variables = restore_variables(folder, metadata.model)
    images = evaluator.run(variables, records, keep_images=True).images
    left_out = spec.class_names.index(args.leave_out)
    found, missed, extra = map(sum, zip(*(count(each, left_out) for each in images), strict=True))
    return {
        "checkpoint": str(folder),
        "split": args.split,
        "images": len(images),
        "objectness_threshold": args.obj_thresh,
        "found": found,
        "missed": missed,
        "extra": extra,
        "recall": found / max(found + missed, 1),
        "precision": found / max(found + extra, 1),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--definition", required=True, metavar="FILE.yml|synthetic[:OPTIONS]")
    add("--split", choices=("train", "val", "test"), default="test")
    add("--image-hw", type=int, nargs=2, default=(772, 1032), metavar=("H", "W"))
    add("--leave-out", default="misc", metavar="CLASS")
    add("--obj-thresh", type=float, default=0.5)
    args = parser.parse_args()
    with exit_on_user_error():
        figures = measure(args)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
