"""The training step compiled: for the devices of a run, for the memory that is free, and timed."""

import math
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from yogo_jax.checkpoint.store import TrainState
from yogo_jax.errors import UserError
from yogo_jax.parallel import Devices
from yogo_jax.training.step import StepMetrics, Steps


# XLA for CPUs removes the barriers between segments of a rematerialised step, and then merges what
# is computed twice, unless it is told not to. Its other schedule holds less at a time.
CPU_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "cse,cse_barrier_expander",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
# Of the free memory, what a step may take, and what it must leave besides. The rest is for images,
# validation and other programs.
_SHARE_OF_FREE = 0.85
_LEFT_BYTES = 256 * 2**20
_CGROUPS = Path("/sys/fs/cgroup")
# Smaller images are no advice, px.
_LEAST_SIDE = 64
# A first call that takes less is measured again: it waited for memory that the system hands out.
_SHORT_CALL_S = 2.0
# What takes longer is worth a word on what would be faster.
_LONG_EPOCH_S = 3600.0
_LONG_RUN_S = 6 * 3600.0


class TooLittleMemoryError(UserError):
    """The training step needs more memory than is free."""


def jit_train_step(steps: Steps, devices: Devices, shardings: Any = None) -> Any:
    """The step on all devices, jitted: of (state, inputs, requests), where the state is donated.

    Args:
      shardings: of its inputs; None is a spread batch.

    Returns:
      A function whose third argument and result are the requests of the processes: booleans [n r]
      of n devices, spread, become [r], whether any device had each. They cost no extra message.
    """

    def train_step(
        state: TrainState, inputs: Any, requests: jax.Array
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        # For `detector/cpu_conv.py`, which sums over the images itself.
        with jax.sharding.use_abstract_mesh(devices.mesh.abstract_mesh):
            state, metrics = steps(state, inputs)
        return state, metrics, requests.any(0)

    return jax.jit(
        train_step,
        in_shardings=(devices.copied, shardings or devices.by_image, devices.by_image),
        out_shardings=devices.copied,
        donate_argnums=0,
    )


def compile_train_step(
    make_steps: Callable[[bool], Steps],
    state: TrainState,
    inputs: Any,
    devices: Devices,
    *,
    batch_size: int,
    image_hw: tuple[int, int],
    rematerialized: bool | None,
    say: Callable[[str], None],
) -> tuple[jax.stages.Compiled, bool]:
    """The training step, compiled so that it fits into the memory that is free.

    What does not fit is compiled once more with rematerialised gradients, see `train_outputs`.

    Args:
      make_steps: the pure function, by whether it is rematerialised.
      inputs: of a call, or their shapes with their places; those by image are spread.
      devices: of the run; all of its processes come to the same decision.
      batch_size: images in a batch.
      image_hw: height and width of the images in px.
      rematerialized: whether the run was so until now, which it then stays, so that its numbers do
        not depend on where it goes on; None for a run that starts.

    Returns:
      A function of (state, inputs, requests), see `jit_train_step`, and whether it is
      rematerialised.

    Raises:
      TooLittleMemoryError: it does not fit either way; names a batch and an image size that do.
    """
    requests = jax.ShapeDtypeStruct((devices.count, 2), bool)
    shardings = jax.tree.map(lambda array: array.sharding, inputs)

    def compiled(images: int, *, rematerialize: bool) -> jax.stages.Compiled:
        def shape(array: Any) -> jax.ShapeDtypeStruct:
            rows = (images,) if array.sharding == devices.by_image else array.shape[:1]
            return jax.ShapeDtypeStruct((*rows, *array.shape[1:]), array.dtype)

        step = jit_train_step(make_steps(rematerialize), devices, shardings)
        options = CPU_OPTIONS if rematerialize and devices.on_cpu else None
        lowered = step.lower(state, jax.tree.map(shape, inputs), requests)
        return lowered.compile(compiler_options=options)

    text = "memory: the step takes"
    if not rematerialized:
        plain = compiled(batch_size, rematerialize=False)
        # Asked anew for each: worker processes and the compiler take memory meanwhile.
        needed, room = bytes_needed(plain), bytes_for_step(devices)
        if needed <= room:
            return plain, False
        del plain
        text = (
            f"memory: a step would take {_size(needed)}, and {_size(room)} are free for it. It "
            "takes"
        )
    small = compiled(batch_size, rematerialize=True)
    needed, room = bytes_needed(small), bytes_for_step(devices)
    if needed <= room:
        say(f"{text} {_size(needed)} and somewhat more time: it computes some features twice")
        if rematerialized is False:
            say(
                "note: until now this run did not. Its numbers go on with other rounding, not bit "
                "for bit"
            )
        return small, True
    del small

    def needed_by(images: int) -> int:
        return bytes_needed(compiled(images, rematerialize=True))

    # A little less than there is, since the next start does not find exactly as much.
    largest = _largest_batch(batch_size, devices.count, int(0.9 * room), needed, needed_by)
    raise TooLittleMemoryError(_refusal(needed, room, batch_size, image_hw, largest))


def bytes_needed(compiled: Any) -> int:
    """Bytes that a call of a compiled function takes besides its arguments.

    Args:
      compiled: as `jax.jit(f).lower(...).compile()` gives it.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    own = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(own, 0))


def _largest_batch(
    batch_size: int, step: int, room: int, needed: int, needed_by: Callable[[int], int]
) -> int:
    """The largest multiple of `step` images that fits, to a few images; 0 if there is none."""
    images = batch_size
    while images > 0 and needed > room:
        # Memory grows about as the batch.
        images = min(math.floor(images * room / needed), images - step) // step * step
        needed = needed_by(images) if images > 0 else 0
    return max(images, 0)


def _refusal(
    needed: int, room: int, batch_size: int, image_hw: tuple[int, int], largest: int
) -> str:
    height, width = image_hw
    # Memory grows about as the number of pixels in a batch.
    share = 0.85 * (largest / batch_size if largest else room / needed)
    smaller = [math.floor(side * math.sqrt(share) / 8) * 8 for side in image_hw]
    ways = []
    if largest:
        ways.append(f"set --config.train.batch_size={largest} (the largest that fits)")
    if min(smaller) >= _LEAST_SIDE:
        ways.append(f"set --config.data.image_hw={smaller[0]},{smaller[1]}")
    ways.append("free memory or take a machine with more")
    return (
        f"a training step of {batch_size} images of {height}x{width} px takes {_size(needed)} of "
        f"memory, and {_size(room)} are free for it: {', or '.join(ways)}"
    )


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


# ---- free memory ----


def free_bytes(devices: Devices) -> int:
    """Bytes that each device can still take: the least of all devices of the run.

    The devices of a CPU share the memory of their host. All processes have to ask.
    """
    hosts = devices.gather([socket.gethostname()])
    sharing = hosts.count(socket.gethostname())
    if devices.on_cpu:
        own = free_on_host() // (sharing * len(jax.local_devices()))
    else:
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        free = [
            int(each["bytes_limit"]) - int(each.get("bytes_in_use", 0))
            for each in stats
            if "bytes_limit" in each
        ]
        own = min(free) if free else 2**62
    return min(devices.gather([own]))


def bytes_for_step(devices: Devices) -> int:
    """Bytes of each device's free memory that a training step may take. All processes ask."""
    return max(int(_SHARE_OF_FREE * free_bytes(devices)) - _LEFT_BYTES, 0)


def free_on_host() -> int:
    """Bytes of memory that this process can still take: of the machine, its cgroup, its limits."""
    limits = [psutil.virtual_memory().available, *free_in_cgroups(), *_free_under_limits()]
    return max(min(limits), 0)


def _free_under_limits() -> Iterator[int]:
    """Bytes that `ulimit -v` and `ulimit -d` leave."""
    used = psutil.Process().memory_info()
    for name, taken in (("RLIMIT_AS", used.vms), ("RLIMIT_DATA", getattr(used, "data", used.rss))):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            yield limit - taken


def free_in_cgroups(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes that the limits of this process's cgroup, and of those around it, leave; none without.

    Args:
      root: where the cgroup file systems are mounted.
      own: names the cgroups of this process.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, files = root, ("memory.max", "memory.current", "inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            files = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            )
        else:
            continue
        folder = base / path.lstrip("/")
        # In a container the own group may be mounted as the root.
        for each in [folder, *folder.parents]:
            if (free := _free_in_cgroup(each, *files)) is not None:
                yield free
            if each == base:
                break


def _free_in_cgroup(folder: Path, limit: str, usage: str, *reclaimable: str) -> int | None:
    try:
        allowed = int((folder / limit).read_text(encoding="utf-8"))
        used = int((folder / usage).read_text(encoding="utf-8"))
        stat = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    # There is no such group, or "max": no limit.
    except (OSError, ValueError):
        return None
    counts = dict(line.split(maxsplit=1) for line in stat if " " in line)
    # The system gives cached files up for a program that asks.
    cached = sum(int(counts.get(name, 0)) for name in reclaimable)
    return allowed - used + cached


# ---- time ----


def seconds_of_call(
    step: jax.stages.Compiled, state: TrainState, inputs: Any, requests: jax.Array, devices: Devices
) -> float:
    """Seconds of a call of the compiled training step. Its result is not used."""

    def seconds() -> float:
        # The step writes into the state that it is given.
        copied = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        began = time.monotonic()
        jax.block_until_ready(step(copied, inputs, requests))
        return time.monotonic() - began

    first = seconds()
    # All processes take part in a call, so that all have to decide the same.
    return seconds() if devices.any(first < _SHORT_CALL_S) else first


def duration_lines(
    seconds: float,
    *,
    steps_per_epoch: int,
    steps_left: int,
    image_hw: tuple[int, int],
    small_network: bool,
    on_cpu: bool,
) -> list[str]:
    """Lines on how long an epoch and the rest of the run take, and on what is faster.

    Args:
      seconds: of a step.
      steps_left: until the end of the run.
      image_hw: height and width of its images in px.
      small_network: whether its network is one of the faster ones already.
      on_cpu: whether it runs on a CPU.
    """
    epoch, rest = seconds * steps_per_epoch, seconds * steps_left
    lines = [
        f"an epoch takes about {duration(epoch)} here ({steps_per_epoch} steps of "
        f"{duration(seconds)}), the {steps_left / steps_per_epoch:.3g} that are left about "
        f"{duration(rest)}; reading images and validation come on top"
    ]
    if epoch >= _LONG_EPOCH_S or rest >= _LONG_RUN_S:
        height, width = (side // 2 for side in image_hw)
        ways = [
            f"smaller images (--config.data.image_hw={height},{width} takes a quarter of the time)"
        ]
        if not small_network:
            ways.append("the faster network of --config configs/strong.py")
        if on_cpu:
            ways.append("a GPU")
        lines.append(f"faster: {', or '.join(ways)}")
    return lines


def duration(seconds: float) -> str:
    """A time in words: "34 ms", "1.5 s", "45 s", "12 min" or "3.5 h"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
