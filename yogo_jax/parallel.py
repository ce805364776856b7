"""All devices of all processes as one: images are spread over them, everything else is copied.

What the compiler sums over the batch (loss, gradients, statistics of batch norm) it then sums over
all devices. A process reads the images of its own devices, and gets back what is computed of them;
`gather` brings together what the processes have.
"""

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from yogo_jax.data.pipeline import Share
from yogo_jax.errors import UserError


# Seconds that finished processes wait for the one that still writes the report.
_UNTIL_ALL_ARE_DONE = 1800
# Seconds until the last process of a run has to be there.
_UNTIL_ALL_HAVE_COME = 300
_UNTIL_REMINDED = 30


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
        many = f"{self.count} x " if self.count > 1 else ""
        processes = f" in {self.share.count} processes" if self.share.count > 1 else ""
        return f"{many}{first.platform} ({first.device_kind}){processes}"

    @property
    def on_cpu(self) -> bool:
        """True if the devices are CPUs."""
        return bool(self.mesh.devices.flat[0].platform == "cpu")

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory of each device; None where it is the host's own, or nobody says."""
        if self.on_cpu:
            return None
        limits = [(each.memory_stats() or {}).get("bytes_limit") for each in jax.local_devices()]
        return None if None in limits else min(int(each) for each in limits if each is not None)

    @property
    def first(self) -> bool:
        """True in the process that writes."""
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
        """True if the flag is set in any process; all of them have to ask."""
        if self.share.count == 1:
            return flag
        return bool(multihost_utils.process_allgather(np.asarray(flag)).any())

    def wait(self, name: str) -> None:
        """Returns when all processes are here."""
        if self.share.count > 1:
            multihost_utils.sync_global_devices(name)


class Coordinates(NamedTuple):
    """The meeting place of a run's processes, without SLURM; see the flags of `train`."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def are_several(given: Coordinates) -> bool:
    """True if this process is one of several that make up a run."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return tasks > 1 or any(each is not None for each in given)


def own_gpu(environment: Mapping[str, str]) -> list[int] | None:
    """The GPU of a task of SLURM, among those that it sees; None leaves it to JAX.

    JAX takes the one with the task's number on its node, which a task that was bound to one GPU
    (`--gpus-per-task`, `--gpu-bind`) does not see: there the only one is number 0.
    """
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    return [0] if seen and "," not in seen else None


def join_processes(given: Coordinates) -> None:
    """Makes one run of the processes that were started together; one alone stays alone.

    They are started by SLURM (`srun` with several tasks), or by hand with coordinates. To be called
    before JAX is asked for devices.

    Raises:
      UserError: some coordinates are missing or out of range.
    """
    if not are_several(given):
        return
    if given == Coordinates(None, None, None):
        _initialize({"cluster_detection_method": "slurm", "local_device_ids": own_gpu(os.environ)})
        return
    coordinator, num_processes, process_id = given
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator HOST:PORT, --num-processes N and --process-id I belong together: give "
            "all three, to every process"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}")
    if num_processes < 1:
        raise UserError(f"--num-processes must be 1 or more, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id must be from 0 to {num_processes - 1} for --num-processes "
            f"{num_processes}, got {process_id}"
        )
    _initialize(
        {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    )


def _initialize(meeting: Mapping[str, Any]) -> None:
    # Between CPUs; GPUs have their own way.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Said while there is time: in the end JAX aborts the process, with a message of its own.
    waiting = (
        f"still waiting for all processes of this run, up to {_UNTIL_ALL_HAVE_COME} s: start all "
        "of them, where every node can reach the one of process 0"
    )
    to_stderr = {"file": sys.stderr, "flush": True}
    reminder = threading.Timer(_UNTIL_REMINDED, print, [waiting], to_stderr)
    reminder.daemon = True
    reminder.start()
    try:
        jax.distributed.initialize(
            **meeting,
            initialization_timeout=_UNTIL_ALL_HAVE_COME,
            shutdown_timeout_seconds=_UNTIL_ALL_ARE_DONE,
        )
    except RuntimeError as error:
        raise UserError(
            f"the processes of this run cannot meet: {error}. If the port of process 0 is taken, "
            "give another (--coordinator HOST:PORT, under SLURM JAX_COORDINATOR_PORT)"
        ) from error
    finally:
        reminder.cancel()


def check_same_everywhere(devices: Devices, values: Mapping[str, Any]) -> None:
    """Refuses to train where processes see different things, which would not end or not be a run.

    Args:
      values: by name, what each process has; compared as text.

    Raises:
      UserError: naming what differs.
    """
    texts = {name: str(value) for name, value in values.items()}
    everywhere = devices.gather([texts])
    if different := [name for name in texts if len({each[name] for each in everywhere}) > 1]:
        own = ", ".join(f"{name} {texts[name][:80]}" for name in different)
        raise UserError(
            f"the processes of this run differ in {' and '.join(different)} (here: {own}): give "
            "all the same command, with data and --workdir on a file system that all nodes see"
        )


@contextmanager
def leave_at_once_on_error(orderly: type[BaseException]) -> Iterator[None]:
    """One of several processes that fails ends without waiting for the others.

    They wait for it in the middle of a sum: an orderly farewell would take all of them minutes.

    Args:
      orderly: passes through, since all processes end by it together.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, orderly) or jax.process_count() == 1:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
            print(
                f"error: process {jax.process_index()} of {jax.process_count()} ends; if another "
                "ended before it, that one says why",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def check_batch_size(batch_size: int, devices: Devices) -> None:
    """Refuses batches that cannot be spread evenly.

    Raises:
      UserError: naming the next size that can.
    """
    if batch_size % devices.count:
        larger = -(-batch_size // devices.count) * devices.count
        raise UserError(
            f"config.train.batch_size is {batch_size}, but it must be a multiple of the devices, "
            f"which are {devices}: set --config.train.batch_size={larger}"
        )
