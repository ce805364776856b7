"""A command in two processes that make up one run, without SLURM."""

import socket
import subprocess
from pathlib import Path

from runs import ROOT, environment


def two_processes(command: list[str], log: Path) -> list[subprocess.Popen]:
    """The command twice, as one run; what they say goes to LOG.0 and LOG.1."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = ["--coordinator", coordinator, "--num-processes", "2", "--process-id"]
    processes = []
    for index in range(2):
        with log.with_suffix(f".{index}").open("w") as file:
            processes.append(
                subprocess.Popen(
                    [*command, *flags, str(index)],
                    cwd=ROOT,
                    env=environment(optimized=False),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes
