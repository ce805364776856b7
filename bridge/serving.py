"""The function that is exported: pixels in, decoded predictions out, NCHW from end to end.

Batch norms are folded into the convolutions before them. What is left is the smallest graph that
we know of: convolutions with their activations, then a decode in which the grid offsets are
constants and the anchor is part of the head's bias.

References:
  Jacob et al. 2017, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
  Only Inference, arXiv:1712.05877, section 3.2 (batch norm folding).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from yogo_jax.detector.architectures import ConvBackbone, ConvBlock, get_backbone
from yogo_jax.detector.decode import BOX_CHANNELS, MAX_LOG_SIZE, cell_origins
from yogo_jax.detector.network import BATCH_NORM_EPSILON
from yogo_jax.detector.spec import ModelSpec


Serve = Callable[[Float[Array, "b c h w"]], Float[Array, "b outputs gh gw"]]


class FoldedConv(NamedTuple):
    """One convolution in the layout of ONNX."""

    kernel: Float[np.ndarray, "oc c kh kw"]
    bias: Float[np.ndarray, " oc"]
    stride: int


def fold_chain(backbone: ConvBackbone, variables: Mapping[str, Any]) -> list[FoldedConv]:
    """The convolutions of a chain from its first block to its head, batch norms folded in.

    Args:
      backbone: which blocks there are.
      variables: its `params` and `batch_stats`.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    names = [f"block_{index}" for index in range(len(backbone.blocks))]
    folded = [
        _fold_block(block, params[name], batch_stats.get(name, {}))
        for name, block in zip(names, backbone.blocks, strict=True)
    ]
    head = params["head"]
    return [*folded, FoldedConv(_to_oihw(head["kernel"]), _float32(head["bias"]), 1)]


def _fold_block(block: ConvBlock, params: Mapping, batch_stats: Mapping) -> FoldedConv:
    # In double precision: the product is rounded once.
    kernel = np.asarray(params["conv"]["kernel"], np.float64)
    bias = np.zeros(block.channels)
    if block.bias:
        bias = np.asarray(params["conv"]["bias"], np.float64)
    if block.norm:
        norm, running = params["norm"], batch_stats["norm"]
        variance = np.asarray(running["var"], np.float64)
        factor = np.asarray(norm["scale"], np.float64) / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = kernel * factor.reshape(1, 1, 1, -1)
        bias = (bias - np.asarray(running["mean"], np.float64)) * factor + norm["bias"]
    return FoldedConv(_to_oihw(kernel), _float32(bias), block.stride)


def _to_oihw(kernel: Any) -> np.ndarray:
    """[h w in out] as [out in h w]."""
    return _float32(np.asarray(kernel).transpose(3, 2, 0, 1))


def _float32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def make_serving(spec: ModelSpec, variables: Mapping[str, Any]) -> Serve:
    """The network and its decode as one function of a batch of images.

    It takes pixels from 0 to 255 as float32, [b c h w], and gives [b 5+k gh gw]: xc, yc, w, h as
    fractions of the image, objectness, class probabilities.

    Args:
      spec: for the images that are served, see `spec.served_spec`.
      variables: `params` and `batch_stats`.
    """
    backbone = get_backbone(spec.architecture)
    if isinstance(backbone, ConvBackbone):
        convs = fold_chain(backbone, variables)
        head = _with_prior_and_temperature(convs[-1], spec)
        activation = _activation(backbone)

        def raw_channels(images: Array) -> Array:
            x = images
            for conv, block in zip(convs[:-1], backbone.blocks, strict=True):
                y = activation(_conv(x, conv))
                x = x + y if block.residual else y
            return _conv(x, head)

    else:
        bias, temperature = np.log(_prior_wh(spec)), np.float32(spec.class_temperature)
        # A network of other layers is exported as Flax writes it, between two transpositions.
        network = dataclasses.replace(spec, normalize_images=False).network()

        def raw_channels(images: Array) -> Array:
            raw = network.apply(variables, images.transpose(0, 2, 3, 1), train=False)
            assert isinstance(raw, jax.Array)
            shift = np.zeros((1, raw.shape[-1], 1, 1), np.float32)
            shift[0, 2:4, 0, 0] = bias
            moved = raw.transpose(0, 3, 1, 2) + shift
            if temperature == 1:
                return moved
            scale = np.ones_like(shift)
            scale[0, BOX_CHANNELS:] = 1 / temperature
            return moved * scale

    # Computed here and not when traced: in the graph it is a constant.
    origins = np.asarray(cell_origins(spec.grid_hw)).transpose(2, 0, 1)[None]

    def serve(images: Array) -> Array:
        # As an operation of its own: folded into the first kernel it would leave weights that
        # half precision cannot hold, and the stick scales by itself what it sees behind it.
        pixels = images * np.float32(1 / 255) if spec.normalize_images else images
        return _decode(raw_channels(pixels), origins)

    return serve


def _activation(backbone: ConvBackbone) -> Callable[[Array], Array]:
    if backbone.activation == "silu":
        # Not `jax.nn.silu`: it is jitted, and the converter cannot look inside in newer JAX.
        return lambda x: x * jax.nn.sigmoid(x)
    return lambda x: jax.nn.leaky_relu(x, backbone.leaky_slope)


def _conv(x: Array, conv: FoldedConv) -> Array:
    padding = (conv.kernel.shape[2] - 1) // 2
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(conv.kernel),
        (conv.stride, conv.stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return y + conv.bias.reshape(1, -1, 1, 1)


def _prior_wh(spec: ModelSpec) -> np.ndarray:
    return np.asarray(spec.anchor_wh, np.float64) * np.asarray(spec.size_multiplier_wh, np.float64)


def _with_prior_and_temperature(head: FoldedConv, spec: ModelSpec) -> FoldedConv:
    """The head with all that follows from its linear outputs made part of its weights.

    `exp(t) * prior = exp(t + log(prior))` goes into the bias of the sizes; the temperature divides
    kernel and bias of the classes.
    """
    kernel, bias = head.kernel.astype(np.float64), head.bias.astype(np.float64)
    bias[2:4] += np.log(_prior_wh(spec))
    kernel[BOX_CHANNELS:] /= spec.class_temperature
    bias[BOX_CHANNELS:] /= spec.class_temperature
    return head._replace(kernel=kernel.astype(np.float32), bias=bias.astype(np.float32))


def _decode(raw: Array, origins: np.ndarray) -> Array:
    """Direct location prediction of a batch, see `detector/decode.py`; sizes hold the prior."""
    rows, columns = origins.shape[2:]
    xy, wh, objectness, logits = jnp.split(raw, (2, 4, BOX_CHANNELS), axis=1)
    per_cell = np.asarray((1 / columns, 1 / rows), np.float32).reshape(1, 2, 1, 1)
    parts = (
        jax.nn.sigmoid(xy) * per_cell + origins,
        jnp.exp(jnp.minimum(wh, MAX_LOG_SIZE)),
        jax.nn.sigmoid(objectness),
        jax.nn.softmax(logits, axis=1),
    )
    return jnp.concatenate(parts, axis=1)
