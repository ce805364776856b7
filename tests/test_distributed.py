"""One run on one device, on four, and in two processes: the same batches, losses and metrics."""

import json
import signal
import sys
import time

import numpy as np
import pytest

from benchmarks.scaling import Messages, ring_seconds
from kills import steps_logged
from processes import two_processes
from runs import ROOT, environment, logged_losses, run_command, tiny_config, train_command
from slurm_here import SMALL
from tiny_data import write_dataset
from yogo_jax.checkpoint.run_data import prepare_data
from yogo_jax.checkpoint.store import committed_checkpoints
from yogo_jax.data.pipeline import EpochOrder, RecordSource, Share, open_batches
from yogo_jax.errors import UserError
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.parallel import (
    Coordinates,
    Devices,
    check_same_everywhere,
    join_processes,
    own_gpu,
)
from yogo_jax.training.trainer import train_and_evaluate


OVERRIDES = {
    "train__epochs": 8,
    "train__eval_every_epochs": 4,
    "train__checkpoint_every_minutes": 0.002,
}


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    # Fifteen training images in batches of four: the last one of an epoch is padded.
    return write_dataset(tmp_path_factory.mktemp("data"), images=30)


@pytest.fixture(scope="module")
def alone(definition, tmp_path_factory):
    """A run in one process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    return workdir, train_and_evaluate(tiny_config(definition, **OVERRIDES), workdir)


@pytest.mark.parametrize("position", [0, 4, 15, 19], ids=lambda value: f"from {value}")
@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_the_batches_of_one_in_parts(definition, count, position):
    records = prepare_data(tiny_config(definition).data).splits.train
    source = RecordSource(records, image_hw=(64, 96), rgb=False, max_boxes=6)
    order = EpochOrder(num_records=len(records), batch_size=4, seed=5)

    def batches(share):
        with open_batches(source, order, epochs=2, position=position, share=share) as each:
            return list(each)

    whole = batches(Share(0, 1))
    parts = [batches(Share(index, count)) for index in range(count)]
    assert len(whole) == 8 - order.first_slot(position) // 4
    for batch, *own in zip(whole, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([each[name] for each in own]), batch[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(Coordinates("h:1", None, 0), "belong together", id="incomplete"),
        pytest.param(Coordinates("h", 2, 0), "must be HOST:PORT of process 0, got 'h'", id="port"),
        pytest.param(Coordinates("h:1", 2, 2), "must be from 0 to 1", id="id"),
    ],
)
def test_coordinates_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        join_processes(given)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(None, None), ("", None), ("0,1,2,3", None), ("0", [0]), ("GPU-5b2c", [0])],
)
def test_a_task_that_sees_one_gpu_takes_it(seen, expected):
    assert own_gpu({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}) == expected


def test_processes_that_see_different_things_are_refused(monkeypatch):
    seen = {"data": "abc", "checkpoint": None}
    check_same_everywhere(Devices(), seen)
    other = {"data": "abc", "checkpoint": "runs/x/checkpoints/8"}
    monkeypatch.setattr(Devices, "gather", lambda self, values: [*values, other])
    with pytest.raises(UserError, match=r"differ in checkpoint \(here: checkpoint None\): give"):
        check_same_everywhere(Devices(), seen)


def test_time_of_sums_around_a_ring():
    messages = Messages(count=3, bytes=8000)
    links = {"bytes_per_s": 1000.0, "latency": 0.5}
    assert ring_seconds(messages, 1, **links) == 0
    # Four devices: six rounds with a quarter of the bytes each, and three times the latency.
    assert ring_seconds(messages, 4, **links) == 6 * (2 + 3 * 0.5)


# Bit for bit, which the fast compilations of other tests are not on one and on four devices.
@pytest.mark.optimized
def test_two_processes_are_stopped_by_a_signal_to_one_and_four_devices_go_on(
    definition, alone, tmp_path
):
    workdir, metrics = alone
    log = tmp_path / "log"
    command = train_command(definition, tmp_path / "run", **OVERRIDES)
    processes = two_processes(command, log)
    while processes[0].poll() is None and steps_logged(tmp_path / "run") < 5:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=60) for process in processes]
    said = log.with_suffix(".0").read_text()
    assert codes == [75, 75], said + log.with_suffix(".1").read_text()
    assert "2 x cpu (cpu) in 2 processes" in said
    assert "stopped (another process of the run has to stop)" in said
    # The second process writes nothing but the reason.
    lines = log.with_suffix(".1").read_text().splitlines()
    assert [line for line in lines if "[Gloo]" not in line] == [
        "stopped (SIGTERM): the same command goes on (exit status 75)"
    ]
    step = int(committed_checkpoints(tmp_path / "run" / "checkpoints")[-1].name)
    assert step == steps_logged(tmp_path / "run") < 32

    arguments = {
        "definition": str(definition),
        "overrides": OVERRIDES,
        "continue": str(tmp_path / "run"),
        "evaluate": str(workdir),
        "output": str(tmp_path / "evaluation"),
    }
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    script = [sys.executable, "tests/on_four_devices.py", str(tmp_path / "arguments.json")]
    done = run_command(script)
    assert done.returncode == 0, done.stderr
    assert f"checkpoints/{step} at step {step} of 32" in done.stdout
    assert "4 x cpu (cpu)" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == 4
    # Only sums travel, of gradients, statistics and a few scalars: images stay where they are.
    for name in ("messages", "messages_of_muon", "messages_elsewhere"):
        kinds, more_bytes = result[name]
        assert kinds == ["all-reduce"]
        assert 0 < more_bytes < 100
    assert "batch_size is 6" in result["refusal"]
    assert "set --config.train.batch_size=8" in result["refusal"]

    assert logged_losses(tmp_path / "run") == pytest.approx(logged_losses(workdir), rel=1e-5)
    assert len(logged_losses(workdir)) == 32
    # Biases before a batch norm do not reach the loss, so their gradients are rounding noise, which
    # Adam makes full steps of; running means follow late, and so validations see some of it.
    found, expected = (logged_losses(each, "validation") for each in (tmp_path / "run", workdir))
    assert found == pytest.approx(expected, rel=1e-3)
    # Of one and the same checkpoint, metrics are the same.
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics


@pytest.mark.slow
def test_a_run_of_two_tasks_of_slurm_is_the_one_of_one_process(slurm, definition, alone, tmp_path):
    workdir, _ = alone
    run = tmp_path / "run"
    command = train_command(definition, run, **OVERRIDES)
    options = (*SMALL, "--ntasks-per-node=2", f"--output={tmp_path}/log")
    env = {**environment(optimized=False), "PYTHON": command[0]}
    job = slurm.submit(*options, "slurm/multi_node.sbatch", *command[3:], env=env, cwd=ROOT)
    state = slurm.wait_for(job, "COMPLETED", "FAILED", seconds=120)
    log = (tmp_path / "log").read_text()
    assert state == "COMPLETED", log
    assert "2 x cpu (cpu) in 2 processes; 32 steps of 4 images" in log
    assert logged_losses(run) == pytest.approx(logged_losses(workdir), rel=1e-5)
    # What two processes wrote, one reads, and measures what they did.
    evaluate_command([str(run), "--output", str(tmp_path / "again"), "--batch-size", "4"])
    found, expected = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "again", run / "test")
    )
    assert found == expected
