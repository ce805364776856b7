"""Fits the temperature of a checkpoint's class probabilities, and chooses how it decides.

    python -m yogo_jax.calibrate CHECKPOINT [--definition FILE.yml] [--decision count]

The probability of the most probable class becomes right on average. All that reads the checkpoint
then uses the temperature, and the export folds it into the head. With --decision the command also
chooses a threshold of each class and keeps them in the checkpoint: all that reads it decides the
class of each box by them.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yogo_jax.command import Parser, add_quiet, add_shared, as_command, quietly
from yogo_jax.errors import UserError, check_at_least, check_positive
from yogo_jax.files import path_flag, write_json
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    from yogo_jax.checkpoint.metadata import Decision
    from yogo_jax.metrics.decisions import Goal


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
        "--decision",
        choices=("most_probable", "count", "f1", "screening", "precision"),
        help="what thresholds of classes are chosen for and kept: counts without bias, the best "
        "F1, few false positives, a precision, or none (the most probable class); default: what "
        "the checkpoint has them for",
    )
    add(
        "--false-positives",
        type=float,
        help="of each class per 1,000,000 red cells, with --decision screening; default: 1000",
    )
    add(
        "--precision",
        type=float,
        help="of each class, with --decision precision; without a decision its thresholds are "
        "printed, but not kept; default: 0.95",
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
    decision: str | None = None,
    false_positives: float | None = None,
    precision: float | None = None,
    batch_size: int = 8,
    workers: int = 0,
) -> dict[str, Any]:
    """Fits the temperature, chooses thresholds, keeps both, and returns the figures.

    Args:
      checkpoint: a run's workdir (its best checkpoint) or a checkpoint folder.
      definition: labelled frames (.yml); None: those of the run.
      split: "val" or "test".
      decision: a goal of `choose_thresholds`, or "most_probable", which keeps none; None: that of
        the checkpoint. Where none are kept the figures have those of a precision.
      false_positives: of screening, above 0; None: as the checkpoint has it, else 1000.
      precision: in (0, 1]; None: as the checkpoint has it, else 0.95.
      batch_size: images of a step.
      workers: processes that read images; 0 reads them in threads.

    Raises:
      UserError: a value is out of range, checkpoint and data do not fit each other, or too few
        boxes are found.
    """
    check_positive(false_positives=false_positives)
    if precision is not None and not 0 < precision <= 1:
        raise UserError(f"--precision must be in (0, 1], got {precision}")
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, workers=workers)
    start_jax()
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.checkpoint.metadata import Decision
    from yogo_jax.checkpoint.ready import check_may_change
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
    )
    from yogo_jax.metrics.decisions import by_class, candidates_of, caveats, choose_thresholds
    from yogo_jax.metrics.evaluator import Evaluator
    from yogo_jax.progress import said_while

    folder = find_checkpoint(checkpoint)
    check_may_change(folder)
    metadata = read_metadata(folder)
    model = metadata.model
    goal, is_kept = _goal_of(metadata.decision, decision, false_positives, precision)
    records = evaluation_records(metadata, definition, split, model, print)
    evaluator = Evaluator(
        model,
        loss_weights=metadata.loss_weights(),
        batch_size=batch_size,
        max_boxes=padded_box_count([records], 0),
        workers=workers,
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
    candidates = candidates_of(images, len(names), change)
    thresholds = choose_thresholds(candidates, goal)
    kept = (
        Decision(goal=goal.name, class_thresholds=thresholds, **goal.numbers) if is_kept else None
    )
    rewrite_metadata(folder, dataclasses.replace(metadata, model=spec, decision=kept))
    at = Thresholds.of_classes(thresholds)
    return {
        "checkpoint": str(folder),
        "split": split,
        "images": len(records),
        "matched_boxes": len(pairs.class_ids),
        "class_temperature": spec.class_temperature,
        "calibration_error_before": calibration_error(pairs),
        "calibration_error": calibration_error(after),
        "goal": goal.name,
        **goal.numbers,
        "kept": is_kept,
        "measured_at": {"objectness": at.objectness, "iou": at.iou},
        "thresholds": by_class(candidates, thresholds, names),
        "caveats": caveats(candidates, thresholds, names, goal),
    }


def _goal_of(
    stored: "Decision | None",
    decision: str | None,
    false_positives: float | None,
    precision: float | None,
) -> "tuple[Goal, bool]":
    """The goal that flags and a checkpoint ask for, and whether its thresholds are kept there.

    Raises:
      UserError: a number is of another goal.
    """
    from yogo_jax.metrics.decisions import Goal

    decision = decision or (stored.goal if stored else "most_probable")
    name: Any = "precision" if decision == "most_probable" else decision
    for flag, value, of_goal in (
        ("--false-positives", false_positives, "screening"),
        ("--precision", precision, "precision"),
    ):
        if value is not None and name != of_goal:
            raise UserError(
                f"{flag} is of --decision {of_goal}, this is {decision}: leave it out, or add "
                f"--decision {of_goal}"
            )
    given = {"false_positives": false_positives, "precision": precision}
    if stored is not None and stored.goal == name:
        given = {key: getattr(stored, key) if each is None else each for key, each in given.items()}
    numbers = {key: each for key, each in given.items() if each is not None}
    return Goal(name, **numbers), decision != "most_probable"


def format_calibration(figures: dict[str, Any]) -> str:
    """The figures as text."""
    from yogo_jax.reports.tables import align, number

    goal = {
        "count": "counts without bias",
        "f1": "the best F1",
        "screening": "{false_positives:g} false positives per 1,000,000 red cells",
        "precision": "precision {precision:g}",
    }[figures["goal"]].format(**figures)
    header = [f"for {goal}", "threshold", "precision", "recall", "predicted", "true"]
    rows: list[list[object]] = [
        [
            name,
            *(number(each[key], digits=3) for key in ("score", "precision", "recall")),
            each["predicted"],
            each["true"],
        ]
        for name, each in figures["thresholds"].items()
    ]
    end = f"these thresholds decide from now on, kept in {figures['checkpoint']}"
    if not figures["kept"]:
        end = f"not kept: boxes have their most probable class (--decision {figures['goal']} keeps)"
    return "\n".join(
        [
            f"{figures['matched_boxes']} matched boxes of {figures['images']} images "
            f"({figures['split']} split)",
            f"calibration error {figures['calibration_error_before']:.4f} before, "
            f"{figures['calibration_error']:.4f} at class temperature "
            f"{figures['class_temperature']:.3f}, kept in {figures['checkpoint']}",
            "",
            *align(header, rows),
            *figures["caveats"],
            end,
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
                decision=args.decision,
                false_positives=args.false_positives,
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
