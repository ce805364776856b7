"""A run that is stopped at every kind of moment, and what it is after it went on."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from kills import state_of
from runs import tiny_config
from tiny_data import write_dataset
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.store import (
    committed_checkpoints,
    find_checkpoint,
    read_metadata,
)
from yogo_jax.metrics import evaluator
from yogo_jax.training import trainer
from yogo_jax.training.stopping import SIGNALS, Stop, Stopped, exit_when_stopped
from yogo_jax.training.trainer import train_and_evaluate


def test_a_signal_raises_where_nothing_is_at_stake_and_else_waits():
    stop = Stop()
    with pytest.raises(Stopped, match="SIGTERM"):
        stop.request("SIGTERM")
    # Only the first counts, so that a second does not cut the way out.
    stop.request("SIGUSR1")
    assert stop.reason == "SIGTERM"

    stop = Stop()
    stop.check()
    with stop.defer_stop():
        with stop.defer_stop():
            stop.request("SIGUSR1")
        stop.request("SIGTERM")
        assert stop.reason == "SIGUSR1"
        with pytest.raises(Stopped, match="SIGUSR1"), stop.allow_stop():
            raise AssertionError("what was noted comes first")
        stop.check(lambda own: not own)
    with pytest.raises(Stopped, match="SIGUSR1"):
        stop.check()

    stop = Stop()
    with stop.defer_stop():
        with pytest.raises(Stopped, match="SIGTERM"), stop.allow_stop():
            stop.request("SIGTERM")
        with pytest.raises(Stopped, match="another process"):
            Stop().check(lambda own: True)


def test_what_raised_unheard_stops_before_anything_is_at_stake():
    stop = Stop()
    with pytest.raises(Stopped):
        stop.request("SIGTERM")
    with pytest.raises(Stopped, match="SIGTERM"), stop.defer_stop():
        raise AssertionError("it goes on")


def test_another_thread_only_notes_it():
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        # It would raise here what it raised there.
        pool.submit(stop.request, "nobody reads its output").result()
    assert stop.is_requested
    with pytest.raises(Stopped, match="nobody reads its output"), stop.defer_stop():
        raise AssertionError("it goes on")


# Compiled code that takes very long, in which Python does not come to its handlers.
WAITS = """
import hashlib, signal, sys
from yogo_jax.training.stopping import exit_when_stopped

def compiled():
    print("waiting", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

with exit_when_stopped() as stop:
    with stop.defer_stop():
        if sys.argv[1] == "before":
            print("waiting", flush=True)
            signal.raise_signal(signal.SIGTERM)
        with stop.end_at_once():
            compiled()
"""


@pytest.mark.parametrize("when", ["before", "in it"])
def test_a_signal_ends_the_process_although_it_is_in_compiled_code(when):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, when],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waiting\n"
    if when == "in it":
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75
    assert said == "stopped (SIGTERM): the same command goes on (exit status 75)\n"


def test_a_request_without_a_signal_waits():
    stop = Stop()
    with stop.defer_stop():
        with stop.end_at_once():
            stop.request("SIGTERM")
        assert stop.is_requested
        with pytest.raises(Stopped, match="SIGTERM"), stop.end_at_once():
            raise AssertionError("it would wait for compiled code")


def test_the_budget_of_hours(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stop = Stop()
    now = 7200.0
    assert stop.reason is None
    stop.limit(2.0)
    assert stop.reason is None
    now = 7200.1
    with pytest.raises(Stopped, match="max_hours=2 are over"):
        stop.check()


ENDS = """
import signal, sys
from yogo_jax.command import own_this_process
from yogo_jax.training.stopping import exit_when_stopped

if sys.argv[2] == "owned":
    own_this_process()
with exit_when_stopped():
    signal.raise_signal(signal.Signals[sys.argv[1]])
"""


# Each in a process of its own: whatever goes wrong with a signal, this one gets none.
@pytest.mark.parametrize("process", ["owned", "called by others"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_command_exits_with_its_code(number, process):
    done = subprocess.run(
        [sys.executable, "-c", ENDS, number.name, process],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = f"stopped ({number.name}): the same command goes on (exit status 75)\n"
    assert (done.returncode, done.stderr) == (75, said)


def test_callers_get_their_handlers_back():
    before = [signal.getsignal(each) for each in SIGNALS]
    with exit_when_stopped():
        assert all(signal.getsignal(each) not in before for each in SIGNALS)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(SystemExit) as caught, exit_when_stopped() as stop:
        stop.request("its time is over")
    assert caught.value.code == 75
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    # Six training images in batches of four: two steps an epoch, the second is padded.
    return write_dataset(tmp_path_factory.mktemp("data"), images=12)


def config_of(definition, **overrides):
    return tiny_config(definition, **{"train__epochs": 3, **overrides})


@pytest.fixture(scope="module")
def peace(definition, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("peace")
    return workdir, train_and_evaluate(config_of(definition), workdir)


def logged(workdir):
    """Records without those of each start, and without what depends on the clock."""
    clock = ("images_per_second", "seconds", "checkpoint")
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] != "start"]
    return [{name: each[name] for name in each if name not in clock} for each in records]


class Moments:
    """Calls `Stop.request` when the run reaches a moment."""

    def __init__(self, monkeypatch):
        self._stop, self._moment = Stop(), ""
        self._before(monkeypatch, trainer.Meter, "add", "stepping")
        self._before(monkeypatch, trainer.CheckpointStore, "save", "saving")
        self._before(monkeypatch, trainer, "write_test", "testing")
        self._before(monkeypatch, trainer, "initial_state", "starting")
        real = evaluator.open_batches

        @contextmanager
        def open_batches(*args, **kwargs):
            self._reach("validating")
            with real(*args, **kwargs) as batches:
                yield batches

        monkeypatch.setattr(evaluator, "open_batches", open_batches)

    def _before(self, monkeypatch, owner, name, moment):
        real = getattr(owner, name)

        def reaching(*args, **kwargs):
            self._reach(moment)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, reaching)

    def _reach(self, moment):
        if moment == self._moment:
            self._stop.request(moment)

    def run(self, config, workdir, moment):
        self._stop, self._moment = Stop(), moment
        return train_and_evaluate(config, workdir, stop=self._stop)


@pytest.mark.slow
def test_a_run_that_is_stopped_anywhere_ends_bit_for_bit_as_one_in_peace(
    definition, peace, tmp_path, monkeypatch
):
    config = config_of(definition)
    moments = Moments(monkeypatch)
    # Three epochs of two steps: the moment that ends each start, and what is saved by then. What
    # comes while step 4 is saved is noticed after step 5.
    for moment, step, validated in (
        ("starting", None, None),
        ("stepping", 1, False),
        ("validating", 2, False),
        ("validating", 2, False),
        ("saving", 5, False),
        ("validating", 6, False),
        ("testing", 6, True),
    ):
        with pytest.raises(Stopped, match=moment):
            moments.run(config, tmp_path, moment)
        folders = committed_checkpoints(tmp_path / "checkpoints")
        assert not list((tmp_path / "checkpoints").glob("*tmp*"))
        if step is None:
            assert not folders
            continue
        metadata = read_metadata(folders[-1])
        assert (metadata.step, metadata.validation is not None) == (step, validated)
        assert int(state_of(folders[-1]).step) == step
    metrics = moments.run(config, tmp_path, "never")

    workdir, expected = peace
    assert {**metrics, "checkpoint": ""} == {**expected, "checkpoint": ""}
    assert logged(tmp_path) == logged(workdir)
    found, peaceful = find_checkpoint(tmp_path), find_checkpoint(workdir)
    assert found.name == peaceful.name
    assert read_metadata(found).validation == read_metadata(peaceful).validation
    for a, b in zip(*(jax.tree.leaves(state_of(each)) for each in (found, peaceful)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_budget_stops_a_run_after_a_step(definition, tmp_path):
    # Packing images stops, too, if they are not packed yet.
    config = tiny_config(definition, train__max_hours=1e-9, data__cache="none")
    for step in ("1", "2"):
        with pytest.raises(Stopped, match="max_hours"):
            train_and_evaluate(config, tmp_path)
        assert committed_checkpoints(tmp_path / "checkpoints")[-1].name == step
