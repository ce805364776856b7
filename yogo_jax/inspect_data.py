"""Inspects a data set before it is trained on: what is in it and what is wrong with it.

    yogo-jax inspect FILE.yml [--output DIR] [--checkpoint CHECKPOINT]

Prints a table; with --output writes DIR/inspection.html, a page with pictures, and
DIR/inspection.json. With --checkpoint a trained detector looks at every label, too: the page and
DIR/suspects.csv list the labels that it contradicts. Findings are no failure: the exit status is 0.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import dataclasses
import os
from contextlib import nullcontext

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError, check_at_least, check_fractions
from yogo_jax.files import path_flag, write_atomically, write_json
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


# The size at which "synthetic" is looked at if none is given.
NATIVE_IMAGE_HW = (772, 1032)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.inspect_data",
        description="What is in a data set and what is wrong with it. All of it is looked at: bad "
        "labels and images are findings, and the exit status is 0 with any number of them.",
    )
    add = parser.add_argument
    add("definition", help="data set definition (.yml), or synthetic")
    add(
        "--output",
        type=path_flag,
        help="folder for inspection.html, inspection.json and suspects.csv; default: only print",
    )
    add("--min-box-area", type=float, help="as data.min_box_area; smaller boxes are findings")
    add("--workers", type=int, default=0, help="threads that decode images; default: one a core")
    add(
        "--top",
        type=int,
        default=40,
        help="findings of a kind on the page, and labels ranked by loss; default: %(default)s",
    )
    add(
        "--apply-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn images as their EXIF or TIFF tag says, as viewers do; default: as the "
        "checkpoint's run did, else yes",
    )
    grid = parser.add_argument_group("grid", "on which boxes are binned: where two share a cell")
    grid.add_argument("--architecture", help="network of the grid; default: base_model")
    grid.add_argument(
        "--image-hw",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size that images will be trained at; default: the size of most images",
    )
    grid.add_argument(
        "--grid-hw", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="the grid itself"
    )
    detector = parser.add_argument_group("detector", "looks for labels that it contradicts")
    detector.add_argument(
        "--checkpoint", type=path_flag, help="a run's workdir (its best checkpoint) or a checkpoint"
    )
    detector.add_argument(
        "--min-confidence",
        type=float,
        default=0.8,
        help="how sure it must be of another class, or of an object that has no label; "
        "default: %(default)s",
    )
    detector.add_argument(
        "--batch-size", type=int, default=8, help="images per step; default: %(default)s"
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuses values out of range, and flags that contradict each other.

    Raises:
      UserError: naming the flag, its range and what was given.
    """
    if args.min_box_area is not None and not 0 <= args.min_box_area < 1:
        raise UserError(f"--min-box-area must be in [0, 1), got {args.min_box_area}")
    check_fractions(min_confidence=args.min_confidence)
    check_at_least(0, workers=args.workers)
    check_at_least(1, top=args.top, batch_size=args.batch_size)
    for name in ("image_hw", "grid_hw"):
        value = getattr(args, name)
        if value is not None and min(value) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be two sizes of 1 or more: {value}")
    given = [name for name in ("architecture", "image_hw", "grid_hw") if getattr(args, name)]
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
    if args.checkpoint is not None and given:
        raise UserError(f"--checkpoint brings a grid of its own: leave out {flags}")
    if len(given) > 1 and "grid_hw" in given:
        raise UserError(f"{flags} are two ways to choose the grid: leave out either")


def audit(args: argparse.Namespace) -> None:
    """Prints and writes everything that is wrong with a data set.

    Args:
      args: the flags; --apply-orientation and --min-box-area are as in the checkpoint's run, and
        else as usual, where they are not given.

    Raises:
      UserError: the definition or the checkpoint cannot be used, or there is no such architecture.
    """
    start_jax()
    # Late: a mistake in a flag is told without waiting for JAX.
    import jax

    from yogo_jax.checkpoint.run_data import definition_path
    from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
    from yogo_jax.data.definition import load_definition
    from yogo_jax.data.headers import stretch_of
    from yogo_jax.data.records import MIN_BOX_AREA, boxes_by_class
    from yogo_jax.inspection.audit import inspect_data
    from yogo_jax.inspection.page import render_inspection
    from yogo_jax.inspection.suspects import find_suspects

    architecture, image_hw = args.architecture, args.image_hw and tuple(args.image_hw)
    min_box_area, apply_orientation = args.min_box_area, args.apply_orientation
    metadata = None
    if args.checkpoint is not None:
        checkpoint = find_checkpoint(args.checkpoint)
        metadata = read_metadata(checkpoint)
        architecture, image_hw = metadata.model.architecture, metadata.model.image_hw
        if min_box_area is None:
            min_box_area = metadata.data_settings().min_box_area
        if apply_orientation is None:
            apply_orientation = metadata.model.apply_orientation
    data = load_definition(definition_path(args.definition, image_hw or NATIVE_IMAGE_HW))
    if metadata is not None and data.class_names != metadata.model.class_names:
        raise UserError(
            f"{data.path} has the classes {', '.join(data.class_names)}, but the checkpoint was "
            f"trained on {', '.join(metadata.model.class_names)}: they must be the same, in the "
            "same order"
        )

    applied = apply_orientation is not False
    inspection = inspect_data(
        data,
        min_box_area=MIN_BOX_AREA if min_box_area is None else min_box_area,
        architecture=architecture or "base_model",
        image_hw=image_hw,
        grid_hw=args.grid_hw and tuple(args.grid_hw),
        workers=args.workers or os.cpu_count() or 1,
        apply_orientation=applied,
    )
    print(inspection.to_text())
    train, suspects = inspection.used["train"], None
    if inspection.grid is not None and inspection.grid.image_hw is not None:
        stretch = stretch_of(train.image_paths, inspection.grid.image_hw, applied)
        if stretch is not None:
            print(stretch)
    last = f"\nfindings: {inspection.count:,}"
    if metadata is not None:
        device = jax.devices()[0]
        print(f"\n{checkpoint} on {device.platform} ({device.device_kind})")
        suspects = find_suspects(
            inspection,
            dataclasses.replace(metadata.model, apply_orientation=applied),
            restore_variables(checkpoint, metadata.model),
            weights=metadata.trained_loss_weights(boxes_by_class(train).tolist()),
            batch_size=args.batch_size,
            min_confidence=args.min_confidence,
            top=args.top,
        )
        print("\n".join(suspects.lines()))
        last += f", contradictions of the detector: {suspects.count:,}"
    if args.output is not None:
        values = inspection.to_dict()
        if suspects is not None:
            values["suspects"] = suspects.to_dict()
            write_atomically(args.output / "suspects.csv", suspects.to_csv())
        write_json(args.output / "inspection.json", values)
        page = render_inspection(inspection, suspects, top=args.top, detector=str(args.checkpoint))
        write_atomically(args.output / "inspection.html", page)
        last += f"\nwritten {args.output / 'inspection.html'}"
    print(last)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        check(args)
        with nullcontext() if args.output is None else own_folder(args.output, "--output"):
            audit(args)


if __name__ == "__main__":
    main()
