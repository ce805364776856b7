"""All devices of all processes as one: images are spread over them, everything else is copied.

A process sees to its own devices. It reads the images that go there, and gets back what is computed
of them; `gather` brings together what the processes have.
"""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from yogo_jax.data.pipeline import Share


class Devices:
    """Every device that JAX has, in a mesh with the one axis `data`."""

    def __init__(self) -> None:
        # In the order of the processes, so that those hold consecutive images of a batch.
        devices = sorted(jax.devices(), key=lambda each: (each.process_index, each.id))
        self.mesh = Mesh(np.asarray(devices), ("data",))
        self.by_image = NamedSharding(self.mesh, PartitionSpec("data"))
        self.copied = NamedSharding(self.mesh, PartitionSpec())
        self.count = len(devices)
        self.share = Share(jax.process_index(), jax.process_count())

    def __str__(self) -> str:
        first = self.mesh.devices.flat[0]
        name = f"{first.platform} ({first.device_kind})"
        many = f"{self.count} x " if self.count > 1 else ""
        return f"{many}{name}" + (
            f" in {self.share.count} processes" if self.share.count > 1 else ""
        )

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory of each device; None where it is the host's own, or nobody says."""
        if self.mesh.devices.flat[0].platform == "cpu":
            return None
        limits = [(each.memory_stats() or {}).get("bytes_limit") for each in jax.local_devices()]
        return None if None in limits else min(int(each) for each in limits if each is not None)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.share.index == 0

    def spread(self, batch: Any) -> Any:
        """Arrays over all devices, of which this process gives its own images."""
        return jax.make_array_from_process_local_data(self.by_image, batch)

    def copy(self, tree: Any) -> Any:
        """The same values on every device; all processes have to give equal ones."""

        def copied(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and leaf.sharding == self.copied:
                return leaf
            return jax.make_array_from_process_local_data(self.copied, np.asarray(leaf))

        return jax.tree.map(copied, tree)

    def own(self, tree: Any) -> Any:
        """On the host, the rows of spread arrays that belong to this process's images."""

        def rows(array: jax.Array) -> np.ndarray:
            shards = sorted(array.addressable_shards, key=lambda each: each.index[0].start or 0)
            return np.concatenate([np.asarray(each.data) for each in shards])

        return jax.tree.map(rows, tree)

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """The values of all processes, the first one's first; each process gets all of them."""
        if self.share.count == 1:
            return list(values)
        sent = np.frombuffer(pickle.dumps(list(values)), np.uint8)
        sizes = multihost_utils.process_allgather(np.asarray(len(sent)))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(sent)] = sent
        received = multihost_utils.process_allgather(padded)
        lists = [
            pickle.loads(row[:size].tobytes()) for row, size in zip(received, sizes, strict=True)
        ]
        return [value for each in lists for value in each]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them have to ask."""
        if self.share.count == 1:
            return flag
        return bool(multihost_utils.process_allgather(np.asarray(flag)).any())

    def differing(self, values: Mapping[str, str]) -> list[str]:
        """Names of the values that are not the same in all processes; all of them have to ask."""
        everywhere = self.gather([dict(values)])
        return [name for name in values if len({each[name] for each in everywhere}) > 1]

    def wait(self, name: str) -> None:
        """Returns when all processes are here."""
        if self.share.count > 1:
            multihost_utils.sync_global_devices(name)
