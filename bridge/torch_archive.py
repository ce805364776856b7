"""Reads files that `torch.save` wrote, without PyTorch and without running what is in them.

Such a file is a zip archive of one pickle and of the raw bytes of its tensors. A pickle can call
anything by name; here only the names that tensors and plain containers need are known, and any
other name is refused before something is called.
"""

import collections
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from yogo_jax.errors import UserError


_STORAGE_DTYPES = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "BoolStorage": np.dtype("?"),
    "ByteStorage": np.dtype("<u1"),
    "CharStorage": np.dtype("<i1"),
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
}


# Tensors may repeat elements by strides of 0, but not so that a small file fills the memory.
_MOST_COPIES = 1024


class _RefusedError(Exception):
    """The file asks for what a checkpoint has no need of."""


def read_torch_archive(path: Path) -> Any:
    """Returns what was saved: dicts, lists, numbers and texts, with tensors as NumPy arrays.

    Raises:
      UserError: the file is missing, damaged, in the format before PyTorch 1.6, or its pickle names
        anything but tensors and plain containers. Nothing of it has run then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(archive)
    except _RefusedError as error:
        raise UserError(
            f"{path}: refused, nothing of it was run: {error}; expected a checkpoint of tensors, "
            "numbers and texts only; save its model_state_dict anew without other objects"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: {_no_archive(path, error)}") from None
    except Exception as error:  # a damaged pickle fails in any way
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}); expected a file as torch.save "
            "writes it; copy it again"
        ) from None


def _no_archive(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        return f"the archive is cut off or damaged ({error}); copy it again"
    if start[:1] == b"\x80":
        return (
            "a bare pickle, perhaps of PyTorch before 1.6; expected the zip archive of newer "
            "versions; load it with PyTorch and torch.save it anew"
        )
    return "no zip archive; expected a checkpoint as torch.save writes it (.pth)"


def _load(archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise zipfile.BadZipFile(f"{len(pickles)} entries data.pkl where one is expected")
    (name,) = pickles
    root = name.split("/")[0]
    byteorder = f"{root}/byteorder"
    if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
        raise _RefusedError("tensors of a big-endian machine")
    return _Unpickler(archive, root, archive.read(name)).load()


class _Unpickler(pickle.Unpickler):
    """Knows five names and ten types of storage."""

    def __init__(self, archive: zipfile.ZipFile, root: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise _RefusedError(f"its pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _device_name, count = pid
        is_storage = kind == "storage" and isinstance(dtype, np.dtype) and type(count) is int
        if not is_storage or not str(key).isdigit():
            raise _RefusedError(f"its pickle asks for {pid!r}, which is no tensor")
        data = self._archive.read(f"{self._root}/data/{key}")
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"tensor {key} has {len(data)} bytes, not {count * dtype.itemsize}")
        return np.frombuffer(data, dtype)


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: object
) -> np.ndarray:
    """The tensor that a storage holds at an offset, in steps of elements; a copy."""
    if not isinstance(storage, np.ndarray) or len(shape) != len(strides):
        raise _RefusedError("a tensor without a storage of its own")
    if any(type(value) is not int for value in (offset, *shape, *strides)):
        # Tensors in their place would wrap around in the arithmetic below.
        raise _RefusedError("a tensor whose shape is no whole numbers")
    if min((offset, *shape, *strides)) < 0:
        raise ValueError(f"a tensor of shape {shape}, strides {strides} at {offset}")
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        # NumPy would read on behind the end of the storage.
        raise ValueError(f"a tensor reaches to element {last} of {storage.size}")
    if math.prod(shape) > _MOST_COPIES * storage.size:
        raise ValueError(f"a tensor of shape {shape} over a storage of {storage.size}")
    in_bytes = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes).copy()


# All that a pickle may name beside the types of storage.
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda name, *_: name,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
