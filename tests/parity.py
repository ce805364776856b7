"""Finds the recorded numbers of the original implementation for the tests."""

from pathlib import Path

import numpy as np
import pytest


FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[2] / "shared"
REMOSCOPE = SHARED / "remoscope"
# Those with a checkpoint of their own, `model_NAME.pth`, and what it computes, `model_NAME.npz`.
RECORDED_NAMES = (
    "base_model",
    "silu_model",
    "half_filters",
    "quarter_filters",
    "depth_ver_0",
    "depth_ver_1",
    "depth_ver_3",
    "depth_ver_4",
)


def parity_file(name: str) -> Path:
    """The recorded file of that name; the test is skipped where it is not at hand."""
    for folder in (FIXTURES, SHARED / "parity"):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"recorded numbers {name} are not here: too large to be kept with the tests")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(parity_file(name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def data_set(name: str) -> Path:
    """The definition file of a real data set; the test is skipped where it is not at hand."""
    definition = SHARED / "data" / name / "dataset_published.yml"
    if not definition.exists():
        pytest.skip(f"the data set {name} is not here: it is not part of the project")
    return definition
