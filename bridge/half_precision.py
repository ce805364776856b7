"""What half precision would do to the activations of a network, layer by layer.

The stick computes in FP16: what grows over 65504 becomes infinite, what falls under the smallest
number becomes 0. Seen on frames, this is told before a stick is at hand.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.detector.spec import ModelSpec


LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def outputs_and_ranges(
    spec: ModelSpec, variables: Mapping[str, Any], frames: UInt8[np.ndarray, "n h w c"]
) -> tuple[Float[np.ndarray, "n outputs gh gw"], list[dict[str, Any]]]:
    """Outputs for frames, the range of each layer's, and what FP16 would make of them.

    Both at once, because a large network takes seconds a frame.

    Args:
      spec: of the frames.
      variables: of the network.
      frames: pixels.

    Returns:
      The outputs in the layout of exported models; and per layer `name`, `largest` (magnitude),
      `overflow_share` of values that would become infinite and `underflow_share` of values other
      than 0 that would become 0.
    """

    # Weights are an argument: as constants of the function a large network would fill the memory.
    @jax.jit
    def run(weights: Mapping[str, Any], frame: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        raw, state = spec.network().apply(
            weights, frame, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        layers = _by_name(state["intermediates"])
        predictions = spec.decode(raw)
        layers["decode/sizes"] = predictions.boxes_cxcywh[..., 2:]
        summaries = {name: _summary(outputs) for name, outputs in layers.items()}
        return spec.layout(predictions), summaries

    # One by one: the activations of all frames at once may not fit.
    both = [jax.device_get(run(variables, frame[None])) for frame in frames]
    per_frame = [summaries for _, summaries in both]
    ranges = []
    for name in per_frame[0]:
        largest, overflow, underflow = np.transpose([each[name] for each in per_frame])
        ranges.append(
            {
                "name": name,
                "largest": float(largest.max()),
                "overflow_share": float(overflow.mean()),
                "underflow_share": float(underflow.mean()),
            }
        )
    return np.concatenate([outputs for outputs, _ in both]), ranges


def _by_name(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Outputs of the layers that an exported network has, in order of their names."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(intermediates))
    named: dict[str, jax.Array] = {}
    for path, outputs in leaves:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        named["/".join(name for name in names if name != "__call__") or "network"] = outputs
    # A convolution before a batch norm is one with it when exported: its own range does not occur.
    normed = {name.removesuffix("/norm") for name in named if name.endswith("/norm")}
    return {
        name: outputs
        for name, outputs in named.items()
        if not (name.endswith("/conv") and name.removesuffix("/conv") in normed)
        and "Dropout" not in name
    }


def _summary(outputs: jax.Array) -> jax.Array:
    """Largest magnitude, and the shares that overflow and underflow."""
    magnitude = jnp.abs(outputs)
    overflow = (magnitude > LARGEST).mean()
    underflow = ((magnitude > 0) & (magnitude < SMALLEST / 2)).mean()
    return jnp.stack([magnitude.max(), overflow, underflow])
