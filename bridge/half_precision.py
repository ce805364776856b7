"""What half precision would do to the activations of a network, layer by layer.

The stick computes in FP16: what grows over 65504 becomes infinite, what falls under the smallest
number becomes 0. Seen on frames, this is told before a stick is at hand.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from yogo_jax.detector.spec import ModelSpec


LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def activation_ranges(
    spec: ModelSpec, variables: Mapping[str, Any], frames: UInt8[np.ndarray, "n h w c"]
) -> list[dict[str, Any]]:
    """The range of each layer's outputs over frames, and what FP16 would make of them.

    Args:
      spec: of the frames.
      variables: of the network.
      frames: pixels.

    Returns:
      Per layer `name`, `largest` (magnitude), `overflow_share` of values that would become
      infinite and `underflow_share` of values other than 0 that would become 0.
    """

    # Weights are an argument: as constants of the function a large network would fill the memory.
    @jax.jit
    def run(weights: Mapping[str, Any], frame: jax.Array) -> dict[str, jax.Array]:
        raw, state = spec.network().apply(
            weights, frame, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        layers = _by_name(state["intermediates"])
        layers["decode/sizes"] = spec.decode(raw).boxes_cxcywh[..., 2:]
        return {name: _summary(outputs) for name, outputs in layers.items()}

    # One by one: the activations of all frames at once may not fit.
    per_frame = [jax.device_get(run(variables, frame[None])) for frame in frames]
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
    return ranges


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
