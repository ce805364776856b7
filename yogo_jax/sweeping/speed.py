"""How fast and how large a network is: what a sweep weighs accuracy against."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from yogo_jax.detector.spec import ModelSpec


BATCH_SIZE = 8
SECONDS = 1.0
MIN_ROUNDS = 3


class Speed(NamedTuple):
    """Frames a second of the forward pass, and where and how they were measured."""

    frames_per_second: float
    device: str
    batch_size: int


def measure_speed(spec: ModelSpec, variables: Mapping[str, Any]) -> Speed:
    """Speed of network and decoding in one jit on the default device, from pixels in its memory.

    Of the fastest of the rounds that fit into a second, three at least: what else runs on the
    device can only slow it down. The first, which compiles, does not count.

    Args:
      spec: of the model.
      variables: its weights.
    """
    device = jax.devices()[0]
    shape = (BATCH_SIZE, *spec.image_hw, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = jax.device_put(pixels, device)
    weights = jax.device_put(dict(variables), device)
    predict = jax.jit(spec.predict)
    jax.block_until_ready(predict(weights, images))
    rounds = 0
    fastest = float("inf")
    began = time.perf_counter()
    while rounds < MIN_ROUNDS or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(predict(weights, images))
        fastest = min(fastest, time.perf_counter() - start)
        rounds += 1
    where = f"{device.platform} ({device.device_kind})"
    return Speed(BATCH_SIZE / fastest, where, BATCH_SIZE)


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Numbers that training learns: those of `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
