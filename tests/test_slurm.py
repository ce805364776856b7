"""The job scripts under a real SLURM on this machine, with a stand-in for the training."""

import os
import subprocess
import sys
import time

import pytest

from runs import ROOT
from slurm_here import SMALL, wait_until


# Stands for the training: says that it is alive, and ends as it is told.
STAND_IN = """#!/bin/bash
[ "$1" = -c ] && exit
trap 'echo got USR1; exit 75' USR1
trap 'echo got TERM; exit 75' TERM
echo "alive: $*"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && exit 0
[ -n "$CODE" ] && exit "$CODE"
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""


@pytest.fixture
def job(slurm, tmp_path):
    """Submits a script with the stand-in for Python; gives its id and its log."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def submit(script, *arguments, tasks="1", **env):
        env = {"PYTHON": str(python), **env}
        options = (*SMALL, f"--ntasks-per-node={tasks}", f"--output={tmp_path}/%j.log")
        job_id = slurm.submit(*options, f"slurm/{script}", *arguments, env=env, cwd=ROOT)
        return job_id, tmp_path / f"{job_id}.log"

    return submit


CONFIG = ("--config", "configs/demo.py")


def alive(log):
    wait_until(lambda: log.exists() and "alive" in log.read_text(), "the job", log.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_signal_sends_the_job_back_into_the_queue(slurm, job, name):
    job_id, log = job("train.sbatch", *CONFIG, "--config.seed=3")
    alive(log)
    began = time.monotonic()
    slurm.run("scancel", f"--signal={name}", "--batch", job_id)
    slurm.start_again(job_id)
    assert time.monotonic() - began < 15
    assert slurm.wait_for(job_id, "COMPLETED", "FAILED") == "COMPLETED"
    assert slurm.field(job_id, "Restarts") == "1"
    # The same workdir both times.
    said = (
        f"alive: -m yogo_jax.train {' '.join(CONFIG)} --config.seed=3 --workdir runs/yogo-{job_id}"
    )
    text = log.read_text()
    assert text.count(said) == 2
    assert f"got {name}" in text
    assert f"status 75 after SIG{name}: back into the queue" in text
    assert "start 2" in text


@pytest.mark.slow
def test_several_tasks_get_the_signal_and_the_job_goes_back(slurm, job):
    job_id, log = job("multi_node.sbatch", *CONFIG, "--workdir=runs/x", tasks="2")
    alive(log)
    slurm.run("scancel", "--signal=TERM", "--batch", job_id)
    slurm.start_again(job_id)
    assert slurm.wait_for(job_id, "COMPLETED", "FAILED") == "COMPLETED", log.read_text()
    assert log.read_text().count("got USR1") == 2


@pytest.mark.slow
def test_a_cancelled_job_does_not_come_back(slurm, job):
    job_id, log = job("train.sbatch", *CONFIG)
    alive(log)
    slurm.run("scancel", job_id)
    slurm.wait_for(job_id, "CANCELLED")
    wait_until(lambda: not slurm.run("squeue", "--noheader"), "the end", log.parent)
    assert slurm.field(job_id, "JobState") == "CANCELLED"
    assert "back into the queue" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("code", ["1", "2"])
def test_a_failed_job_does_not_come_back(slurm, job, code):
    job_id, log = job("train.sbatch", *CONFIG, CODE=code)
    slurm.wait_for(job_id, "FAILED")
    assert slurm.field(job_id, "ExitCode") == f"{code}:0"
    assert "back into the queue" not in log.read_text()


REFUSALS = [
    pytest.param([], {}, "no config given: sbatch slurm/", id="no config"),
    pytest.param(["--config", "no.py"], {}, "--config no.py: no such file", id="config"),
    pytest.param(["--config=no.py:1"], {}, "--config no.py:1: no such file", id="joined"),
    pytest.param(CONFIG, {"PYTHON": "no/python"}, "no/python is no command", id="python"),
    pytest.param(CONFIG, {"PYTHON": "false"}, "false lacks jax, grain or", id="packages"),
    pytest.param(CONFIG, {"SLURM_SUBMIT_DIR": "/tmp"}, "from the root of the checkout", id="place"),
]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.sbatch", "multi_node.sbatch"])
@pytest.mark.parametrize(("arguments", "env", "message"), REFUSALS)
def test_scripts_refuse_what_cannot_work(script, arguments, env, message):
    done = subprocess.run(
        ["bash", f"slurm/{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "SLURM_SUBMIT_DIR": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "tasks", "refused"),
    [(None, "2", False), ("0", "2", False), ("4", "4", False), ("4", "1", True), ("4", "", True)],
)
def test_several_nodes_take_one_task_a_gpu(gpus, tasks, refused):
    env = {"SLURM_NTASKS_PER_NODE": tasks, "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(
        ["bash", "slurm/multi_node.sbatch"],
        cwd=ROOT,
        env={**os.environ, **env, **({} if gpus is None else {"SLURM_GPUS_ON_NODE": gpus})}
        | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    expected = "4 GPUs a node, but" if refused else "no config given"
    assert expected in done.stderr
