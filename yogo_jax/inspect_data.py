"""Looks at a data set before it is trained on: what is in it and what is wrong with it.

    python -m yogo_jax.inspect_data FILE.yml [--output DIR] [--checkpoint CHECKPOINT]

Prints a table; with --output writes DIR/inspection.html, a page with pictures, and
DIR/inspection.json. With --checkpoint a trained detector looks at every label, too: the page and
DIR/suspects.csv list the labels that it contradicts. Findings are no failure: the exit status is 0.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag
from yogo_jax.inspection.scan import default_workers
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    from yogo_jax.checkpoint.metadata import Metadata
    from yogo_jax.inspection.audit import Inspection
    from yogo_jax.inspection.box_checks import Grid
    from yogo_jax.inspection.suspects import Suspects


# The size at which "synthetic" is looked at if none is given.
NATIVE_IMAGE_HW = (772, 1032)
SHOWN_IN_TEXT = 3


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
    if not 0 <= args.min_confidence <= 1:
        raise UserError(f"--min-confidence must be in [0, 1], got {args.min_confidence}")
    for name, least in (("workers", 0), ("top", 1), ("batch_size", 1)):
        value = getattr(args, name)
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")
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


def inspect(args: argparse.Namespace) -> "Inspection":
    """The inspection, printed and, with `args.output`, written.

    Raises:
      UserError: the definition or the checkpoint cannot be used.
    """
    start_jax()
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.checkpoint.run_data import definition_path
    from yogo_jax.checkpoint.store import find_checkpoint, read_metadata
    from yogo_jax.data.definition import load_definition
    from yogo_jax.data.headers import stretch_of
    from yogo_jax.data.records import MIN_BOX_AREA
    from yogo_jax.files import make_folder
    from yogo_jax.inspection.audit import inspect_data
    from yogo_jax.inspection.text import format_inspection
    from yogo_jax.progress import progress_bar

    folder = None if args.checkpoint is None else find_checkpoint(args.checkpoint)
    metadata = None if folder is None else read_metadata(folder)
    apply_orientation = args.apply_orientation
    if apply_orientation is None:
        apply_orientation = metadata is None or metadata.model.apply_orientation
    if metadata is not None:
        model = dataclasses.replace(metadata.model, apply_orientation=apply_orientation)
        metadata = dataclasses.replace(metadata, model=model)
    image_hw = tuple(args.image_hw) if args.image_hw else NATIVE_IMAGE_HW
    if metadata is not None:
        image_hw = metadata.model.image_hw
    definition = load_definition(definition_path(args.definition, image_hw))
    if metadata is not None and definition.class_names != metadata.model.class_names:
        raise UserError(
            f"{definition.path} has the classes {', '.join(definition.class_names)}, but the "
            f"checkpoint was trained on {', '.join(metadata.model.class_names)}: they must be the "
            "same, in the same order"
        )
    if args.output is not None:
        make_folder(args.output, "--output")
    min_box_area = args.min_box_area
    if min_box_area is None:
        trained = None if metadata is None else metadata.data_settings().min_box_area
        min_box_area = MIN_BOX_AREA if trained is None else trained
    with progress_bar("images") as on_start:
        inspection = inspect_data(
            definition,
            min_box_area=min_box_area,
            choose_grid=grid_chooser(args, metadata),
            workers=args.workers or default_workers(),
            on_start=on_start,
            apply_orientation=apply_orientation,
        )
    print(format_inspection(inspection))
    trained_hw = None if inspection.grid is None else inspection.grid.image_hw
    paths = inspection.used["train"].image_paths
    if trained_hw and (stretch := stretch_of(paths, trained_hw, apply_orientation)) is not None:
        print(stretch)
    suspects = None
    if folder is not None and metadata is not None:
        suspects = question(args, inspection, folder, metadata)
    if args.output is not None:
        write(args, inspection, suspects)
    contradicted = (
        "" if suspects is None else f", contradictions of the detector: {suspects.count:,}"
    )
    print(f"\nfindings: {inspection.count:,}{contradicted}")
    if args.output is not None:
        print(f"written {args.output / 'inspection.html'}")
    return inspection


def grid_chooser(
    args: argparse.Namespace, metadata: "Metadata | None"
) -> Callable[[tuple[int, int] | None], "Grid | None"]:
    """The grid that the flags ask for, as a function of the size of most images.

    Raises:
      UserError: there is no such architecture.
    """
    from yogo_jax.detector.architectures import get_backbone
    from yogo_jax.inspection.box_checks import Grid

    if args.grid_hw:
        rows, columns = args.grid_hw
        return lambda _: Grid((rows, columns), None, None)
    if metadata is not None:
        model = metadata.model
        return lambda _: Grid(
            model.grid_hw,
            model.image_hw,
            model.architecture,
            get_backbone(model.architecture).receptive_field,
        )
    name = args.architecture or "base_model"
    backbone = get_backbone(name)

    def choose(usual_hw: tuple[int, int] | None) -> "Grid | None":
        image_hw = tuple(args.image_hw) if args.image_hw else usual_hw
        if image_hw is None:
            return None
        return Grid(backbone.grid_hw(image_hw), image_hw, name, backbone.receptive_field)

    return choose


def question(
    args: argparse.Namespace, inspection: "Inspection", folder: Path, metadata: "Metadata"
) -> "Suspects":
    """The labels that a checkpoint contradicts, printed."""
    import jax
    import numpy as np

    from yogo_jax.checkpoint.store import restore_variables
    from yogo_jax.inspection.suspects import SUSPECT_KINDS, find_suspects
    from yogo_jax.progress import progress_bar

    train, names = inspection.used["train"], metadata.model.class_names
    weights = metadata.trained_loss_weights(
        np.bincount(train.class_ids, minlength=len(names)).tolist()
    )
    device = jax.devices()[0]
    print(f"\n{folder} on {device.platform} ({device.device_kind})")
    with progress_bar("labels") as on_start:
        suspects = find_suspects(
            inspection,
            metadata.model,
            restore_variables(folder, metadata.model),
            weights=weights,
            batch_size=args.batch_size,
            min_confidence=args.min_confidence,
            top=args.top,
            on_start=on_start,
        )
    if suspects.warning:
        print(suspects.warning)
    for kind, (title, advice) in SUSPECT_KINDS.items():
        print(f"\n{title}: {suspects.counts[kind]:,}\n  {advice}")
        for suspect in suspects.listed[kind][:SHOWN_IN_TEXT]:
            print(f"  - {suspect.place}: {suspect.describe()}")
    return suspects


def write(args: argparse.Namespace, inspection: "Inspection", suspects: "Suspects | None") -> None:
    """Writes the page, the JSON and, if a detector was asked, the CSV."""
    from yogo_jax.files import write_atomically, write_json
    from yogo_jax.inspection.page import render_inspection, suspect_rows, suspect_sections
    from yogo_jax.inspection.text import to_dict

    values, rows, sections = to_dict(inspection), [], []
    if suspects is not None:
        values["suspects"] = suspects.to_dict()
        rows = suspect_rows(suspects)
        sections = suspect_sections(
            inspection, suspects, top=args.top, checkpoint=str(args.checkpoint)
        )
        write_atomically(args.output / "suspects.csv", suspects.to_csv())
    write_json(args.output / "inspection.json", values)
    page = render_inspection(inspection, top=args.top, more_rows=rows, more=sections)
    write_atomically(args.output / "inspection.html", page)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        check(args)
        with nullcontext() if args.output is None else own_folder(args.output, "--output"):
            inspect(args)


if __name__ == "__main__":
    main()
