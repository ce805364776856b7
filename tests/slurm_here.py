"""A real SLURM on this machine alone, for as long as it is needed.

    python tests/slurm_here.py COMMAND [ARGUMENT ...]

Runs a command (as `sbatch slurm/train.sbatch …` or a shell) with a SLURM of its own: configuration,
keys, state and logs lie in a temporary folder, ports are free ones, and everything ends with the
command. Needs root and Debian's `slurm-wlm` and `munge`.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any


# One CPU a task and no GPU, over what the job scripts ask for.
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1", "--nodes=1")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=600
FirstJobId={first_job}
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Names what is missing for a SLURM here; empty if nothing is."""
    missing = [name for name in PROGRAMS if find(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons start jobs as root only"


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    """A running one.

    Attributes:
      environment: with which SLURM's commands find it.
      folder: of its logs.
    """

    def __init__(self, config: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(config)}
        self.folder = config.parent

    def run(self, *command: str, env: Mapping[str, str] | None = None, **options: Any) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(
            command,
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def submit(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Puts a job into the queue by `sbatch`, and returns its id."""
        return self.run("sbatch", "--parsable", *arguments, env=env, cwd=cwd)

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, as JobState or Restarts."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(f"{name}="))

    def wait_for(self, job: str, *states: str, seconds: float = 60) -> str:
        """Returns when the job is in one of the states, which it gives back."""
        what = f"job {job} to be {' or '.join(states)}"
        wait_until(lambda: self.field(job, "JobState") in states, what, self.folder, seconds)
        return self.field(job, "JobState")

    def start_again(self, job: str) -> None:
        """Lets a requeued job start at once; by itself it would wait for two minutes.

        Not in the second in which its last start ended: SLURM would take it for that one.
        """
        state = ("squeue", "--noheader", "--format=%T", f"--job={job}")
        wait_until(
            lambda: self.run(*state) == "PENDING", f"job {job} to be requeued", self.folder, 60
        )
        time.sleep(1.1)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")


@contextmanager
def daemon(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition: Any, what: str, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "".join(f"\n{log}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))
            raise TimeoutError(f"{what} takes more than {seconds} s{logs}")
        time.sleep(0.1)


@contextmanager
def slurm_here(cpus: int = 2) -> Iterator[Slurm]:
    """Starts a SLURM with one node of some CPUs, ready for jobs; ends it and its jobs.

    Its folder is short, as names of sockets have to be.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm_")))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        controller_port, node_port = free_ports(2)
        config = folder / "slurm.conf"
        config.write_text(
            CONFIG.format(
                folder=folder,
                controller_port=controller_port,
                node_port=node_port,
                # JAX takes the port at which processes meet from the job's number: another SLURM on
                # this machine must not give the same ones.
                first_job=1 + secrets.randbelow(10_000_000),
                host=socket.gethostname().split(".")[0],
                cpus=cpus,
            )
        )
        # Its folder would have to belong to nobody else, up to the root, but for --force.
        munge = ["--foreground", "--force", f"--key-file={key}", f"--seed-file={folder}/seed"]
        munge += [f"--{each}={folder}/munge.{each}" for each in ("socket", "pid-file", "log-file")]
        stack.enter_context(daemon([find("munged") or "", *munge], folder / "munged.log"))
        wait_until((folder / "munge.socket").exists, "munged", folder)
        for name in ("slurmctld", "slurmd"):
            command = [find(name) or "", "-D", "-f", str(config)]
            if name == "slurmd":
                command += ["-N", "localhost"]
            stack.enter_context(daemon(command, folder / f"{name}.log"))
        slurm = Slurm(config)

        def idle() -> bool:
            done = subprocess.run(
                ["sinfo", "--noheader", "--format=%t"],
                env=slurm.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            return done.stdout.strip() == "idle"

        wait_until(idle, "SLURM", folder)
        try:
            yield slurm
        finally:
            subprocess.run(
                ["scancel", "--user=root", "--quiet"], env=slurm.environment, check=False
            )
            wait_until(
                lambda: not slurm.run("squeue", "--noheader"), "the end of the jobs", folder, 60
            )


def main() -> None:
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with slurm_here(cpus=max(2, os.cpu_count() or 1)) as slurm:
        sys.exit(subprocess.run(sys.argv[1:], env=slurm.environment, check=False).returncode)


if __name__ == "__main__":
    main()
