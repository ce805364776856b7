"""Turns a checkpoint of the original implementation (.pth) into one of ours, without PyTorch.

    python -m bridge.from_torch X.pth --output CHECKPOINT

What is written evaluates, exports and is a start for training (`train.from_pretrained`).
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag


Say = Callable[[str], None]


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m bridge.from_torch",
        description="A checkpoint of the original implementation (.pth) as one of ours.",
    )
    add = parser.add_argument
    add("pth", type=path_flag, metavar="X.pth", help="as the original implementation saves it")
    add(
        "--output", type=path_flag, required=True, help="checkpoint folder to write; must not exist"
    )
    add("--class-names", help="A,B,C in the order of the ids; needed if the file has none")
    add("--architecture", help="needed only if the file names none and it is a silu_model")
    add(
        "--normalize-images",
        action="store_true",
        help="the network was trained on pixels divided by 255, though the file does not say so",
    )
    return parser


def convert(
    saved: Any,
    *,
    class_names: tuple[str, ...] = (),
    architecture: str = "",
    normalize_images: bool = False,
    say: Say = print,
) -> tuple[Any, dict[str, Any]]:
    """The `ModelSpec` and the variables of a checkpoint of the original.

    Args:
      saved: content of the file: `model_state_dict`, and what is known of the model.
      class_names: instead of the file's.
      architecture: instead of the file's.
      normalize_images: the pixels are divided by 255, whatever the file says.
      say: takes a line about each thing that the file does not say itself.

    Raises:
      UserError: something of it is missing, unknown, or does not fit the rest.
    """
    from bridge.converted import recognize_architecture, to_variables
    from yogo_jax.detector.decode import BOX_CHANNELS
    from yogo_jax.detector.spec import ModelSpec

    weights = saved.get("model_state_dict") if isinstance(saved, Mapping) else None
    if not isinstance(weights, Mapping):
        raise UserError(
            "expected a dict with model_state_dict, as the original saves its checkpoints, got "
            + (f"the keys {', '.join(map(str, saved))}" if isinstance(saved, dict) else "none")
        )
    image_hw = tuple(int(size) for size in _buffer(weights, "img_size", 2))
    anchor_wh = (_scalar(weights, "anchor_w"), _scalar(weights, "anchor_h"))
    num_classes = int(_scalar(weights, "num_classes"))
    rgb = bool(_scalar(weights, "is_rgb", 0.0))
    multiplier_wh = (
        _scalar(weights, "width_multiplier", 1.0),
        _scalar(weights, "height_multiplier", 1.0),
    )
    # The original trains with the division when told so, but leaves the buffer of the network as
    # it was: the entry beside the weights is what was trained.
    normalized = bool(_scalar(weights, "normalize_images", 0.0)) or normalize_images
    if not normalized and saved.get("normalize_images"):
        normalized = True
        say("the weights say nothing of a division by 255, the training beside them does: used")
    if not architecture:
        architecture = str(saved.get("model_version") or "")
    if not architecture:
        architecture = recognize_architecture(weights)
        say(f"the file names no architecture; its weights are those of {architecture}")
    variables = to_variables(weights, architecture)
    names = class_names or _class_names(saved, num_classes, say)
    if len(names) != num_classes:
        raise UserError(f"the network has {num_classes} classes, but {len(names)} names: {names}")
    kernel_channels, outputs = _channels(weights)
    for what, expected, found in (
        ("is_rgb", 3 if rgb else 1, kernel_channels),
        ("num_classes", BOX_CHANNELS + num_classes, outputs),
    ):
        if expected != found:
            raise UserError(f"{what} speaks of {expected} channels, the weights have {found}")
    spec = ModelSpec(
        architecture=architecture,
        class_names=tuple(names),
        image_hw=(image_hw[0], image_hw[1]),
        anchor_wh=anchor_wh,
        rgb=rgb,
        normalize_images=normalized,
        size_multiplier_wh=multiplier_wh,
    )
    return spec, variables


def _class_names(saved: Mapping[str, Any], num_classes: int, say: Say) -> tuple[str, ...]:
    from yogo_jax.synthetic.cells import CLASS_NAMES

    for key in ("classes", "class_names"):
        if saved.get(key):
            return tuple(str(name) for name in saved[key])
    if num_classes == len(CLASS_NAMES):
        say(f"the file names no classes; taken to be {', '.join(CLASS_NAMES)}")
        return CLASS_NAMES
    raise UserError(f"the file names none of its {num_classes} classes: add --class-names A,B,C")


def _channels(weights: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of an image, and of the head."""
    kernels = [value for value in weights.values() if np.ndim(value) == 4]
    return kernels[0].shape[1], kernels[-1].shape[0]


def _buffer(weights: Mapping[str, Any], name: str, size: int) -> np.ndarray:
    if name not in weights:
        raise UserError(f"model_state_dict has no {name}: it is no network of the original")
    values = np.asarray(weights[name]).reshape(-1)
    if values.size != size:
        raise UserError(f"{name} must have {size} values, got {values.tolist()}")
    return values


def _scalar(weights: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A buffer's one value; files from before it existed mean the default, if there is one."""
    if default is not None and name not in weights:
        return default
    return float(_buffer(weights, name, 1)[0])


def from_torch(
    pth: Path,
    output: Path,
    *,
    class_names: str | None = None,
    architecture: str | None = None,
    normalize_images: bool = False,
) -> None:
    """Reads a file and writes the checkpoint `output`; the rest as `convert`, names as A,B,C.

    Raises:
      UserError: the file cannot be used, or the output is in use.
    """
    from bridge.converted import describe, naming, split_names, write_converted
    from bridge.torch_archive import read_torch_archive
    from yogo_jax.files import check_free

    check_free(output, "--output")
    saved = read_torch_archive(pth)
    with naming(pth):
        spec, variables = convert(
            saved,
            class_names=split_names(class_names),
            architecture=architecture or "",
            normalize_images=normalize_images,
        )
    write_converted(
        output,
        spec,
        variables,
        source=pth.name,
        step=int(saved.get("step") or 0),
        epoch=int(saved.get("epoch") or 0),
    )
    print(f"{output}: {describe(spec)}")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        from_torch(**vars(make_parser().parse_args(argv)))


if __name__ == "__main__":
    main()
