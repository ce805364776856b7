"""Claims of trials: one winner, signs of life, and what is left by tasks that died."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yogo_jax import ownership as claims_of_folders
from yogo_jax.ownership import (
    Claimed,
    deaths_without_progress,
    file_system_now,
    read_claims,
    try_to_claim,
)


def claim_all(folders: list[Path], start: Path, wins: Path) -> None:
    """The work of each of several processes: waits for the start, then claims what it can."""
    while not start.exists():
        time.sleep(0.001)
    now = file_system_now(start.parent)
    won = [
        folder.name for folder in folders if try_to_claim(folder, step=0, now=now, stale_after=60)
    ]
    wins.write_text(json.dumps(won))
    # While another still looks, this one must live.
    while len(list(wins.parent.glob("wins-*"))) < 3:
        time.sleep(0.001)


@pytest.mark.parametrize("stale", [False, True], ids=["new", "left by the dead"])
def test_of_processes_that_claim_at_once_one_wins(tmp_path, stale):
    folders = [tmp_path / str(number) for number in range(60)]
    if stale:
        for folder in folders:
            try_to_claim(folder, step=0, now=0.0)
            os.utime(folder / "claims" / "0.json", (1, 1))
    context = multiprocessing.get_context("spawn")
    wins = [tmp_path / f"wins-{index}" for index in range(3)]
    start = tmp_path / "start"
    processes = [
        context.Process(target=claim_all, args=(folders, start, each), daemon=True) for each in wins
    ]
    for process in processes:
        process.start()
    start.touch()
    for process in processes:
        process.join(60)
    won = [name for each in wins for name in json.loads(each.read_text())]
    assert sorted(won, key=int) == [folder.name for folder in folders]
    assert all(len(read_claims(folder)) == 1 + stale for folder in folders)


def test_a_claim_is_renewed_while_it_is_held_and_free_afterwards(tmp_path):
    folder = tmp_path / "0"
    claim = try_to_claim(folder, step=7, now=file_system_now(tmp_path), stale_after=1.5)
    assert claim is not None
    with claim:
        (first,) = read_claims(folder)
        assert first.values["step"] == 7
        assert first.values["process"] == os.getpid()
        time.sleep(2)
        now = file_system_now(tmp_path)
        assert not read_claims(folder)[0].is_stale(now, 1.5)
        assert try_to_claim(folder, step=7, now=now, stale_after=1.5) is None
    (after,) = read_claims(folder)
    assert after.ended_orderly
    again = try_to_claim(folder, step=7, now=file_system_now(tmp_path))
    assert again is not None
    assert again.number == 1


def test_a_slow_task_notices_that_it_was_replaced(tmp_path):
    folder = tmp_path / "0"
    lost: list[str] = []
    now = file_system_now(tmp_path)
    claim = try_to_claim(folder, step=0, now=now, stale_after=0.4, on_lost=lost.append)
    assert claim is not None
    # The other looks at a moment when this one has not renewed for long.
    other = try_to_claim(folder, step=0, now=now + 100, stale_after=0.4)
    assert other is not None
    with claim:
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "was taken over by another task" in lost[0]


@pytest.mark.parametrize(
    "goes", [lambda path: path.rename(path.parent / "b"), shutil.rmtree], ids=["moved", "deleted"]
)
def test_a_folder_that_goes_away_is_not_said_to_be_taken_over(tmp_path, goes):
    folder = tmp_path / "a"
    lost: list[str] = []
    now = file_system_now(tmp_path)
    claim = try_to_claim(folder, step=0, now=now, stale_after=0.4, on_lost=lost.append)
    assert claim is not None
    with claim:
        goes(folder)
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lost[0].startswith(f"{claim.path} is gone, ")
    assert "moved or deleted the folder" in lost[0]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO], ids=errno.errorcode.get)
def test_a_server_that_stumbles_ends_no_renewing(tmp_path, monkeypatch, capsys, number):
    folder = tmp_path / "0"
    lost: list[str] = []
    now = file_system_now(tmp_path)
    claim = try_to_claim(folder, step=0, now=now, stale_after=0.4, on_lost=lost.append)
    assert claim is not None
    real, stumbles = Path.exists, [True, True, True]

    def exists(path):
        if path.parent == claim.path.parent and stumbles:
            stumbles.pop()
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    os.utime(claim.path, (1, 1))
    with claim:
        deadline = time.monotonic() + 10
        while claim.path.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert claim.path.stat().st_mtime > 1
    said = capsys.readouterr().err
    assert said == f"{claim.path} cannot be renewed now ({os.strerror(number)})\n" * 3
    assert not lost


@pytest.mark.parametrize(
    ("error", "orderly"),
    [(ValueError("disk full"), False), (SystemExit(75), True), (KeyboardInterrupt(), True)],
    ids=lambda value: type(value).__name__,
)
def test_how_a_task_ended_is_noted(tmp_path, error, orderly):
    claim = try_to_claim(tmp_path / "0", step=0, now=0.0)
    assert claim is not None
    with pytest.raises(type(error)), claim:
        raise error
    (left,) = read_claims(tmp_path / "0")
    assert left.is_stale(file_system_now(tmp_path), 60)
    assert left.ended_orderly == orderly
    assert left.values.get("error") == (None if orderly else "ValueError: disk full")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"JOB_ID": "7"}, "7"),
        ({"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2"}, "7_2"),
    ],
    ids=["no SLURM", "a job", "a task of an array"],
)
def test_a_claim_names_the_job_as_squeue_does(tmp_path, monkeypatch, variables, expected):
    for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    try_to_claim(tmp_path / "0", step=0, now=0.0)
    assert read_claims(tmp_path / "0")[0].values["job"] == expected


@pytest.mark.parametrize(
    ("values", "now", "expected"),
    [
        ({"job": "7", "restart": "0"}, {"JOB_ID": "7", "RESTART_COUNT": "1"}, False),
        ({"job": "7", "restart": 9}, {"JOB_ID": "7", "RESTART_COUNT": "10"}, False),
        ({"job": "7", "restart": 1}, {"JOB_ID": "7", "RESTART_COUNT": "1"}, None),
        ({"job": "7", "restart": 1}, {"JOB_ID": "7"}, None),
        ({"job": "7", "restart": 1}, {"JOB_ID": "7", "RESTART_COUNT": ""}, None),
        ({"job": "7"}, {"JOB_ID": "7", "RESTART_COUNT": "1"}, None),
        ({"job": "8", "restart": 0}, {"JOB_ID": "7", "RESTART_COUNT": "1"}, None),
        ({"job": None, "restart": 0}, {"RESTART_COUNT": "1"}, None),
        ({}, {"JOB_ID": "7"}, None),
    ],
    ids=[
        "requeued",
        "many times",
        "the same start",
        "not told",
        "told nothing",
        "of an earlier version",
        "another job",
        "no job",
        "being written",
    ],
)
def test_only_an_earlier_start_of_a_job_counts_as_dead(monkeypatch, values, now, expected):
    for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in now.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert claimed(0, 0, **values).owner_lives is expected


HERE = {"machine": claims_of_folders._machine()}


@pytest.fixture
def processes():
    """Numbers of processes: one that runs, one that has ended unnoticed, one that is gone."""
    command = [sys.executable, "-c", "input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runs, zombie, gone = (subprocess.Popen(command, **pipes) for _ in range(3))
    started = {
        name: claims_of_folders._started(each.pid)
        for name, each in (("runs", runs), ("zombie", zombie), ("gone", gone))
    }
    for each in (zombie, gone):
        each.kill()
    gone.wait()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    yield {
        name: {"process": each.pid, "started": started[name], **HERE}
        for name, each in (("runs", runs), ("zombie", zombie), ("gone", gone))
    }
    for each in (runs, zombie):
        each.kill()
        each.wait()
    for each in (runs, zombie, gone):
        each.stdin.close()


@pytest.mark.parametrize("hides", [False, True], ids=["all is seen", "others are hidden"])
@pytest.mark.parametrize(
    ("name", "changed", "expected", "if_hidden"),
    [
        ("runs", {}, True, None),
        ("runs", {"started": "1"}, False, None),
        ("zombie", {}, False, None),
        ("gone", {}, False, False),
        ("runs", {"machine": "another"}, None, None),
    ],
)
def test_only_a_process_that_is_not_there_counts_as_dead(
    processes, monkeypatch, name, changed, expected, if_hidden, hides
):
    if hides:
        # As /proc with hidepid=2, of a user who may send no signal either.
        real = os.kill

        def kill(process, number):
            real(process, number)
            raise PermissionError

        monkeypatch.setattr("os.kill", kill)
        monkeypatch.setattr(claims_of_folders, "_started", lambda process: None)
    claim = claimed(0, 0, **{**processes[name], **changed})
    assert claim.owner_lives is (if_hidden if hides else expected)


def claimed(number: int, step: int | None, *, renewed_at: float = 5.0, **values) -> Claimed:
    if step is not None:
        values["step"] = step
    return Claimed(number, Path(f"{number}.json"), renewed_at, values)


@pytest.mark.parametrize(
    ("claims", "step", "expected"),
    [
        pytest.param([], 0, [], id="none"),
        pytest.param([claimed(0, 0), claimed(1, 0)], 0, [0, 1], id="killed twice"),
        pytest.param([claimed(0, 0), claimed(1, 4)], 4, [1], id="progress between"),
        pytest.param([claimed(0, 0), claimed(1, 0)], 4, [], id="progress since"),
        pytest.param([claimed(0, 0), claimed(1, 0, renewed_at=0)], 0, [0], id="preempted once"),
        pytest.param(
            [claimed(0, 0, renewed_at=0, error="x"), claimed(1, 0)], 0, [0, 1], id="an error"
        ),
        pytest.param([claimed(0, None), claimed(1, 0)], 0, [0, 1], id="killed while claiming"),
    ],
)
def test_deaths_without_progress(claims, step, expected):
    assert [each.number for each in deaths_without_progress(claims, step)] == expected
