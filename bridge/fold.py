"""Batch norms folded into the convolutions before them: the same function with fewer operations.

References:
  Jacob et al. 2017, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
  Only Inference, arXiv:1712.05877, section 3.2 (batch norm folding).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from yogo_jax.detector.architectures import ConvBackbone, ConvBlock
from yogo_jax.detector.network import BATCH_NORM_EPSILON


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
