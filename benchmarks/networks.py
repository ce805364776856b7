"""Costs of networks: frames/s of their IR against the first one's, operations, parameters.

    python benchmarks/networks.py base_model yogo_n 16/2,32/2,64/2,96,96+,96 [--image-hw 193 1032]

A network is a name, or layers of 3x3 convolutions by their channels: `/2` is stride 2, `+` adds the
layer's input. Weights are drawn, not trained: they do not change the speed. Or it is a file: the
.onnx or .xml of another detector with one input [1 c h w]. Only its speed is measured, at the size
of its own input. All are timed in turn; ratios are medians of rounds. docs/accuracy.md has results.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridge.benchmark import InstrumentModel, measure_throughput, random_frames
from bridge.serving import make_serving
from bridge.to_ir import convert_to_ir, save_ir
from bridge.to_onnx import export_onnx
from yogo_jax.detector.architectures import BACKBONES, ConvBackbone, ConvBlock, get_backbone
from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.files import given_path


CLASSES = ("healthy", "ring", "trophozoite", "schizont", "gametocyte", "wbc", "misc")


def backbone_of(text: str) -> ConvBackbone:
    """The network of a name or of layers as text.

    Raises:
      UserError: it is neither.
    """
    if not text[:1].isdigit():
        backbone = get_backbone(text)
        if not isinstance(backbone, ConvBackbone):
            raise UserError(f"{text} is no chain of convolutions")
        return backbone
    blocks = []
    for layer in text.split(","):
        residual = layer.endswith("+")
        channels, _, stride = layer.removesuffix("+").partition("/")
        try:
            block = ConvBlock(
                channels=int(channels),
                stride=int(stride or 1),
                bias=False,
                norm=True,
                residual=residual,
            )
        except ValueError:
            raise UserError(f"{text}: expected layers as 16/2,32,32+, found {layer!r}") from None
        blocks.append(block)
    return ConvBackbone(blocks=tuple(blocks), leaky_slope=1 / 8)


def operations(backbone: ConvBackbone, spec: ModelSpec) -> int:
    """Multiplications of one image."""
    total, channels, hw = 0, spec.channels, spec.image_hw
    for block in backbone.blocks:
        hw = dataclasses.replace(backbone, blocks=(block,)).grid_hw(hw)
        total += hw[0] * hw[1] * 9 * channels * block.channels
        channels = block.channels
    return total + hw[0] * hw[1] * channels * (5 + len(spec.class_names))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each network."""
    rows, models = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for index, text in enumerate(args.networks):
            if text.endswith((".onnx", ".xml")):
                models.append(_timed(given_path(text), args.precision))
                rows.append({"network": Path(text).name})
                continue
            backbone = backbone_of(text)
            BACKBONES[text] = backbone
            spec = ModelSpec(
                architecture=text,
                class_names=CLASSES,
                image_hw=tuple(args.image_hw),
                anchor_wh=(0.04, 0.05),
                rgb=args.rgb,
                normalize_images=True,
            )
            variables = init_variables(
                spec.network(), jax.random.key(0), image_hw=spec.image_hw, channels=spec.channels
            )
            onnx_model = export_onnx(make_serving(spec, variables), spec)
            path = Path(scratch) / f"{index}.xml"
            save_ir(convert_to_ir(onnx_model, half_precision=True, metadata={}), path)
            models.append(_timed(path, args.precision))
            rows.append(
                {
                    "network": text,
                    "giga_operations": operations(backbone, spec) / 1e9,
                    "parameters": sum(each.size for each in jax.tree.leaves(variables["params"])),
                    "receptive_field": backbone.receptive_field,
                }
            )
        frames = [random_frames(model) for model in models]
        rates: list[list[float]] = [[] for _ in models]
        for round_ in range(args.rounds + 1):
            for index, (model, images) in enumerate(zip(models, frames, strict=True)):
                rate = measure_throughput(model, images, args.seconds)
                if round_:
                    rates[index].append(rate)
    for row, own in zip(rows, rates, strict=True):
        ratios = np.asarray(own) / rates[0]
        row |= {
            "frames_per_second": statistics.median(own),
            "ratio": float(np.median(ratios)),
            "ratio_lowest": float(ratios.min()),
            "ratio_highest": float(ratios.max()),
        }
    return rows


def _timed(path: Path, precision: str) -> InstrumentModel:
    return InstrumentModel(path, hint="THROUGHPUT", precision=precision, device="CPU")


def format_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table; `-` where a file of another detector does not say it."""
    lines = [f"{'network':44} {'G ops':>6} {'param.':>8} {'field':>5} {'frames/s':>8}  ratio"]
    for row in rows:
        cost = (
            f"{row['giga_operations']:6.2f} {row['parameters']:8d} {row['receptive_field']:5d}"
            if "parameters" in row
            else f"{'-':>6} {'-':>8} {'-':>5}"
        )
        lines.append(
            f"{row['network']:44} {cost} {row['frames_per_second']:8.1f}  {row['ratio']:.2f} "
            f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        )
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("networks", nargs="+", metavar="NETWORK", help="a name, layers as 16/2,32,32+, or a file")
    add("--image-hw", type=int, nargs=2, default=(193, 1032), metavar=("H", "W"))
    add("--rgb", action="store_true")
    add("--precision", choices=("f32", "bf16"), default="f32")
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=1.0)
    add("--json", type=Path, metavar="FILE", help="where to write the rows as well")
    args = parser.parse_args()
    with exit_on_user_error():
        rows = measure(args)
    print(*format_rows(rows), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
