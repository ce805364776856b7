"""Where and by what a run, or a part of it between two stops, is computed."""

import os
import platform
import socket
from importlib import metadata
from typing import Any

from yogo_jax.training.metadata import git_revision


# What SLURM says of the job, by the names under which it is logged.
_SLURM = {
    "slurm_job_id": "SLURM_JOB_ID",
    "slurm_array_job_id": "SLURM_ARRAY_JOB_ID",
    "slurm_array_task_id": "SLURM_ARRAY_TASK_ID",
    "slurm_restart_count": "SLURM_RESTART_COUNT",
    "slurm_nodes": "SLURM_JOB_NODELIST",
}


def environment(devices: object) -> dict[str, Any]:
    """Plain values: git revision, host, devices, versions, and under SLURM the job's numbers.

    Args:
      devices: its text says which they are.
    """
    slurm = {name: os.environ[key] for name, key in _SLURM.items() if key in os.environ}
    return {
        "git_revision": git_revision(),
        "host": socket.gethostname(),
        "devices": str(devices),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("yogo_jax", "jax", "flax")},
        **slurm,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its folder, not installed
        return "unknown"
