"""Kills or stops a training command again and again, and looks at what is left each time."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np

from runs import ROOT, environment, run_command, train_command
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.store import (
    TrainState,
    committed_checkpoints,
    read_metadata,
    restore_state,
)
from yogo_jax.config.schema import from_mapping
from yogo_jax.errors import EXIT_TO_BE_CONTINUED
from yogo_jax.training.optimizer import learning_rate_schedule, make_optimizer


def steps_logged(workdir: Path) -> int:
    return sum(record["kind"] == "train" for record in read_metrics(workdir / "metrics.jsonl"))


def start(command: list[str], log: Path, mark: str) -> subprocess.Popen:
    """The command in a process that, with all its children, carries a mark."""
    with log.open("a") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(optimized=True), "YOGO_TEST_MARK": mark},
            start_new_session=True,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def processes_with(mark: str) -> list[int]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"YOGO_TEST_MARK={mark}".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def assert_nothing_survives(mark: str) -> None:
    deadline = time.monotonic() + 20
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_with(mark), "processes outlive the run that started them"


def state_of(folder: Path) -> TrainState:
    """The whole state in a checkpoint; no length of the schedule is part of it."""
    metadata = read_metadata(folder)
    optim = from_mapping(metadata.config).optim
    tx = make_optimizer(optim, learning_rate_schedule(optim, 1))
    return restore_state(folder, metadata.model, tx, averages=optim.ema_decay > 0)


def readable_steps(workdir: Path) -> list[int]:
    """Steps of the committed checkpoints, every one of which is read in full."""
    steps = []
    for folder in committed_checkpoints(workdir / "checkpoints"):
        metadata = read_metadata(folder)
        state = state_of(folder)
        assert int(state.step) == metadata.step == int(folder.name)
        steps.append(metadata.step)
    return steps


def end(process: subprocess.Popen, number: signal.Signals) -> float:
    """Sends a signal as a scheduler does, and returns the seconds until the process is gone."""
    began = time.monotonic()
    if number == signal.SIGKILL:
        process.kill()
    else:
        # To the worker processes, too.
        os.killpg(process.pid, number)
    process.wait(timeout=60)
    return time.monotonic() - began


def assert_stopped_in_order(
    process: subprocess.Popen, number: signal.Signals, seconds: float, said: str, latest: int
) -> None:
    """It left in time, and the last step that it took is saved."""
    # A process that just comes to life, with nothing done, dies of the signal.
    assert process.returncode in (EXIT_TO_BE_CONTINUED, -number), said[-2000:]
    assert seconds < 30
    saved = re.findall(r"step (\d+) of \d+ is saved", said)
    assert not saved or int(saved[-1]) == latest


def train_under_fire(
    command: list[str], workdir: Path, *, signals: list[signal.Signals], seed: int, log: Path
) -> list[dict]:
    """Runs a command to its end through signals at random moments, SIGKILL or polite ones.

    Returns a row per signal: seconds since the start and until the end, steps logged, checkpoints
    readable after it.
    """
    rng = random.Random(seed)
    rows = []
    latest = 0
    for number in signals:
        mark = f"{workdir}-{len(rows)}"
        said_before = len(log.read_text()) if log.exists() else 0
        process = start(command, log, mark)
        # Half of the kills fall after the run has come to life, the others at any moment of it.
        before = latest
        if len(rows) % 2 == 0:
            while process.poll() is None and steps_logged(workdir) <= before:
                time.sleep(0.02)
        began = time.monotonic()
        deadline = began + rng.uniform(0.0, 1.5 if len(rows) % 2 == 0 else 12.0)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0, log.read_text()[-2000:]
            raise AssertionError(f"the run ended before its end {len(rows) + 1}: make it longer")
        took = end(process, number)
        assert_nothing_survives(mark)
        steps = readable_steps(workdir)
        assert not steps or steps[-1] >= latest, "a finished checkpoint was lost"
        assert steps or not latest, "all checkpoints were lost"
        latest = steps[-1] if steps else 0
        if number != signal.SIGKILL:
            said = log.read_text()[said_before:]
            assert_stopped_in_order(process, number, took, said, latest)
        rows.append(
            {
                "signal": number.name,
                "seconds": round(time.monotonic() - began, 2),
                "until_exit": round(took, 2),
                "logged": steps_logged(workdir),
                "checkpoints": steps,
            }
        )
    process = start(command, log, "last")
    assert process.wait(timeout=600) == 0, log.read_text()[-2000:]
    return rows


def assert_equals_a_run_in_peace(
    definition: Path, folder: Path, overrides: dict, *, steps: int
) -> None:
    """Losses and final state of the run in `folder/run` against those of one that nobody killed."""
    # How often it saves changes nothing but its time.
    rarely = {**overrides, "train__checkpoint_every_minutes": 60.0}
    done = run_command(train_command(definition, folder / "peace", **rarely), optimized=True)
    assert done.returncode == 0, done.stderr
    assert_same_runs(folder / "run", folder / "peace", steps=steps)


def assert_same_runs(*workdirs: Path, steps: int) -> None:
    """Losses of every step and the final state of two runs, bit for bit."""
    logged = []
    states = []
    for workdir in workdirs:
        records = read_metrics(workdir / "metrics.jsonl")
        logged.append([(r["step"], r["loss"]) for r in records if r["kind"] == "train"])
        last = committed_checkpoints(workdir / "checkpoints")[-1]
        states.append(jax.tree.leaves(state_of(last)))
    assert [step for step, _ in logged[0]] == list(range(1, steps + 1))
    assert logged[0] == logged[1]
    for found, expected in zip(*states, strict=True):
        np.testing.assert_array_equal(found, expected)
