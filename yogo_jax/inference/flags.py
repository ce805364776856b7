"""The flags of `python -m yogo_jax.infer`, and which values of them are refused."""

import argparse

from yogo_jax.command import Parser
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag, path_text_flag


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
    for name in ("obj_thresh", "iou_thresh", "min_class_confidence_threshold"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} must be in [0, 1], got {value}")
    for name in ("batch_size", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    if args.crop_height is not None and not 0 < args.crop_height < float("inf"):
        raise UserError(f"--crop-height must be more than 0, got {args.crop_height:g}")
    for flag, needed in (
        ("output_img_filetype", "draw_boxes"),
        ("with_confidence", "save_preds"),
        ("zarr_layout", "zarr"),
    ):
        if getattr(args, flag) and not getattr(args, needed):
            flag, needed = (name.replace("_", "-") for name in (flag, needed))
            raise UserError(f"--{flag} is of --{needed}, which was not given: give both or neither")
    if args.apply_orientation is not None and args.images is None:
        raise UserError("--apply-orientation is of --images, which was not given: leave it out")
    is_onnx = args.model.suffix.lower() == ".onnx"
    if is_onnx and args.batch_size is not None:
        raise UserError("--batch-size: an .onnx fixes it itself; leave it out")
