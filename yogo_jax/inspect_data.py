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
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from yogo_jax.command import Parser, add_quiet, add_shared, as_command
from yogo_jax.errors import UserError, check_at_least, check_fractions, flag_of
from yogo_jax.files import path_flag, write_atomically, write_json
from yogo_jax.ownership import own_folder
from yogo_jax.progress import without_progress
from yogo_jax.startup import start_jax


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.inspect_data",
        description="What is in a data set and what is wrong with it. All of it is looked at: bad "
        "labels and images are findings, and the exit status is 0 with any number of them.",
    )
    add = parser.add_argument
    add("definition", help="data set definition (.yml), or synthetic[:OPTIONS]")
    add(
        "--output",
        type=path_flag,
        help="folder for inspection.html, inspection.json and suspects.csv; default: only print",
    )
    add("--min-box-area", type=float, help="as data.min_box_area; smaller boxes are findings")
    add_shared(parser, "--workers", help="threads that decode images; default: one a core")
    add(
        "--top",
        type=int,
        default=40,
        help="findings of a kind on the page, and labels ranked by loss; default: %(default)s",
    )
    add_shared(parser, "--apply-orientation")
    add_quiet(parser)
    grid = parser.add_argument_group("grid", "on which boxes are binned: where two share a cell")
    grid.add_argument("--architecture", help="network of the grid; default: base_model")
    add_shared(
        grid,
        "--image-hw",
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
    add_shared(detector, "--batch-size")
    return parser


def audit(
    definition: str,
    *,
    output: Path | None = None,
    min_box_area: float | None = None,
    workers: int = 0,
    top: int = 40,
    apply_orientation: bool | None = None,
    architecture: str | None = None,
    image_hw: Sequence[int] | None = None,
    grid_hw: Sequence[int] | None = None,
    checkpoint: Path | None = None,
    min_confidence: float = 0.8,
    batch_size: int = 8,
) -> None:
    """Prints and writes everything that is wrong with a data set; arguments are the flags.

    Raises:
      UserError: a value is out of range, arguments contradict each other, or the definition or the
        checkpoint cannot be used.
    """
    if min_box_area is not None and not 0 <= min_box_area < 1:
        raise UserError(f"--min-box-area must be in [0, 1), got {min_box_area}")
    check_fractions(min_confidence=min_confidence)
    check_at_least(0, workers=workers)
    check_at_least(1, top=top, batch_size=batch_size)
    for name, sizes in (("image_hw", image_hw), ("grid_hw", grid_hw)):
        if sizes is not None and min(sizes) < 1:
            raise UserError(f"{flag_of(name)} must be two sizes of 1 or more: {sizes}")
    chosen = {"architecture": architecture, "image_hw": image_hw, "grid_hw": grid_hw}
    flags = " and ".join(flag_of(name) for name, value in chosen.items() if value)
    if checkpoint is not None and flags:
        raise UserError(f"--checkpoint brings a grid of its own: leave out {flags}")
    if grid_hw and (architecture or image_hw):
        raise UserError(f"{flags} are two ways to choose the grid: leave out either")
    with nullcontext() if output is None else own_folder(output, "--output"):
        start_jax()
        # Late: a mistake in a flag is told without waiting for JAX.
        import jax

        from yogo_jax.checkpoint.run_data import check_same_classes, definition_path
        from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
        from yogo_jax.data.definition import load_definition
        from yogo_jax.data.headers import stretch_of
        from yogo_jax.data.records import MIN_BOX_AREA, boxes_by_class
        from yogo_jax.inspection.audit import inspect_data
        from yogo_jax.inspection.page import render_inspection
        from yogo_jax.inspection.suspects import find_suspects

        size = None if image_hw is None else (image_hw[0], image_hw[1])
        folder = metadata = None
        if checkpoint is not None:
            folder = find_checkpoint(checkpoint)
            metadata = read_metadata(folder)
            architecture, size = metadata.model.architecture, metadata.model.image_hw
            if min_box_area is None:
                min_box_area = metadata.data_settings().min_box_area
            if apply_orientation is None:
                apply_orientation = metadata.model.apply_orientation
        data = load_definition(definition_path(definition, size))
        if metadata is not None:
            check_same_classes(data.path, data.class_names, metadata)

        applied = apply_orientation is not False
        inspection = inspect_data(
            data,
            min_box_area=MIN_BOX_AREA if min_box_area is None else min_box_area,
            architecture=architecture or "base_model",
            image_hw=size,
            grid_hw=None if grid_hw is None else (grid_hw[0], grid_hw[1]),
            workers=workers or os.cpu_count() or 1,
            apply_orientation=applied,
        )
        print(inspection.to_text())
        train, suspects = inspection.used["train"], None
        if inspection.grid is not None and inspection.grid.image_hw is not None:
            stretch = stretch_of(train.image_paths, inspection.grid.image_hw, applied)
            if stretch is not None:
                print(stretch)
        last = f"\nfindings: {inspection.count:,}"
        if folder is not None and metadata is not None:
            device = jax.devices()[0]
            print(f"\n{folder} on {device.platform} ({device.device_kind})")
            suspects = find_suspects(
                inspection,
                dataclasses.replace(metadata.model, apply_orientation=applied),
                restore_variables(folder, metadata.model),
                weights=metadata.trained_loss_weights(boxes_by_class(train).tolist()),
                batch_size=batch_size,
                min_confidence=min_confidence,
                top=top,
            )
            print("\n".join(suspects.lines()))
            last += f", contradictions of the detector: {suspects.count:,}"
        if output is not None:
            values = inspection.to_dict()
            if suspects is not None:
                values["suspects"] = suspects.to_dict()
                write_atomically(output / "suspects.csv", suspects.to_csv())
            write_json(output / "inspection.json", values)
            page = render_inspection(inspection, suspects, top=top, detector=str(checkpoint))
            write_atomically(output / "inspection.html", page)
            last += f"\nwritten {output / 'inspection.html'}"
        print(last)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        given = vars(args)
        with without_progress() if given.pop("quiet") else nullcontext():
            audit(**given)


if __name__ == "__main__":
    main()
