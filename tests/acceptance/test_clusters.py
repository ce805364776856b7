"""The long checks of training and sweeps under a real SLURM, which is started for them."""

import json
import random
import re
import sys
import time

import pytest

from browser import assert_fits_the_width, open_page
from kills import assert_same_runs, readable_steps, steps_logged
from parity import data_set
from runs import ROOT, environment, logged_losses, run_aloud, train_command
from slurm_here import SMALL
from tiny_data import write_dataset
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.store import committed_checkpoints, read_metadata
from yogo_jax.ownership import read_claims


pytestmark = pytest.mark.acceptance


# Of the runs that are preempted: 32 images for training in batches of 4, validated every epoch.
STEPS_PER_EPOCH = 8


def submit(slurm, command, log, *, tasks):
    """Puts a training command into the queue, in as many processes."""
    script = "slurm/train.sbatch" if tasks == 1 else "slurm/multi_node.sbatch"
    options = (*SMALL, f"--ntasks-per-node={tasks}", f"--output={log}")
    env = {**environment(optimized=True), "PYTHON": command[0]}
    return slurm.submit(*options, script, *command[3:], env=env, cwd=ROOT)


def assert_completes(slurm, job, log, *, seconds):
    assert slurm.wait_for(job, "COMPLETED", "FAILED", seconds=seconds) == "COMPLETED", (
        log.read_text()[-3000:]
    )


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def preempt(slurm, job, workdir, log, *, start, rng):
    """Stops a job at a random moment, and lets it start again; seconds until it was gone."""
    until(lambda: f"start {start + 1}\n" in (log.read_text() if log.exists() else ""), 60)
    began, before, said = time.monotonic(), steps_logged(workdir), len(log.read_text())
    if start % 2:
        # Every other time when steps are being taken, else at any moment from the job's first on.
        until(lambda: steps_logged(workdir) > before, 60)
    time.sleep(rng.uniform(0, 2.0 if start % 2 else 10.0))
    at, signalled = steps_logged(workdir), time.monotonic()
    slurm.run("scancel", "--signal=TERM", "--batch", job)
    until(lambda: slurm.field(job, "JobState") != "RUNNING", 60)
    ended = time.monotonic()
    text = log.read_text()[said:]
    assert "back into the queue" in text, text[-2000:]
    steps = readable_steps(workdir)
    # Nothing is done twice: every step that was taken is saved.
    latest = steps[-1] if steps else 0
    assert latest == steps_logged(workdir) >= before
    if latest == before:
        phase = "starting"
    else:
        checkpoint = read_metadata(committed_checkpoints(workdir / "checkpoints")[-1])
        cut = latest % STEPS_PER_EPOCH == 0 and checkpoint.validation is None
        phase = "validating" if cut else "stepping or saving"
    slurm.start_again(job)
    print(
        f"{signalled - began:>10.2f}{ended - signalled:>20.2f}{before:>14}{at:>15}{latest:>7}  "
        f"{phase}"
    )
    return ended - signalled


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_that_is_preempted_ten_times_ends_as_one_in_peace(slurm, tmp_path, tasks):
    definition = write_dataset(tmp_path / "data", images=64, published=True)
    overrides = {
        "train__epochs": 16,
        "train__checkpoint_every_minutes": 0.002,
        "data__workers": 2,
    }
    run, log, rng = tmp_path / "run", tmp_path / "log", random.Random(tasks)
    job = submit(slurm, train_command(definition, run, **overrides), log, tasks=tasks)
    print("\nmoment (s)  signal to exit (s)  steps before  at the signal  saved  when")
    for start in range(10):
        assert preempt(slurm, job, run, log, start=start, rng=rng) < 30
    assert_completes(slurm, job, log, seconds=900)
    assert slurm.field(job, "Restarts") == "10"
    peace, log = tmp_path / "peace", tmp_path / "log of peace"
    job = submit(slurm, train_command(definition, peace, **overrides), log, tasks=tasks)
    assert_completes(slurm, job, log, seconds=900)
    assert_same_runs(run, peace, steps=16 * STEPS_PER_EPOCH)


def test_one_device_four_devices_and_two_processes_are_one_run(slurm, tmp_path, monkeypatch):
    """An epoch of BCCD with the base model, compiled as users do.

    Sums are rounded in another order, and at the learning rate of the recipe the first steps, which
    halve the loss, make much of that: here it is a thirtieth.
    """
    fields = {
        "data__image_hw": "120,160",
        "data__normalize_images": True,
        "model__name": "base_model",
        "train__batch_size": 8,
        "train__epochs": 1,
        "optim__learning_rate": 1e-5,
    }
    runs = {name: tmp_path / name for name in ("one", "two", "four")}
    commands = {name: train_command(data_set("bccd"), run, **fields) for name, run in runs.items()}
    four_devices = "--xla_force_host_platform_device_count=4"
    run_aloud(commands["one"])
    job = submit(slurm, commands["two"], tmp_path / "log", tasks=2)
    assert_completes(slurm, job, tmp_path / "log", seconds=900)
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", four_devices)
        run_aloud(commands["four"])
    expected = logged_losses(runs["one"])
    assert len(expected) >= 20
    for name in ("two", "four"):
        found = logged_losses(runs[name])
        largest = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
        print(f"{name}: {len(found)} losses, relative difference up to {largest:.1e}")
        assert found[:20] == pytest.approx(expected[:20], rel=1e-5)
    # One checkpoint, of two processes: its metrics there, on one device and on four.
    metrics = [(runs["two"] / "test" / "metrics.json").read_text()]
    for name, flags in (("1", ""), ("4", four_devices)):
        monkeypatch.setenv("XLA_FLAGS", flags)
        output = tmp_path / f"on {name}"
        command = [sys.executable, "-m", "yogo_jax.evaluate", str(runs["two"])]
        run_aloud([*command, "--batch-size", "8", "--output", str(output)])
        metrics.append((output / "metrics.json").read_text())
    assert json.loads(metrics[0]) == json.loads(metrics[1]) == json.loads(metrics[2])


SMALL_SWEEP = """\
from configs import sweep

def get_config():
    config = sweep.get_config()
    config.data.update(normalize_images=True, workers=0)
    config.model.anchor = "auto"
    config.train.update(epochs=10, eval_every_epochs=1)
    config.sweep.update(trials=6, random_trials=3)
    config.sweep.pruner.update(startup_trials=3, warmup_epochs=5)
    config.sweep.space = {
        "data": {"image_hw": {"choice": ((96, 128), (120, 160))}},
        "model": {"name": {"choice": ("quarter_filters", "half_filters")}},
        "loss": {"no_object_weight": {"log": (0.05, 0.5)}},
        "optim": {"learning_rate": {"log": (1e-3, 1e-2)}},
        "train": {"batch_size": {"choice": (4, 8)}},
    }
    return config
"""


def test_sweep_of_a_slurm_array_with_a_cancelled_task(slurm, tmp_path):
    """Six trials on BCCD, two tasks at a time; the task of trial 0 is cancelled in the middle."""
    (tmp_path / "small.py").write_text(SMALL_SWEEP)
    study = tmp_path / "study"
    job = slurm.submit(
        *("--gres=none", "--cpus-per-task=1", "--array=0-5%2"),
        *(f"--output={tmp_path}/%x-%A_%a.log", "slurm/sweep.sbatch"),
        *("--config", str(tmp_path / "small.py"), "--study", str(study)),
        *("--stale-after", "20", f"--config.data.definition={data_set('bccd')}"),
        env={**environment(optimized=True), "PYTHON": sys.executable},
        cwd=ROOT,
    )

    def queued():
        return slurm.run("squeue", "--noheader", "--job", job)

    metrics = study / "trials" / "0" / "metrics.jsonl"
    while sum(each["kind"] == "validation" for each in read_metrics(metrics)) < 3:
        assert queued(), "the job ended before its cancellation"
        time.sleep(0.5)
    (claim,) = read_claims(study / "trials" / "0")
    slurm.run("scancel", claim.values["job"])
    while queued():
        time.sleep(2)
    done = run_aloud([sys.executable, "-m", "yogo_jax.sweep", "report", str(study)])
    print(*(path.read_text()[-300:] for path in sorted(tmp_path.glob("*.log"))), sep="\n---\n")
    states = re.findall(r"^\d+ +(\w+) ", done.stdout, re.MULTILINE)
    assert len(states) == 6
    assert set(states) <= {"complete", "pruned"}
    assert len(read_claims(study / "trials" / "0")) == 2
    steps = [each["step"] for each in read_metrics(metrics) if each["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    with open_page(study / "report.html", width=390) as page:
        assert_fits_the_width(page)
        assert page.locator("#trials tbody tr").count() == 6
