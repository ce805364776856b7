"""Turns a network that the original implementation exported to ONNX into a checkpoint of ours.

    python -m bridge.from_onnx X.onnx --output CHECKPOINT

The architecture is recognized from the graph, anchor and crop are read from it, and the full-size
grid is restored. What was read is then compared with what the file computes.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag


# Of a value up to 1, above that of its own size: sizes of boxes stand behind an exponential.
TOLERANCE = 1e-3


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m bridge.from_onnx",
        description="A network that the original exported to ONNX, as a checkpoint of ours.",
    )
    add = parser.add_argument
    add("onnx", type=path_flag, metavar="X.onnx", help="as the original implementation exports it")
    add(
        "--output", type=path_flag, required=True, help="checkpoint folder to write; must not exist"
    )
    add("--class-names", help="A,B,C in the order of the ids; default: the instrument's seven")
    return parser


def convert(model: Any, *, class_names: tuple[str, ...] = ()) -> tuple[Any, dict[str, Any]]:
    """The `ModelSpec`, at full size, and the variables of an exported network.

    Args:
      model: the ONNX model.
      class_names: in the order of the ids.

    Raises:
      UserError: it is no network of the original, or the names do not fit.
    """
    from bridge.onnx_graph import OnnxGraph
    from yogo_jax.detector.decode import BOX_CHANNELS
    from yogo_jax.detector.spec import ModelSpec
    from yogo_jax.synthetic.cells import CLASS_NAMES

    graph = OnnxGraph(model)
    channels, rows, columns = graph.image_shape()
    chain = graph.chain()
    architecture, variables = _recognize(chain)
    num_classes = chain.convs[-1].kernel.shape[0] - BOX_CHANNELS
    names = class_names or (CLASS_NAMES if num_classes == len(CLASS_NAMES) else ())
    if len(names) != num_classes:
        raise UserError(
            f"the network has {num_classes} classes, but {len(names)} names are given: add "
            "--class-names A,B,C in the order of the ids"
        )
    if not any(np.isclose(chain.pixel_scale, scale, rtol=1e-5) for scale in (1.0, 1 / 255)):
        raise UserError(
            f"pixels are multiplied by {chain.pixel_scale:g}; expected 1 or 1/255 for all"
        )
    anchor_wh, multiplier_wh = [], []
    for factors in chain.priors_wh:
        if not 1 <= len(factors) <= 2:
            raise UserError(f"sizes are multiplied by {factors}; expected anchor and multiplier")
        anchor_wh.append(factors[0])
        multiplier_wh.append(factors[1] if len(factors) == 2 else 1.0)
    spec = ModelSpec(
        architecture=architecture,
        class_names=tuple(names),
        # A cropped network knows by its multipliers how large the whole image was.
        image_hw=(round(rows * multiplier_wh[1]), round(columns * multiplier_wh[0])),
        anchor_wh=(anchor_wh[0], anchor_wh[1]),
        rgb=channels == 3,
        normalize_images=chain.pixel_scale < 1,
    )
    _check_same_outputs(model, spec, variables, (rows, columns))
    return spec, variables


def _recognize(chain: Any) -> tuple[str, dict[str, Any]]:
    """The architecture that has these convolutions, and them as its variables."""
    from yogo_jax.detector.architectures import BACKBONES, LEAKY_SLOPE, ConvBackbone

    found = [(conv.kernel.shape[0], conv.stride) for conv in chain.convs[:-1]]
    for name, backbone in BACKBONES.items():
        if (
            isinstance(backbone, ConvBackbone)
            # Ours, with residual blocks, have another slope than those of the original.
            and backbone.leaky_slope == LEAKY_SLOPE
            and [(block.channels, block.stride) for block in backbone.blocks] == found
            and set(chain.activations) == {backbone.activation}
        ):
            return name, _unfold(backbone, chain.convs)
    layers = ", ".join(f"{channels}{'/2' if stride == 2 else ''}" for channels, stride in found)
    raise UserError(
        f"no architecture of ours has the convolutions {layers} with "
        f"{' and '.join(sorted(set(chain.activations))) or 'no activation'}"
    )


def _unfold(backbone: Any, convs: list[Any]) -> dict[str, Any]:
    """Folded convolutions as variables: batch norms become ones that add the bias only."""
    from bridge.converted import flax_kernel
    from yogo_jax.detector.network import BATCH_NORM_EPSILON

    params: dict[str, Any] = {}
    batch_stats: dict[str, Any] = {}
    for index, (block, conv) in enumerate(zip(backbone.blocks, convs[:-1], strict=True)):
        unit: dict[str, Any] = {"conv": {"kernel": flax_kernel(conv.kernel)}}
        bias = conv.bias
        if block.bias:
            unit["conv"]["bias"] = bias
            bias = np.zeros_like(bias)
        if block.norm:
            scale = np.full_like(bias, np.sqrt(1 + BATCH_NORM_EPSILON))
            unit["norm"] = {"scale": scale, "bias": bias}
            batch_stats[f"block_{index}"] = {
                "norm": {"mean": np.zeros_like(bias), "var": np.ones_like(bias)}
            }
        elif bias.any():
            raise UserError(f"convolution {index} has a bias, which the architecture has not")
        params[f"block_{index}"] = unit
    head = convs[-1]
    params["head"] = {"kernel": flax_kernel(head.kernel), "bias": head.bias}
    return {"params": params, "batch_stats": batch_stats}


def _check_same_outputs(
    model: Any, spec: Any, variables: dict[str, Any], image_hw: tuple[int, int]
) -> None:
    """Runs the file and what was read of it on one image of noise."""
    import jax
    import onnxruntime

    from bridge.serving import make_serving
    from yogo_jax.detector.spec import served_spec

    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no class of their own that is public
        raise UserError(f"ONNX Runtime cannot load it ({error})") from None
    (given,) = session.get_inputs()
    images = np.random.default_rng(0).integers(0, 256, (1, spec.channels, *image_hw))
    dtype = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    if given.type not in dtype:
        raise UserError(f"its input is {given.type}; expected one of {', '.join(dtype)}")
    try:
        (expected,) = session.run(None, {given.name: images.astype(dtype[given.type])})
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run it ({error})") from None
    serve = make_serving(served_spec(spec, image_hw=image_hw), variables)
    found = np.asarray(jax.jit(serve)(images.astype(np.float32)))
    if found.shape != expected.shape:
        raise UserError(f"it gives the shape {expected.shape}, as read it gives {found.shape}")
    largest = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
    if not largest <= TOLERANCE:
        raise UserError(
            f"as read, its outputs differ by up to {largest:.3g} (at most {TOLERANCE:g}): it "
            "computes something that was not recognized"
        )


def from_onnx(path: Path, output: Path, class_names: str | None = None) -> None:
    """Reads a file and writes the checkpoint `output`; names of the classes as A,B,C.

    Raises:
      UserError: the file cannot be used, or the output is in use.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from bridge.converted import describe, naming, split_names, write_converted
    from yogo_jax.files import check_free

    check_free(output, "--output")
    try:
        model = onnx.load(path, format="protobuf")
        onnx.checker.check_model(model)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise UserError(f"{path}: is no valid ONNX model ({error})") from None
    with naming(path):
        spec, variables = convert(model, class_names=split_names(class_names))
    write_converted(output, spec, variables, source=path.name)
    print(f"{output}: {describe(spec)}")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        from_onnx(args.onnx, args.output, args.class_names)


if __name__ == "__main__":
    main()
