"""Exports a checkpoint to ONNX and OpenVINO IR, and verifies what it wrote.

    python -m bridge.to_openvino CHECKPOINT --output DIR [--crop-height 0.25]

Writes DIR/model.onnx, model.xml, model.bin and verification.json. If the models do not compute what
the checkpoint does, only verification.json is left.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge import DEFAULT_OPSET
from yogo_jax.command import Parser, add_shared, as_command
from yogo_jax.errors import UserError, check_at_least, check_fractions, check_positive
from yogo_jax.files import path_flag
from yogo_jax.ownership import own_folder
from yogo_jax.startup import start_jax


MAX_MAP_LOSS = 0.02  # mAP50 that INT8 may lose unless told otherwise
MAX_OPSET = 21  # that the converter writes
PRECISIONS, TARGETS = ("fp16", "fp32"), ("ncs2", "cpu")
MODEL_FILES = ("model.onnx", "model.xml", "model.bin")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m bridge.to_openvino",
        description="Exports a checkpoint to ONNX and OpenVINO IR, and verifies what it wrote.",
    )
    add = parser.add_argument
    add_shared(parser, "checkpoint")
    add("--output", type=path_flag, required=True, help="folder for model.* and verification.json")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--crop-height",
        type=float,
        metavar="SIZE",
        help="rows of the images served: up to 1 a fraction of the trained height, above that px",
    )
    add_shared(
        size,
        "--image-hw",
        help="rows and columns of the images served, at the scale of those trained on",
    )
    add("--batch", type=int, default=1, help="images of one call; default: %(default)s")
    add("--precision", choices=PRECISIONS, default="fp16", help="of the kernels in the IR")
    add(
        "--int8",
        metavar="DEFINITION.yml",
        help="quantize the IR to INT8: calibrated on the training split of this data set, judged "
        "by its validation split; needs --target cpu",
    )
    add(
        "--max-map-loss",
        type=float,
        help=f"mAP50 that --int8 may lose; default: {MAX_MAP_LOSS:g}",
    )
    add(
        "--target",
        choices=TARGETS,
        default="ncs2",
        help="ncs2 refuses what the stick cannot run; default: %(default)s",
    )
    add("--opset", type=int, default=DEFAULT_OPSET, help="of the ONNX model; default: %(default)s")
    add(
        "--definition", type=path_flag, help="data set whose frames the models are verified on, too"
    )
    return parser


def export(
    checkpoint: Path,
    folder: Path,
    *,
    crop_height: float | None = None,
    image_hw: tuple[int, int] | None = None,
    batch_size: int = 1,
    precision: str = "fp16",
    target: str = "ncs2",
    int8: Path | str | None = None,
    max_map_loss: float | None = None,
    opset: int = DEFAULT_OPSET,
    definition: Path | None = None,
    on_verified: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Exports a checkpoint to `folder`/model.onnx, model.xml and model.bin, and verifies them.

    Args:
      checkpoint: a run's workdir (its best checkpoint) or one checkpoint.
      folder: where to, beside verification.json; it is made if it is not there.
      crop_height: rows of the images served: up to 1 a fraction of the trained height, above px.
      image_hw: rows and columns of the images served instead, at the scale of those trained on.
      batch_size: images of one call.
      precision: of the kernels in the IR, "fp16" or "fp32".
      target: "ncs2" refuses what the stick cannot run, "cpu" does not.
      int8: quantize the IR: calibrated on the training split of this data set (a definition),
        judged by its validation split; needs the target "cpu".
      max_map_loss: mAP50 that quantization may lose, by default MAX_MAP_LOSS.
      opset: of the ONNX model.
      definition: data set whose frames the models are verified on, too.
      on_verified: is given the verification, before it decides.

    Returns:
      The verification, see `verify.verify_files`; `passed` is true in it.

    Raises:
      UserError: a value is out of range, an input cannot be used, the folder cannot be written, or
        the models do not compute what the checkpoint does. Then only verification.json is left.
    """
    check(batch_size, crop_height, image_hw, target, int8, max_map_loss, opset)
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    # Imported late: a mistake is told without waiting for JAX.
    import numpy as np

    from bridge.frames import frames_of_definition, verification_frames
    from bridge.quantize import quantization_strips, require_nncf
    from bridge.verify import give_back_freed_memory, outputs_and_ranges, verify_files
    from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
    from yogo_jax.detector.spec import served_spec
    from yogo_jax.files import make_folder, write_json

    make_folder(folder, "--output")
    source = find_checkpoint(checkpoint)
    metadata = read_metadata(source)
    spec = served_spec(metadata.model, crop_height=crop_height, image_hw=image_hw)
    variables = restore_variables(source, metadata.model)
    frames = {"random": verification_frames(spec)}
    if definition is not None:
        frames["definition"] = frames_of_definition(definition, metadata.model, spec)
    calibration = labelled = None
    if int8 is not None:
        require_nncf()
        calibration, labelled = quantization_strips(str(int8), metadata, spec)
        precision = "int8"
    most_loss = MAX_MAP_LOSS if max_map_loss is None else max_map_loss
    try:
        # Written beside the final names, read back from there, and renamed if all is well.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            written = {name: Path(scratch) / name for name in MODEL_FILES}
            _write_models(
                spec,
                variables,
                written,
                description=_describe(metadata, spec, source),
                batch_size=batch_size,
                precision=precision,
                target=target,
                opset=opset,
                calibration=calibration,
            )
            give_back_freed_memory()
            reference = outputs_and_ranges(spec, variables, np.concatenate([*frames.values()]))
            # A large network fits into memory a few times only.
            del variables
            verification = verify_files(
                spec,
                reference,
                frames,
                onnx_path=written["model.onnx"],
                xml_path=written["model.xml"],
                half_precision=precision != "fp32",
                for_ncs2=target == "ncs2",
                quantized_on=labelled,
                max_map_loss=most_loss,
            )
            write_json(Path(scratch) / "verification.json", verification)
            # Models never stand beside the verification of others.
            for name in MODEL_FILES:
                (folder / name).unlink(missing_ok=True)
            (Path(scratch) / "verification.json").replace(folder / "verification.json")
            if verification["passed"]:
                for name, path in written.items():
                    path.replace(folder / name)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror or error}") from error
    on_verified(verification)
    if not verification["passed"]:
        raise UserError(f"{_why_not(verification, folder, most_loss)}; no model was kept")
    return verification


def check(
    batch_size: int,
    crop_height: float | None,
    image_hw: tuple[int, int] | None,
    target: str,
    int8: Path | str | None,
    max_map_loss: float | None,
    opset: int,
) -> None:
    """Refuses values out of range, see `export`.

    Raises:
      UserError: naming the flag, its range and what was given.
    """
    check_at_least(1, batch=batch_size)
    check_positive(crop_height=crop_height)
    check_fractions(max_map_loss=max_map_loss)
    if image_hw and min(image_hw) < 1:
        raise UserError(f"--image-hw must be positive, got {list(image_hw)}")
    if target not in TARGETS:
        raise UserError(f"--target must be one of {', '.join(TARGETS)}, got {target!r}")
    if not DEFAULT_OPSET <= opset <= MAX_OPSET:
        raise UserError(f"--opset must be in {DEFAULT_OPSET} … {MAX_OPSET}, got {opset}")
    if max_map_loss is not None and int8 is None:
        raise UserError("--max-map-loss is of --int8, which was not given: give both or neither")
    if int8 is not None and target == "ncs2":
        raise UserError("--int8: the stick computes in FP16 only; add --target cpu")
    if target == "ncs2" and opset > DEFAULT_OPSET:
        raise UserError(
            f"--opset {opset}: runtimes that know the stick read up to {DEFAULT_OPSET}; "
            "choose that, or --target cpu"
        )


def _write_models(
    spec: Any,
    variables: Any,
    written: dict[str, Path],
    *,
    description: dict[str, str],
    batch_size: int,
    precision: str,
    target: str,
    opset: int,
    calibration: Any,
) -> None:
    """Writes the ONNX model and the IR, neither of which stays in memory."""
    from bridge.quantize import quantize
    from bridge.serving import make_serving
    from bridge.to_ir import check_for_ncs2, convert_to_ir, save_ir
    from bridge.to_onnx import export_onnx

    model = export_onnx(
        make_serving(spec, variables),
        spec,
        batch_size=batch_size,
        opset=opset,
        metadata=description,
    )
    ir = convert_to_ir(
        model,
        half_precision=precision == "fp16",
        metadata=description | {"precision": precision},
    )
    if calibration is not None:
        ir = quantize(ir, calibration)
    if target == "ncs2":
        check_for_ncs2(ir)
    written["model.onnx"].write_bytes(model.SerializeToString())
    save_ir(ir, written["model.xml"])


def _describe(metadata: Any, spec: Any, folder: Path) -> dict[str, str]:
    """The description that the models carry: texts, and JSON of all else."""
    from yogo_jax.checkpoint.metadata import git_revision

    thresholds, decision = metadata.thresholds, {}
    if metadata.decision is not None:
        decision = {"decision": metadata.decision.to_dict()}
    values = {
        "architecture": spec.architecture,
        "class_names": list(spec.class_names),
        "image_hw": list(spec.image_hw),
        "trained_image_hw": list(metadata.model.image_hw),
        "anchor_wh": list(spec.anchor_wh),
        "size_multiplier_wh": list(spec.size_multiplier_wh),
        "rgb": spec.rgb,
        "normalize_images": spec.normalize_images,
        "apply_orientation": spec.apply_orientation,
        "thresholds": {
            "objectness": thresholds.objectness,
            "iou": thresholds.iou,
            "min_class_confidence": thresholds.min_class_confidence,
            # Earlier versions refuse an export whose classes they would decide otherwise.
            **({"class_thresholds": thresholds.class_thresholds} if decision else {}),
        },
        **decision,
        "checkpoint": str(folder),
        "checkpoint_step": metadata.step,
        "checkpoint_git_revision": metadata.git_revision,
        "git_revision": git_revision(),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }


def _why_not(verification: dict[str, Any], folder: Path, most_loss: float) -> str:
    """The reason why the models did not pass, and the remedy."""
    if any(row["passed"] is False for row in verification["models"]):
        path = folder / "verification.json"
        return f"the models differ from the checkpoint by more than they may, see {path}"
    scores = verification.get("mean_ap")
    if scores and scores["loss"] > most_loss:
        return (
            f"INT8 loses {scores['loss']:.3f} of mAP50 on {scores['images']} validation images, "
            f"more than --max-map-loss {most_loss:g}: calibrate it on more or other "
            "images, allow more, or export without --int8"
        )
    overflowing = ", ".join(verification["half_precision"]["overflowing_layers"])
    return (
        f"values of {overflowing} leave the range of FP16, in which the stick computes: export "
        "with --target cpu"
    )


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        options = {
            "crop_height": args.crop_height,
            "image_hw": tuple(args.image_hw) if args.image_hw else None,
            "batch_size": args.batch,
            "target": args.target,
            "int8": args.int8,
            "max_map_loss": args.max_map_loss,
            "opset": args.opset,
        }
        check(**options)
        with own_folder(args.output, "--output"):
            start_jax()
            from bridge.verify import format_verification

            export(
                args.checkpoint,
                args.output,
                **options,
                precision=args.precision,
                definition=args.definition,
                on_verified=lambda each: print(format_verification(each)),
            )
        print(f"written {', '.join(str(args.output / name) for name in MODEL_FILES)}")


if __name__ == "__main__":
    main()
