"""One run on many devices, in one process or several.

Parameters are copied to every device and the images of a batch spread over them; what the compiler
sums over the batch (loss, gradients, statistics of batch norm) it then sums over all devices.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from yogo_jax.checkpoint.state import TrainState
from yogo_jax.errors import UserError
from yogo_jax.parallel import Devices
from yogo_jax.training.step import StepMetrics
from yogo_jax.training.stopping import Stopped


# Seconds that finished processes wait for the one that still writes the report.
_UNTIL_ALL_ARE_DONE = 1800
# Seconds until the last process of a run has to be there.
_UNTIL_ALL_HAVE_COME = 300
_UNTIL_REMINDED = 30


class Coordinates(NamedTuple):
    """Where the processes of a run meet, for clusters without SLURM; see the flags of `train`."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def are_several(given: Coordinates) -> bool:
    """Whether this process is one of several that make up a run."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return tasks > 1 or any(each is not None for each in given)


def own_gpu(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that a task of SLURM sees is its own; None leaves it to JAX.

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
    reminder = threading.Timer(_UNTIL_REMINDED, _say_waiting)
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


def _say_waiting() -> None:
    print(
        f"still waiting for all processes of this run, up to {_UNTIL_ALL_HAVE_COME} s: start all "
        "of them, where every node can reach the one of process 0",
        file=sys.stderr,
        flush=True,
    )


def check_same_everywhere(devices: Devices, values: Mapping[str, Any]) -> None:
    """Refuses to train where processes see different things, which would not end or not be a run.

    Args:
      devices: of the run.
      values: by name, what each process has; compared as text.

    Raises:
      UserError: naming what differs.
    """
    texts = {name: str(value) for name, value in values.items()}
    if different := devices.differing(texts):
        own = ", ".join(f"{name} {texts[name][:80]}" for name in different)
        raise UserError(
            f"the processes of this run differ in {' and '.join(different)} (here: {own}): give "
            "all the same command, with data and --workdir on a file system that all nodes see"
        )


@contextmanager
def leave_at_once_on_error() -> Iterator[None]:
    """One of several processes that fails ends without waiting for the others.

    They wait for it in the middle of a sum: an orderly farewell would take all of them minutes.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Stopped) or jax.process_count() == 1:
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


def compile_train_step(
    train_step: Callable[[TrainState, Any], tuple[TrainState, StepMetrics]],
    devices: Devices,
    inputs: Any = None,
) -> Any:
    """The step on all devices: a jitted function of (state, inputs, wishes), the state is donated.

    Args:
      train_step: the pure function.
      devices: to run on.
      inputs: shardings of its inputs; None is a spread batch.

    Returns:
      A function whose third argument and result are the wishes of the processes: booleans [n w] of
      n devices, spread, become [w], whether any device had each. They cost no extra message.
    """

    def step_and_wishes(
        state: TrainState, given: Any, wishes: jax.Array
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        # For `detector/cpu_conv.py`, which sums over the images itself.
        with jax.sharding.use_abstract_mesh(devices.mesh.abstract_mesh):
            state, metrics = train_step(state, given)
        return state, metrics, wishes.any(0)

    step_and_wishes.__name__ = "train_step"
    return jax.jit(
        step_and_wishes,
        in_shardings=(devices.copied, inputs or devices.by_image, devices.by_image),
        out_shardings=devices.copied,
        donate_argnums=0,
    )
