"""Fits the temperature of a checkpoint's class probabilities, and keeps it in the checkpoint.

    python -m yogo_jax.calibrate CHECKPOINT [--definition FILE.yml] [--precision 0.95]

The most probable class of each box stays the same; its probability becomes right on average. All
that reads the checkpoint then uses the temperature, and the export folds it into the head. The
command also prints, by class, the score (objectness times class probability) from which detections
have a chosen precision.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from yogo_jax.command import Parser, add_quiet, add_shared, as_command, quietly
from yogo_jax.errors import UserError, check_at_least
from yogo_jax.files import path_flag, write_json
from yogo_jax.startup import start_jax


# With fewer matched boxes a temperature would say more of chance than of the network.
FEWEST_PAIRS = 50


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.calibrate",
        description="Fits the temperature of a checkpoint's class probabilities on labelled frames "
        "that it was not trained on, and keeps it in the checkpoint.",
    )
    add = parser.add_argument
    add_shared(parser, "checkpoint", "--definition")
    add(
        "--split",
        choices=("val", "test"),
        default="val",
        help="what to fit it on; default: %(default)s",
    )
    add(
        "--precision",
        type=float,
        default=0.95,
        help="of the thresholds that are printed; default: %(default)s",
    )
    add("--output", type=path_flag, metavar="FILE.json", help="where to write the figures as well")
    add_shared(parser, "--batch-size", "--workers")
    add_quiet(parser)
    return parser


def calibrate(
    checkpoint: Path,
    definition: str | None = None,
    split: str = "val",
    *,
    precision: float = 0.95,
    batch_size: int = 8,
    workers: int = 0,
) -> dict[str, Any]:
    """Fits the temperature, keeps it in the checkpoint, and returns the figures.

    Args:
      checkpoint: a run's workdir (its best checkpoint) or a checkpoint folder.
      definition: labelled frames (.yml); None: those of the run.
      split: "val" or "test".
      precision: of the thresholds in the figures, in (0, 1].
      batch_size: images of a step.
      workers: processes that read images; 0 reads them in threads.

    Raises:
      UserError: a value is out of range, checkpoint and data do not fit each other, or too few
        boxes are found.
    """
    if not 0 < precision <= 1:
        raise UserError(f"--precision must be in (0, 1], got {precision}")
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, workers=workers)
    start_jax()
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.checkpoint.run_data import evaluation_records
    from yogo_jax.checkpoint.store import (
        find_checkpoint,
        read_metadata,
        restore_variables,
        rewrite_metadata,
    )
    from yogo_jax.data.pipeline import padded_box_count
    from yogo_jax.detector.detections import Thresholds
    from yogo_jax.metrics.calibration import (
        Pairs,
        at_temperature,
        calibration_error,
        fit_temperature,
        matched_pairs,
        threshold_at_precision,
    )
    from yogo_jax.metrics.evaluator import Evaluator
    from yogo_jax.progress import said_while

    folder = find_checkpoint(checkpoint)
    metadata = read_metadata(folder)
    model = metadata.model
    records = evaluation_records(metadata, definition, split, model, print)
    at = Thresholds()
    evaluator = Evaluator(
        model,
        loss_weights=metadata.loss_weights(),
        batch_size=batch_size,
        max_boxes=padded_box_count([records], 0),
        workers=workers,
        thresholds=at,
    )
    variables = restore_variables(folder, model)
    with said_while(f"evaluating {len(records)} images"):
        images = evaluator.run(variables, records, keep_images=True).images
    names = model.class_names
    if len(names) < 2:
        raise UserError(f"{folder} knows one class only, of which it is always sure")
    pairs = matched_pairs(images, len(names))
    if len(pairs.class_ids) < FEWEST_PAIRS:
        raise UserError(
            f"{folder} finds {len(pairs.class_ids)} true boxes of the {split} split; a "
            f"temperature takes {FEWEST_PAIRS}: give more labelled frames by --definition"
        )
    # On top of the one that the checkpoint has, if it was calibrated before.
    change = fit_temperature(pairs)
    after = Pairs(at_temperature(pairs.class_probs, change), pairs.class_ids)
    spec = dataclasses.replace(model, class_temperature=model.class_temperature * change)
    thresholds = {
        name: threshold_at_precision(images, class_id, change, precision)
        for class_id, name in enumerate(names)
    }
    rewrite_metadata(folder, dataclasses.replace(metadata, model=spec))
    return {
        "checkpoint": str(folder),
        "split": split,
        "images": len(records),
        "matched_boxes": len(pairs.class_ids),
        "class_temperature": spec.class_temperature,
        "calibration_error_before": calibration_error(pairs),
        "calibration_error": calibration_error(after),
        "precision": precision,
        "measured_at": {"objectness": at.objectness, "iou": at.iou},
        "thresholds": {
            name: None if each is None else each._asdict() for name, each in thresholds.items()
        },
    }


def format_calibration(figures: dict[str, Any]) -> str:
    """The figures as text."""
    from yogo_jax.reports.tables import align

    rows: list[list[object]] = [
        [name, "-", "-", "-"]
        if each is None
        else [name, *(f"{each[key]:.3f}" for key in ("score", "precision", "recall"))]
        for name, each in figures["thresholds"].items()
    ]
    header = [f"for precision {figures['precision']:g}", "score", "precision", "recall"]
    return "\n".join(
        [
            f"{figures['matched_boxes']} matched boxes of {figures['images']} images "
            f"({figures['split']} split)",
            f"calibration error {figures['calibration_error_before']:.4f} before, "
            f"{figures['calibration_error']:.4f} at class temperature "
            f"{figures['class_temperature']:.3f}, kept in {figures['checkpoint']}",
            "",
            *align(header, rows),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        if args.output is not None and not args.output.absolute().parent.is_dir():
            raise UserError(f"--output {args.output}: {args.output.parent} is no folder")
        with quietly(args.quiet):
            figures = calibrate(
                args.checkpoint,
                args.definition,
                args.split,
                precision=args.precision,
                batch_size=args.batch_size,
                workers=args.workers,
            )
        print(format_calibration(figures))
        if args.output is not None:
            try:
                write_json(args.output, figures)
            except OSError as error:
                raise UserError(f"--output {args.output}: {error.strerror or error}") from error


if __name__ == "__main__":
    main()
