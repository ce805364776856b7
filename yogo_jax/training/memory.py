"""Memory that is free for the training step, in bytes."""

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil

from yogo_jax.parallel import Devices


# Of the free memory, what a step may take, and what it must leave besides. The rest is for images,
# validation and other programs.
_SHARE_OF_FREE = 0.85
_LEFT_BYTES = 256 * 2**20
_CGROUPS = Path("/sys/fs/cgroup")


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
