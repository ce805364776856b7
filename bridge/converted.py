"""Networks of the original implementation: their weights as Flax variables, and their checkpoints.

There a network is a chain `model.I`: block I holds a convolution (`model.I.0`) and, if it has one,
a batch norm (`model.I.1`); the last link is the head. Convolutions are [out in h w] there.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from yogo_jax.checkpoint.metadata import Metadata, git_revision
from yogo_jax.checkpoint.store import write_weights
from yogo_jax.detector.architectures import BACKBONES, ConvNextBackbone, get_backbone
from yogo_jax.detector.decode import BOX_CHANNELS
from yogo_jax.detector.network import YogoNetwork, init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError


Weights = Mapping[str, np.ndarray]


def to_variables(weights: Weights, architecture: str) -> dict[str, Any]:
    """`params` and `batch_stats` of a network from the original's weights.

    Args:
      weights: entries `model.…` of the original's `model_state_dict`; others are left aside.
      architecture: which network they are of.

    Raises:
      UserError: weights are missing, left over, or of another shape than the architecture's.
    """
    own = {
        name: np.asarray(value)
        for name, value in weights.items()
        if name.startswith("model.") and not name.endswith("num_batches_tracked")
    }
    is_convnext = isinstance(get_backbone(architecture), ConvNextBackbone)
    try:
        found = _convnext_variables(own) if is_convnext else _chain_variables(own)
    except (KeyError, ValueError) as error:
        raise UserError(f"these are no weights of {architecture}: unknown part {error}") from None
    expected = _shapes(_abstract_variables(found, architecture))
    if (shapes := _shapes(found)) != expected:
        differing = sorted(
            path for path in {*expected, *shapes} if expected.get(path) != shapes.get(path)
        )
        path = differing[0]
        raise UserError(
            f"these are no weights of {architecture}: {path} must have the shape "
            f"{expected.get(path, 'of nothing')}, got {shapes.get(path, 'nothing')}"
            + (f", and {len(differing) - 1} more differ" if len(differing) > 1 else "")
        )
    return found


def recognize_architecture(weights: Weights) -> str:
    """The architecture whose shapes the weights have; the activation does not show in them.

    Raises:
      UserError: no architecture has these shapes.
    """
    for name in BACKBONES:
        try:
            to_variables(weights, name)
        except UserError:
            continue
        return name
    raise UserError(f"the weights fit none of the architectures {', '.join(BACKBONES)}")


def _abstract_variables(found: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Shapes that the architecture has, for the classes and the pixels that the weights are for."""
    params = found["params"]
    first = params.get("block_0", {}).get("conv") or params.get("trunk", {}).get("downsample_0", {})
    try:
        channels = first["kernel"].shape[2]
        num_classes = params["head"]["bias"].size - BOX_CHANNELS
    except (KeyError, IndexError) as error:
        raise UserError(f"these are no weights of {architecture}: no {error}") from None
    network = YogoNetwork(get_backbone(architecture), num_classes, normalize_images=False)
    draw = functools.partial(init_variables, network, image_hw=(64, 64), channels=channels)
    return jax.eval_shape(draw, jax.random.key(0))


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def flax_kernel(weight: np.ndarray) -> np.ndarray:
    """[out in h w] as [h w in out], and [out in] as [in out]."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def _put(tree: dict[str, Any], path: tuple[str, ...], leaf: str, value: np.ndarray) -> None:
    for name in path:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _chain_variables(weights: Weights) -> dict[str, Any]:
    params: dict[str, Any] = {}
    batch_stats: dict[str, Any] = {}
    head = max(int(name.split(".")[1]) for name in weights)
    for name, value in weights.items():
        _, index, *module, leaf = name.split(".")
        unit = "head" if int(index) == head else f"block_{index}"
        if leaf.startswith("running_"):
            _put(batch_stats, (unit, "norm"), leaf.removeprefix("running_"), value)
        elif value.ndim == 1 and module == ["1"]:
            _put(params, (unit, "norm"), {"weight": "scale", "bias": "bias"}[leaf], value)
        else:
            flax_leaf = {"weight": "kernel", "bias": "bias"}[leaf]
            path = (unit,) if unit == "head" else (unit, "conv")
            _put(params, path, flax_leaf, flax_kernel(value))
    return {"params": params, "batch_stats": batch_stats}


def _convnext_variables(weights: Weights) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, value in weights.items():
        path, is_norm = _convnext_path(name.split(".")[1:-1])
        leaf = name.split(".")[-1]
        if leaf != "gamma":
            leaf = {"weight": "scale" if is_norm else "kernel", "bias": "bias"}[leaf]
        if path == ("upsample",) and leaf == "kernel":
            # Flax computes a transposed convolution as a correlation with the mirrored kernel.
            value = value.transpose(2, 3, 0, 1)[::-1, ::-1]
        elif leaf == "kernel":
            value = flax_kernel(value)
        _put(params, path, leaf, value)
    return {"params": params, "batch_stats": {}}


def _convnext_path(parts: list[str]) -> tuple[tuple[str, ...], bool]:
    """Our module for one of the original's, and whether it is a layer norm."""
    match parts:
        case ["format time!", part]:
            return ({"0": "head", "1": "upsample"}[part],), False
        case ["0", "0"]:
            return ("trunk", "downsample_0"), False
        case ["0", "1"]:
            return ("trunk", "downsample_norm_0"), True
        case ["1", stage, "downsample", part]:
            is_norm = part == "0"
            name = f"downsample_norm_{stage}" if is_norm else f"downsample_{stage}"
            return ("trunk", name), is_norm
        case ["1", stage, "blocks", unit, *part]:
            names = {
                "": "",
                "conv_dw": "depthwise",
                "norm": "norm",
                "mlp.fc1": "expand",
                "mlp.fc2": "project",
            }
            inner = names[".".join(part)]
            path = ("trunk", f"stage_{stage}_{unit}")
            return ((*path, inner) if inner else path), inner == "norm"
    raise KeyError(".".join(parts))


def write_converted(
    folder: Path,
    spec: ModelSpec,
    variables: Mapping[str, Any],
    *,
    source: str,
    step: int = 0,
    epoch: int = 0,
) -> None:
    """Writes the weights that were converted from the file `source`.

    Raises:
      UserError: the place is not writable.
    """
    metadata = Metadata(
        model=spec,
        config={},
        step=step,
        epoch=epoch,
        position=0,
        data_fingerprint="",
        validation=None,
        git_revision=git_revision(),
        source=source,
    )
    write_weights(folder, variables, metadata)


def split_names(names: str | None) -> tuple[str, ...]:
    """The classes of `--class-names A,B,C`; none if it was not given."""
    return tuple(names.split(",")) if names else ()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file at fault before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def describe(spec: ModelSpec) -> str:
    """A model in one line."""
    rows, columns = spec.image_hw
    return (
        f"{spec.architecture} for {rows}x{columns} px {'RGB' if spec.rgb else 'gray'}, "
        f"{'divided by 255' if spec.normalize_images else 'not divided by 255'}, "
        f"anchor {spec.anchor_wh[0]:.6g},{spec.anchor_wh[1]:.6g}, "
        f"classes {', '.join(spec.class_names)}"
    )
