"""Reads checkpoints of the original implementation in tests, without PyTorch.

A `.pth` is a zip of raw storages and one pickle; only the three names that such a file needs are
unpickled, anything else is refused.
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
    "BoolStorage": np.dtype("?"),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._root = root

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _rebuild(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: object
) -> np.ndarray:
    bytes_per_step = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, bytes_per_step).copy()


def read_pth(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        return _Unpickler(archive.read(f"{root}/data.pkl"), archive, root).load()


def conv_kernel(weight: np.ndarray) -> np.ndarray:
    """Torch's [out in h w] as Flax's [h w in out]."""
    return weight.transpose(2, 3, 1, 0)


def to_variables(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Flax variables of a convolutional network from the original's `model_state_dict`."""
    params: dict[str, Any] = {}
    batch_stats: dict[str, Any] = {}
    keys = [key.split(".")[1:] for key in state if key.startswith("model.")]
    head = max(int(parts[0]) for parts in keys)
    for parts in keys:
        value = state[".".join(["model", *parts])]
        index, leaf = int(parts[0]), parts[-1]
        if leaf == "num_batches_tracked":
            continue
        unit = "head" if index == head else f"block_{index}"
        if index == head:
            name = {"weight": "kernel", "bias": "bias"}[leaf]
            params.setdefault(unit, {})[name] = conv_kernel(value) if value.ndim == 4 else value
        elif parts[1] == "0":
            name = {"weight": "kernel", "bias": "bias"}[leaf]
            block = params.setdefault(unit, {}).setdefault("conv", {})
            block[name] = conv_kernel(value) if value.ndim == 4 else value
        elif leaf.startswith("running_"):
            batch_stats.setdefault(unit, {}).setdefault("norm", {})[leaf[8:]] = value
        else:
            name = {"weight": "scale", "bias": "bias"}[leaf]
            params.setdefault(unit, {}).setdefault("norm", {})[name] = value
    return {"params": params, "batch_stats": batch_stats}


def convnext_to_variables(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Flax variables of convnext_small from the original's `model_state_dict`."""
    trunk: dict[str, Any] = {}
    params: dict[str, Any] = {"trunk": trunk}

    def put(tree: dict, module: str, leaf: str, value: np.ndarray, norm: bool = False) -> None:
        name = {"weight": "scale" if norm else "kernel", "bias": "bias"}[leaf]
        tree.setdefault(module, {})[name] = value

    for key, value in state.items():
        parts = key.split(".")[1:]
        leaf = parts[-1]
        kernel = conv_kernel(value) if value.ndim == 4 else value.T if value.ndim == 2 else value
        if parts[0] == "format time!":
            if parts[1] == "0":
                put(params, "head", leaf, kernel)
            else:
                # A transposed convolution is a correlation with the mirrored kernel in Flax.
                mirrored = value.transpose(2, 3, 0, 1)[::-1, ::-1] if value.ndim == 4 else value
                put(params, "upsample", leaf, mirrored)
        elif parts[0] == "0":
            norm = parts[1] == "1"
            put(trunk, "downsample_norm_0" if norm else "downsample_0", leaf, kernel, norm)
        elif parts[2] == "downsample":
            norm = parts[3] == "0"
            stage = parts[1]
            name = f"downsample_norm_{stage}" if norm else f"downsample_{stage}"
            put(trunk, name, leaf, kernel, norm)
        else:
            unit = trunk.setdefault(f"stage_{parts[1]}_{parts[3]}", {})
            if parts[4] == "gamma":
                unit["gamma"] = value
            elif parts[4] == "mlp":
                put(unit, {"fc1": "expand", "fc2": "project"}[parts[5]], leaf, kernel)
            else:
                name = {"conv_dw": "depthwise", "norm": "norm"}[parts[4]]
                put(unit, name, leaf, kernel, parts[4] == "norm")
    return {"params": params}
