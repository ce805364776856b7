"""Evaluates a checkpoint.

    python -m yogo_jax.evaluate CHECKPOINT --definition FILE.yml --output DIR

Prints a table; writes DIR/metrics.json, DIR/report.html with intervals, curves and the worst
frames, and DIR/pictures/ with boxes found and true.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from yogo_jax.command import as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    from yogo_jax.reports.history import History


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m yogo_jax.evaluate",
        description="COCO mean AP and counting metrics of a checkpoint on one split of a data set.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=path_flag,
        help="a run's workdir (its best checkpoint) or a checkpoint folder",
    )
    add("--definition", help="data set definition (.yml); default: the one it was trained on")
    add("--output", type=path_flag, required=True, help="folder for what it writes")
    add("--split", choices=("train", "val", "test"), default="test", help="default: %(default)s")
    add(
        "--image-hw",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size of the frames, at the scale of those trained on, so that cells keep their size "
        "in px; default: the size trained on, to which frames are resized",
    )
    add(
        "--batch-size",
        type=int,
        default=8,
        help="images a device takes at a time; default: %(default)s",
    )
    add("--workers", type=int, default=0, help="processes that read images; default: threads")
    add(
        "--apply-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn images as their EXIF or TIFF tag says, as viewers do; default: as the run did",
    )
    add("--pictures", type=int, default=8, help="frames to draw; default: %(default)s")
    add("--obj-thresh", type=float, default=0.5, help="objectness above which a box counts")
    add("--iou-thresh", type=float, default=0.5, help="IoU above which a worse box is suppressed")
    add(
        "--min-class-confidence-threshold",
        type=float,
        default=0.0,
        help="probability that the best class of a box must exceed, if above 0",
    )
    add(
        "--score-thresholds",
        type=path_flag,
        metavar="FILE.json",
        help="least scores by class, as `yogo_jax.calibrate --output` writes them",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuses values out of range.

    Raises:
      UserError: naming the flag, its range and what was given.
    """
    for name in ("obj_thresh", "iou_thresh", "min_class_confidence_threshold"):
        value = getattr(args, name)
        if not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} must be in [0, 1], got {value}")
    for name, least in (("batch_size", 1), ("workers", 0), ("pictures", 0)):
        value = getattr(args, name)
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")


def evaluate(args: argparse.Namespace) -> dict:
    """Metrics of a checkpoint on one split, written to `args.output` and printed.

    Raises:
      UserError: checkpoint and data do not fit each other, or either cannot be read.
    """
    start_jax()
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.checkpoint.run_data import evaluation_data
    from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
    from yogo_jax.data.decoding import lines_on
    from yogo_jax.data.images import stretch_of
    from yogo_jax.data.source import boxes_to_pad_to
    from yogo_jax.detector.spec import served_spec
    from yogo_jax.detector.thresholds import Thresholds, read_min_scores
    from yogo_jax.files import make_folder
    from yogo_jax.metrics.evaluator import Evaluator
    from yogo_jax.parallel import Devices
    from yogo_jax.progress import said_while
    from yogo_jax.reports.evaluation_page import Subject, write_results
    from yogo_jax.reports.tables import advice_on_nothing_found, format_metrics

    make_folder(args.output, "--output")
    folder = find_checkpoint(args.checkpoint)
    metadata = read_metadata(folder)
    with said_while("reading the data set"):
        splits = evaluation_data(metadata, args.definition, print)
    records = getattr(splits, args.split)
    for line in splits.lines():
        print(line)
    if len(records) == 0:
        raise UserError(f"the {args.split} split is empty: choose another by --split")
    spec = served_spec(metadata.model, image_hw=tuple(args.image_hw) if args.image_hw else None)
    if args.apply_orientation is not None:
        spec = dataclasses.replace(spec, apply_orientation=args.apply_orientation)
    turned = spec.apply_orientation
    if (stretch := stretch_of(records.image_paths, spec.image_hw, turned)) is not None:
        print(stretch)
    for line in lines_on(records.image_paths, applied=turned):
        print(line)
    devices = Devices()
    print(f"{folder} on {devices}")
    thresholds = Thresholds(args.obj_thresh, args.iou_thresh, args.min_class_confidence_threshold)
    thresholds = thresholds._replace(
        min_scores=read_min_scores(args.score_thresholds, spec.class_names, thresholds, print)
    )
    evaluator = Evaluator(
        spec,
        loss_weights=metadata.loss_weights(),
        batch_size=args.batch_size,
        max_boxes=boxes_to_pad_to([records], 0),
        workers=args.workers,
        thresholds=thresholds,
        devices=devices,
    )
    variables = restore_variables(folder, metadata.model)
    history = _history_of(folder, metadata.keep_best)
    definition = args.definition or metadata.data_settings().definition
    subject = Subject(
        title=f"Evaluation of {folder.name if history is None else history.name}",
        subtitle=f"{folder}, {len(records)} images of the {args.split} split of {definition}",
        spec=spec,
        thresholds=thresholds,
        config=metadata.config,
        history=history,
    )
    with said_while(f"evaluating {len(records)} images"):
        evaluation = evaluator.run(variables, records, keep_images=True)
    with said_while("writing the report"):
        metrics = write_results(
            args.output,
            evaluation,
            subject,
            checkpoint=folder,
            step=metadata.step,
            pictures=args.pictures,
        )
    print(format_metrics(metrics))
    if (advice := advice_on_nothing_found(metrics)) is not None:
        print(advice)
    print(
        f"{args.split} split of {len(records)} images; written {args.output / 'metrics.json'} and "
        f"{args.output / 'report.html'}"
    )
    return metrics


def _history_of(checkpoint: Path, keep_best: str) -> "History | None":
    """What the run logged that the checkpoint lies in, if it lies in one."""
    from yogo_jax.checkpoint.metrics_file import read_metrics
    from yogo_jax.reports.history import History

    if checkpoint.parent.name != "checkpoints":
        return None
    workdir = checkpoint.absolute().parent.parent
    records = read_metrics(workdir / "metrics.jsonl")
    return History(workdir.name, records, keep_best) if records else None


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        check(args)
        with own_folder(args.output, "--output"):
            evaluate(args)


if __name__ == "__main__":
    main()
