"""Looks at a data set before it is trained on: what is in it and what is wrong with it.

    yogo-jax inspect FILE.yml [--output DIR] [--checkpoint CHECKPOINT]

Prints a table; with --output writes DIR/inspection.html, a page with pictures, and
DIR/inspection.json. With --checkpoint a trained detector looks at every label, too: the page and
DIR/suspects.csv list the labels that it contradicts. Findings are no failure: the exit status is 0.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
from contextlib import nullcontext

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError, check_at_least, check_fractions
from yogo_jax.files import path_flag
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


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


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        check(args)
        for name in ("image_hw", "grid_hw"):
            value = getattr(args, name)
            setattr(args, name, None if value is None else tuple(value))
        with nullcontext() if args.output is None else own_folder(args.output, "--output"):
            start_jax()
            # Late: a mistake in a flag is told without waiting for JAX.
            from yogo_jax.inspection.run import audit

            audit(**vars(args))


if __name__ == "__main__":
    main()
