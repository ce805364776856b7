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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yogo_jax.command import Parser, add_quiet, add_shared, add_thresholds, as_command
from yogo_jax.errors import UserError, check_at_least, check_fractions
from yogo_jax.files import given_path, path_flag
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    from yogo_jax.reports.history import History


SPLITS = ("train", "val", "test")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.evaluate",
        description="COCO mean AP and counting metrics of a checkpoint on one split of a data set.",
    )
    add = parser.add_argument
    add_shared(parser, "checkpoint", "--definition")
    add("--output", type=path_flag, required=True, help="folder for what it writes")
    add("--split", choices=SPLITS, default="test", help="default: %(default)s")
    add_shared(
        parser,
        "--image-hw",
        help="size of the frames, at the scale of those trained on, so that cells keep their size "
        "in px; default: the size trained on, to which frames are resized",
    )
    add_shared(parser, "--batch-size", "--workers", "--apply-orientation")
    add("--pictures", type=int, default=8, help="frames to draw; default: %(default)s")
    add_thresholds(parser)
    add_quiet(parser)
    return parser


def evaluate(
    model: Any,
    definition: str | Path | None = None,
    split: str = "test",
    *,
    output: str | Path | None = None,
    objectness: float | None = None,
    iou: float | None = None,
    min_class_confidence: float | None = None,
    class_thresholds: str | Path | Sequence[float] | None = None,
    image_hw: Sequence[int] | None = None,
    apply_orientation: bool | None = None,
    batch_size: int = 8,
    workers: int = 0,
    pictures: int = 8,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Metrics of a checkpoint on one split of a data set.

    Args:
      model: a run's workdir (its best checkpoint), a checkpoint folder, a `Run`, or a `Model` that
        was loaded from one of them.
      definition: data set definition (.yml); None: the one that it was trained on.
      split: "train", "val" or "test".
      output: folder for metrics.json, report.html and pictures/; None writes nothing.
      objectness: a box with more of it counts, in [0, 1]; None, here and below: as the checkpoint
        says, usually 0.5, 0.5, 0, and the thresholds of its decision.
      iou: IoU above which a worse box is suppressed, in [0, 1].
      min_class_confidence: probability that the class of a box must exceed, if above 0.
      class_thresholds: least scores by class, see `Thresholds`, or the file that `calibrate`
        writes; empty: the most probable class of each box.
      image_hw: (height, width) of the frames in px; None: the size trained on.
      apply_orientation: turn images as their EXIF or TIFF tag says; None: as the run did.
      batch_size: images a device takes at a time.
      workers: processes that read images; 0 reads them in threads.
      pictures: frames to draw, with `output`.
      say: takes lines on the progress; None says nothing.

    Returns:
      The metrics, as metrics.json holds them.

    Raises:
      UserError: a value is out of range, checkpoint and data do not fit each other, or either
        cannot be read.
    """
    check_fractions(
        obj_thresh=objectness, iou_thresh=iou, min_class_confidence_threshold=min_class_confidence
    )
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, workers=workers, pictures=pictures)
    if split not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    start_jax()
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.checkpoint.run_data import evaluation_records
    from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
    from yogo_jax.data.pipeline import padded_box_count
    from yogo_jax.detector.given_thresholds import thresholds_given
    from yogo_jax.detector.spec import served_spec
    from yogo_jax.metrics.evaluator import Evaluator
    from yogo_jax.parallel import Devices
    from yogo_jax.progress import said_while
    from yogo_jax.reports.evaluation_page import Subject, write_results

    silent = say is None
    tell = say or (lambda _: None)
    folder = None if output is None else given_path(str(output))
    with nullcontext() if folder is None else own_folder(folder, "--output"):
        checkpoint = find_checkpoint(given_path(str(getattr(model, "path", model))))
        metadata = read_metadata(checkpoint)
        given = None if definition is None else str(definition)
        spec = served_spec(
            metadata.model, image_hw=(image_hw[0], image_hw[1]) if image_hw else None
        )
        if apply_orientation is not None:
            spec = dataclasses.replace(spec, apply_orientation=apply_orientation)
        with said_while("reading the data set", silent=silent):
            records = evaluation_records(metadata, given, split, spec, tell)
        devices = Devices()
        tell(f"{checkpoint} on {devices}")
        if isinstance(class_thresholds, str):
            class_thresholds = Path(class_thresholds)
        thresholds = thresholds_given(
            metadata.thresholds,
            spec.class_names,
            class_thresholds,
            tell,
            objectness=objectness,
            iou=iou,
            min_class_confidence=min_class_confidence,
        )
        evaluator = Evaluator(
            spec,
            loss_weights=metadata.loss_weights(),
            batch_size=batch_size,
            max_boxes=padded_box_count([records], 0),
            workers=workers,
            thresholds=thresholds,
            devices=devices,
        )
        variables = restore_variables(checkpoint, metadata.model)
        with said_while(f"evaluating {len(records)} images", silent=silent):
            evaluation = evaluator.run(variables, records, keep_images=True)
        history = _history_of(checkpoint, metadata.keep_best)
        data = given or metadata.data_settings().definition
        subject = Subject(
            title=f"Evaluation of {checkpoint.name if history is None else history.name}",
            subtitle=f"{checkpoint}, {len(records)} images of the {split} split of {data}",
            spec=spec,
            thresholds=thresholds,
            config=metadata.config,
            history=history,
        )
        with said_while("writing the report", silent=silent):
            return write_results(
                folder,
                evaluation,
                subject,
                checkpoint=checkpoint,
                step=metadata.step,
                pictures=pictures,
            )


def _history_of(checkpoint: Path, keep_best: str) -> "History | None":
    """The log of the run that a checkpoint lies in; None if it lies in none."""
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
        from yogo_jax.detector.given_thresholds import class_thresholds_of

        metrics = evaluate(
            args.checkpoint,
            args.definition,
            args.split,
            output=args.output,
            objectness=args.obj_thresh,
            iou=args.iou_thresh,
            min_class_confidence=args.min_class_confidence_threshold,
            class_thresholds=class_thresholds_of(args.decision, args.score_thresholds),
            image_hw=args.image_hw,
            apply_orientation=args.apply_orientation,
            batch_size=args.batch_size,
            workers=args.workers,
            pictures=args.pictures,
            say=None if args.quiet else print,
        )
        from yogo_jax.reports.tables import format_metrics

        print(format_metrics(metrics))
        for finding in metrics["findings"]:
            print(finding)
        print(
            f"{args.split} split of {metrics['images']} images; written "
            f"{args.output / 'metrics.json'} and {args.output / 'report.html'}"
        )


if __name__ == "__main__":
    main()
