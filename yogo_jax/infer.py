"""Finds cells in frames.

    python -m yogo_jax.infer MODEL --images FOLDER --output DIR [--draw-boxes] [--count] …

MODEL is a run, a checkpoint, or what `bridge.to_openvino` wrote; docs/inference.md has the rest.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import (
    EXIT_TO_BE_CONTINUED,
    UserError,
    check_at_least,
    check_fractions,
    flag_of,
)
from yogo_jax.files import path_flag, path_text_flag
from yogo_jax.ownership import own_folder


if TYPE_CHECKING:
    from yogo_jax.inference.frame_sources import FrameSource
    from yogo_jax.inference.pipeline import ServingSpec
    from yogo_jax.inference.run import Wanted


INTERRUPTED = (
    f"interrupted: the same command with --resume goes on (exit status {EXIT_TO_BE_CONTINUED})"
)
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")

EXAMPLES = """\
examples:
  pictures with boxes, and counts, of a folder of frames:
    python -m yogo_jax.infer exported/model.xml --images frames/ --output found --draw-boxes --count

  the instrument's own store, and the array that its software reads:
    python -m yogo_jax.infer exported/model.xml --zarr run.zip --output found --save-npy

  pre-labels to correct, of the images in a list, by a training run, only where it is sure:
    ls frames/*.png | python -m yogo_jax.infer runs/first --images - --output labels \\
        --save-preds --obj-thresh 0.7

A run that was interrupted goes on with the same command and --resume. Frames that cannot be read
are skipped and named at the end.
"""


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.infer",
        description="Finds cells in frames: draws them, counts them, writes them down.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_flags(parser.add_argument_group("model"))
    _add_frame_flags(parser.add_argument_group("frames (one of these)"))
    _add_output_flags(parser.add_argument_group("outputs (any of them together)"))
    _add_detection_flags(parser.add_argument_group("detection"))
    _add_running_flags(parser.add_argument_group("running"))
    return parser


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "model",
        type=path_flag,
        metavar="MODEL",
        help="a run's workdir, a checkpoint folder, an OpenVINO IR (.xml) or an .onnx",
    )
    add(
        "--class-names",
        nargs="+",
        metavar="A,B,…",
        help="names of the classes, for models of other makers; others know them",
    )
    add(
        "--normalize-images",
        action=argparse.BooleanOptionalAction,
        help="whether pixels must be divided by 255 before a model of another maker gets them",
    )
    add(
        "--crop-height",
        type=float,
        metavar="SIZE",
        help="look at the middle strip only: up to 1 a fraction of the height, above that px",
    )
    precision = group.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision",
        choices=("f32", "bf16", "f16"),
        default="f32",
        help="what the network computes in, where it can; default: %(default)s",
    )
    precision.add_argument(
        "--half", action="store_true", help="bf16 or f16, whichever this device computes in"
    )


def _add_frame_flags(group: argparse._ArgumentGroup) -> None:
    sources = group.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--images",
        "--path-to-images",
        type=path_text_flag,
        metavar="PATH",
        help="an image, a folder of them, a quoted pattern ('a/**/*.png'), or - for a list on "
        "standard input; every page of a TIFF stack is a frame",
    )
    sources.add_argument(
        "--zarr",
        "--path-to-zarr",
        type=path_flag,
        metavar="STORE",
        help="a zarr store, a folder or a zip, as the instrument writes it",
    )
    sources.add_argument("--video", type=path_flag, metavar="FILE", help="a video")
    group.add_argument(
        "--apply-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn images as their EXIF or TIFF tag says, as viewers do; default: as the images "
        "that the model was trained on, else yes",
    )
    group.add_argument(
        "--zarr-layout",
        choices=("hwn", "nhw"),
        help="axes of the store: rows, columns, frames or frames, rows, columns; default: as its "
        "chunks say",
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        "--output-dir",
        type=path_flag,
        required=True,
        metavar="DIR",
        help="folder for all",
    )
    add("--draw-boxes", action="store_true", help="pictures/: every frame with its boxes")
    add(
        "--output-img-filetype",
        choices=PICTURE_SUFFIXES,
        help="of the pictures; default: .png",
    )
    add("--save-preds", action="store_true", help="labels/: a YOLO label file of every frame")
    add(
        "--with-confidence",
        action="store_true",
        help="label files have a last column, objectness times class probability",
    )
    add("--save-npy", action="store_true", help="RUN.npy, RUN.json: the instrument's array")
    add("--csv", action="store_true", help="detections.csv: a row for every box")
    add("--coco", action="store_true", help="coco.json: COCO, with a score for every box")
    add(
        "--count",
        action="store_true",
        help="counts.csv, counts.json: boxes of each class, by frame and in all; the default",
    )


def _add_detection_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    default = "; default: what the model says, mostly"
    add("--obj-thresh", type=float, help=f"objectness above which a box counts{default} 0.5")
    add("--iou-thresh", type=float, help=f"IoU above which a worse box is dropped{default} 0.5")
    add(
        "--min-class-confidence-threshold",
        type=float,
        help=f"probability that the best class of a box must exceed, if above 0{default} 0",
    )
    add(
        "--score-thresholds",
        type=path_flag,
        metavar="FILE.json",
        help="least scores by class, as `yogo_jax.calibrate --output` writes them",
    )


def _add_running_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="frames that are with the network at a time; default: 64 of a checkpoint, but 1 on a "
        "CPU; for an .xml what OpenVINO asks for",
    )
    add("--workers", type=int, help="threads that read, and as many that write; default: cores")
    add("--resume", action="store_true", help="go on with what an interrupted run left")
    add("--strict", action="store_true", help="stop at the first frame that cannot be read")
    add(
        "--use-tqdm",
        action=argparse.BooleanOptionalAction,
        help="a progress bar instead of lines; default: at a terminal",
    )


def check(args: argparse.Namespace) -> None:
    """Refuses values out of range, and flags that would do nothing.

    Raises:
      UserError: naming the flag, its range and what was given.
    """
    check_fractions(
        obj_thresh=args.obj_thresh,
        iou_thresh=args.iou_thresh,
        min_class_confidence_threshold=args.min_class_confidence_threshold,
    )
    check_at_least(1, batch_size=args.batch_size, workers=args.workers)
    if args.crop_height is not None and not 0 < args.crop_height < float("inf"):
        raise UserError(f"--crop-height must be more than 0, got {args.crop_height:g}")
    for flag, needed in (
        ("output_img_filetype", "draw_boxes"),
        ("with_confidence", "save_preds"),
        ("zarr_layout", "zarr"),
    ):
        if getattr(args, flag) and not getattr(args, needed):
            flag, needed = flag_of(flag), flag_of(needed)
            raise UserError(f"{flag} is of {needed}, which was not given: give both or neither")
    if args.apply_orientation is not None and args.images is None:
        raise UserError("--apply-orientation is of --images, which was not given: leave it out")
    is_onnx = args.model.suffix.lower() == ".onnx"
    if is_onnx and args.batch_size is not None:
        raise UserError("--batch-size: an .onnx fixes it itself; leave it out")


def infer(args: argparse.Namespace) -> None:
    """Finds objects in all frames and writes what was asked for; prints a summary.

    Raises:
      UserError: model or frames cannot be used, none of them can be read, or the folder is not
        free.
    """
    # Imported late: a mistake in a flag is told without waiting.
    from yogo_jax.detector.detections import read_min_scores
    from yogo_jax.inference.models import ModelOptions, load_model
    from yogo_jax.inference.run import format_summary, infer_frames

    parts = [part for each in args.class_names or () for part in each.split(",")]
    names = [unicodedata.normalize("NFC", name) for part in parts if (name := part.strip())]
    options = ModelOptions(
        crop_height=args.crop_height,
        class_names=tuple(names),
        normalize_images=args.normalize_images,
        batch_size=args.batch_size,
        precision="half" if args.half else args.precision,
    )
    model = load_model(args.model, options)
    print(model.describe())
    given = {
        "objectness": args.obj_thresh,
        "iou": args.iou_thresh,
        "min_class_confidence": args.min_class_confidence_threshold,
    }
    thresholds = model.serving.thresholds._replace(
        **{name: value for name, value in given.items() if value is not None}
    )
    names_of_model = model.serving.class_names
    thresholds = thresholds._replace(
        min_scores=read_min_scores(args.score_thresholds, names_of_model, thresholds, print)
    )
    source = open_source(args, model.serving)
    try:
        summary = infer_frames(
            model,
            source,
            args.output,
            model_name=_model_name(args.model),
            thresholds=thresholds,
            wanted=wanted_outputs(args),
            resume=args.resume,
            strict=args.strict,
            workers=args.workers or os.cpu_count() or 1,
            bar=sys.stderr.isatty() if args.use_tqdm is None else args.use_tqdm,
        )
    finally:
        source.close()
    print(format_summary(summary, args.output))
    if summary["skipped"] > 0 == summary["frames"]:
        raise UserError(
            f"none of the {summary['skipped']} frames could be read: the reasons are above, and in "
            f"{args.output / 'skipped.csv'}"
        )


def open_source(args: argparse.Namespace, serving: "ServingSpec") -> "FrameSource":
    """The frames that the flags mean.

    Raises:
      UserError: there are none, or they cannot be opened.
    """
    if args.images is not None:
        from yogo_jax.inference.frame_sources import open_images

        if args.images == "-" and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # names of files are bytes
        # A pattern may match the pictures of the run that is gone on with.
        own = args.output / "pictures"
        given = args.apply_orientation
        return open_images(
            args.images,
            rgb=serving.rgb,
            apply_orientation=serving.apply_orientation if given is None else given,
            lines=sys.stdin,
            leave_out=own,
        )
    if args.zarr is not None:
        from yogo_jax.inference.zarr_frames import ZarrFrames

        sizes = (serving.image_hw, *([serving.frame_hw] if serving.frame_hw else []))
        store = ZarrFrames(args.zarr, rgb=serving.rgb, layout=args.zarr_layout, frame_hw=sizes)
        more = f"; {store.unwritten} more were never written" if store.unwritten else ""
        print(f"{args.zarr}: {store.count} frames, axes {store.layout}{more}")
        return store
    from yogo_jax.inference.video_frames import VideoFrames

    return VideoFrames(args.video, rgb=serving.rgb)


def wanted_outputs(args: argparse.Namespace) -> "Wanted":
    """The outputs that the flags ask for; counts, if none."""
    from yogo_jax.inference.run import Wanted

    asked = (args.draw_boxes, args.save_preds, args.save_npy, args.csv, args.coco, args.count)
    if not any(asked):
        print("no output was asked for: counting, as with --count")
    return Wanted(
        pictures=(args.output_img_filetype or ".png") if args.draw_boxes else None,
        labels=args.save_preds,
        with_confidence=args.with_confidence,
        array=args.save_npy,
        csv=args.csv,
        coco=args.coco,
        counts=args.count or not any(asked),
    )


def _model_name(path: Path) -> str:
    """The name of a run or file; of `exported/model.xml` that of the folder."""
    path = path.absolute()
    if path.is_dir():
        return path.name
    return path.parent.name if path.stem == "model" else path.stem


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command(interrupted=INTERRUPTED, status=EXIT_TO_BE_CONTINUED):
        args = make_parser().parse_args(argv)
        check(args)
        with own_folder(args.output, "--output"):
            infer(args)


if __name__ == "__main__":
    main()
