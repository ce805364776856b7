"""Networks that come with the package, by name: weights in half precision, and their description.

Each is one file of `yogo_jax/networks/`, `NAME.npz`, with a model card `NAME.md` beside it.
`benchmarks/make_networks.py` made them. `store.find_checkpoint` finds them by name.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.errors import UserError


NETWORKS = Path(__file__).parent.parent / "networks"
# The entry of a file that holds the description; all others are weights, by their path.
_DESCRIPTION = "description.json"


def ready_networks() -> dict[str, Path]:
    """The file of each network, by its name."""
    return {path.stem: path for path in sorted(NETWORKS.glob("*.npz"))}


def ready_network(text: str) -> Path | None:
    """The file of the network of this name, or of the path of that file; None if it is none.

    A file or folder of that name in the current folder goes before it.
    """
    if is_packed(Path(text)):
        return Path(text)
    found = ready_networks().get(text)
    return None if found is None or Path(text).exists() else found


def is_packed(path: Path) -> bool:
    """True if a path is the file of a network of the package."""
    return path.parent == NETWORKS and path.suffix == ".npz" and path.is_file()


def check_may_change(checkpoint: Path) -> None:
    """Refuses to change a network of the package.

    Raises:
      UserError: it is one.
    """
    if is_packed(checkpoint):
        raise UserError(
            f"{checkpoint.stem} is a network of the package and stays as it is: train one of your "
            f"own from it (--config.train.from_pretrained={checkpoint.stem}), and give that run"
        )


def pack_network(path: Path, variables: Mapping[str, Any], metadata: Metadata) -> None:
    """Writes a network as one file.

    Args:
      path: NAME.npz.
      variables: `params` and `batch_stats`; kept in half precision.
      metadata: of its checkpoint. Its config is left out: it names files of one computer.

    Raises:
      UserError: a weight does not fit half precision.
    """
    arrays = {}
    for name, value in _flat(variables):
        with np.errstate(over="ignore"):
            arrays[name] = np.asarray(value).astype(np.float16)
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{name}: its values leave the range of half precision")
    description = json.dumps({**metadata.to_dict(), "config": {}})
    arrays[_DESCRIPTION] = np.frombuffer(description.encode(), np.uint8)
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            # A fixed time: the same network gives the same file.
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array)
            name_and_time = zipfile.ZipInfo(f"{name}.npy")
            file.writestr(name_and_time, entry.getvalue(), zipfile.ZIP_DEFLATED)


def unpack_network(path: Path) -> tuple[dict[str, Any], Metadata]:
    """Variables in float32, and metadata, of a file that `pack_network` wrote."""
    variables: dict[str, Any] = {}
    with np.load(path) as arrays:
        description = json.loads(arrays[_DESCRIPTION].tobytes())
        for name in arrays.files:
            if name == _DESCRIPTION:
                continue
            *groups, last = name.split("/")
            place = variables
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = arrays[name].astype(np.float32)
    return variables, Metadata.from_dict(description, path)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
