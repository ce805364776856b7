"""Checkpoints with random weights, for tests of what is done with a checkpoint."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from bridge.converted import write_converted
from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec


def make_spec(architecture: str, **changes) -> ModelSpec:
    spec = ModelSpec(
        architecture=architecture,
        class_names=("healthy", "ring", "misc"),
        image_hw=(96, 128),
        anchor_wh=(0.1, 0.15),
        rgb=False,
        normalize_images=True,
    )
    return dataclasses.replace(spec, **changes)


def random_variables(spec: ModelSpec) -> dict:
    """Weights as drawn, with batch statistics that are not those of a fresh network."""
    variables = init_variables(
        spec.network(), jax.random.key(0), image_hw=(64, 64), channels=spec.channels
    )
    rng = np.random.default_rng(0)

    def disturb(path, leaf):
        name = path[-1].key
        if name == "var":
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        if name in ("mean", "bias"):
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        # A head as drawn would saturate every output.
        return leaf * 0.1 if path[1].key == "head" else leaf

    return jax.tree_util.tree_map_with_path(disturb, variables)


def write_random_checkpoint(folder: Path, architecture: str = "quarter_filters", **changes) -> Path:
    spec = make_spec(architecture, **changes)
    write_converted(folder, spec, random_variables(spec), source="drawn")
    return folder
