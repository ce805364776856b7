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

from yogo_jax.command import as_command
from yogo_jax.errors import EXIT_TO_BE_CONTINUED, UserError
from yogo_jax.inference.flags import check, make_parser
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    from yogo_jax.inference.frame_sources import FrameSource
    from yogo_jax.inference.outputs import Wanted
    from yogo_jax.inference.serving import Served


INTERRUPTED = (
    f"interrupted: the same command with --resume goes on (exit status {EXIT_TO_BE_CONTINUED})"
)


def infer(args: argparse.Namespace) -> None:
    """Looks at all frames and writes what was asked for; prints a summary.

    Raises:
      UserError: model or frames cannot be used, none of them can be read, or the folder is not
        free.
    """
    start_jax()
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.inference.models import ModelOptions, load_model
    from yogo_jax.inference.run import Running, format_summary, infer_frames
    from yogo_jax.metrics.calibration import read_min_scores

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
    thresholds = model.served.thresholds._replace(
        **{name: value for name, value in given.items() if value is not None}
    )
    names_of_model = model.served.class_names
    thresholds = thresholds._replace(
        min_scores=read_min_scores(args.score_thresholds, names_of_model, thresholds, print)
    )
    source = open_source(args, model.served)
    cores = os.cpu_count() or 1
    try:
        summary = infer_frames(
            model,
            source,
            args.output,
            model_name=_model_name(args.model),
            thresholds=thresholds,
            wanted=wanted_outputs(args),
            running=Running(
                resume=args.resume,
                strict=args.strict,
                workers=args.workers or cores,
                bar=sys.stderr.isatty() if args.use_tqdm is None else args.use_tqdm,
            ),
        )
    finally:
        source.close()
    print(format_summary(summary, args.output))
    if summary["skipped"] > 0 == summary["frames"]:
        raise UserError(
            f"none of the {summary['skipped']} frames could be read: the reasons are above, and in "
            f"{args.output / 'skipped.csv'}"
        )


def open_source(args: argparse.Namespace, served: "Served") -> "FrameSource":
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
            rgb=served.rgb,
            apply_orientation=served.apply_orientation if given is None else given,
            lines=sys.stdin,
            leave_out=own,
        )
    if args.zarr is not None:
        from yogo_jax.inference.zarr_frames import ZarrFrames

        sizes = (served.image_hw, *([served.frame_hw] if served.frame_hw else []))
        store = ZarrFrames(args.zarr, rgb=served.rgb, layout=args.zarr_layout, frame_hw=sizes)
        more = f"; {store.unwritten} more were never written" if store.unwritten else ""
        print(f"{args.zarr}: {store.count} frames, axes {store.layout}{more}")
        return store
    from yogo_jax.inference.video_frames import VideoFrames

    return VideoFrames(args.video, rgb=served.rgb)


def wanted_outputs(args: argparse.Namespace) -> "Wanted":
    """Which outputs the flags ask for; counts, if none."""
    from yogo_jax.inference.outputs import Wanted

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
