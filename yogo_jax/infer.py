"""Finds cells in frames.

    python -m yogo_jax.infer MODEL --images FOLDER --output DIR [--draw-boxes] [--count] …

MODEL is a run, a checkpoint, or what `bridge.to_openvino` wrote; docs/inference.md has the rest.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import functools
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yogo_jax.command import Parser, add_quiet, add_shared, add_thresholds, as_command, quietly
from yogo_jax.errors import (
    EXIT_TO_BE_CONTINUED,
    UserError,
    check_at_least,
    check_fractions,
    check_positive,
    flag_of,
)
from yogo_jax.files import path_flag, path_text_flag
from yogo_jax.ownership import own_folder


if TYPE_CHECKING:
    from yogo_jax.inference.frame_sources import FrameSource
    from yogo_jax.inference.models import ModelOptions
    from yogo_jax.inference.pipeline import ServingSpec
    from yogo_jax.inference.run import Running, Wanted


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

    group = parser.add_argument_group("model")
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

    group = parser.add_argument_group("frames (one of these)")
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
    add_shared(group, "--apply-orientation")
    group.add_argument(
        "--zarr-layout",
        choices=("hwn", "nhw"),
        help="axes of the store: rows, columns, frames or frames, rows, columns; default: as its "
        "chunks say",
    )

    add = parser.add_argument_group("outputs (any of them together)").add_argument
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

    add_thresholds(parser.add_argument_group("detection"))

    group = parser.add_argument_group("running")
    add = group.add_argument
    add_shared(
        group,
        "--batch-size",
        default=None,
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
    add_quiet(group)
    return parser


def check(given: Mapping[str, Any]) -> None:
    """Refuses values of flags out of range, and flags that would do nothing.

    Raises:
      UserError: naming the flag, its range and what was given.
    """
    thresholds = ("obj_thresh", "iou_thresh", "min_class_confidence_threshold")
    check_fractions(**{name: given[name] for name in thresholds})
    check_at_least(1, batch_size=given["batch_size"], workers=given["workers"])
    check_positive(crop_height=given["crop_height"])
    for name, needed in (
        ("output_img_filetype", "draw_boxes"),
        ("with_confidence", "save_preds"),
        ("zarr_layout", "zarr"),
    ):
        if given[name] and not given[needed]:
            flag, other = flag_of(name), flag_of(needed)
            raise UserError(f"{flag} is of {other}, which was not given: give both or neither")
    if given["apply_orientation"] is not None and given["images"] is None:
        raise UserError("--apply-orientation is of --images, which was not given: leave it out")
    if given["model"].suffix.lower() == ".onnx" and given["batch_size"] is not None:
        raise UserError("--batch-size: an .onnx fixes it itself; leave it out")


def infer(
    path: Path,
    open_source: "Callable[[ServingSpec], FrameSource]",
    output: Path,
    *,
    options: "ModelOptions",
    thresholds: Mapping[str, float | None],
    class_thresholds: Path | tuple[float, ...] | None,
    wanted: "Wanted",
    running: "Running",
) -> dict[str, Any]:
    """Finds objects in all frames, writes what is wanted, and returns the summary.

    Args:
      path: of the model.
      open_source: opens the frames, for what the model takes.
      output: folder for all outputs.
      options: of the model.
      thresholds: fields of `Thresholds`; None for those of the model.
      class_thresholds: the file of a calibration, or numbers; None for those of the model.
      wanted: the outputs.
      running: the way it runs.

    Raises:
      UserError: model or frames cannot be used, or the folder is not free.
    """
    # Imported late: a mistake in a flag is told without waiting.
    from yogo_jax.detector.given_thresholds import thresholds_given
    from yogo_jax.inference.models import load_model
    from yogo_jax.inference.run import infer_frames

    model = load_model(path, options)
    print(model.describe())
    serving = model.serving
    at = thresholds_given(
        serving.thresholds, serving.class_names, class_thresholds, print, **thresholds
    )
    with closing(open_source(serving)) as source:
        return infer_frames(
            model,
            source,
            output,
            model_name=_model_name(path),
            thresholds=at,
            wanted=wanted,
            running=running,
        )


def open_frames(
    serving: "ServingSpec",
    *,
    images: str | None,
    zarr: Path | None,
    video: Path | None,
    apply_orientation: bool | None,
    zarr_layout: str | None,
    output: Path,
) -> "FrameSource":
    """The frames of the one source that is given, for what a model takes.

    Raises:
      UserError: there are none, or they cannot be opened.
    """
    if images is not None:
        from yogo_jax.inference.frame_sources import open_images

        if images == "-" and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # names of files are bytes
        as_trained = serving.apply_orientation
        return open_images(
            images,
            rgb=serving.rgb,
            apply_orientation=as_trained if apply_orientation is None else apply_orientation,
            lines=sys.stdin,
            # A pattern may match the pictures of the run that is gone on with.
            leave_out=output / "pictures",
        )
    if zarr is not None:
        from yogo_jax.inference.zarr_frames import ZarrFrames

        sizes = (serving.image_hw, *([serving.frame_hw] if serving.frame_hw else []))
        store = ZarrFrames(zarr, rgb=serving.rgb, layout=zarr_layout, frame_hw=sizes)
        more = f"; {store.unwritten} more were never written" if store.unwritten else ""
        print(f"{zarr}: {store.count} frames, axes {store.layout}{more}")
        return store
    from yogo_jax.inference.video_frames import VideoFrames

    assert video is not None
    return VideoFrames(video, rgb=serving.rgb)


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
        check(vars(args))
        # Imported late: a mistake in a flag is told without waiting.
        from yogo_jax.detector.given_thresholds import class_thresholds_of
        from yogo_jax.inference.models import ModelOptions
        from yogo_jax.inference.run import Running, Wanted, format_summary

        open_source = functools.partial(
            open_frames,
            images=args.images,
            zarr=args.zarr,
            video=args.video,
            apply_orientation=args.apply_orientation,
            zarr_layout=args.zarr_layout,
            output=args.output,
        )
        names = [name.strip() for each in args.class_names or () for name in each.split(",")]
        options = ModelOptions(
            crop_height=args.crop_height,
            class_names=tuple(unicodedata.normalize("NFC", name) for name in names if name),
            normalize_images=args.normalize_images,
            batch_size=args.batch_size,
            precision="half" if args.half else args.precision,
        )
        wanted = Wanted(
            pictures=(args.output_img_filetype or ".png") if args.draw_boxes else None,
            labels=args.save_preds,
            with_confidence=args.with_confidence,
            array=args.save_npy,
            csv=args.csv,
            coco=args.coco,
            counts=args.count,
        )
        with own_folder(args.output, "--output"), quietly(args.quiet):
            if wanted == Wanted():
                wanted = Wanted(counts=True)
                print("no output was asked for: counting, as with --count")
            summary = infer(
                args.model,
                open_source,
                args.output,
                options=options,
                thresholds={
                    "objectness": args.obj_thresh,
                    "iou": args.iou_thresh,
                    "min_class_confidence": args.min_class_confidence_threshold,
                },
                class_thresholds=class_thresholds_of(args.decision, args.score_thresholds),
                wanted=wanted,
                running=Running(
                    resume=args.resume,
                    strict=args.strict,
                    workers=args.workers or os.cpu_count() or 1,
                    bar=args.use_tqdm,
                ),
            )
        print(format_summary(summary, args.output))
        if summary["skipped"] > 0 == summary["frames"]:
            raise UserError(
                f"none of the {summary['skipped']} frames could be read: the reasons are above, "
                f"and in {args.output / 'skipped.csv'}"
            )


if __name__ == "__main__":
    main()
