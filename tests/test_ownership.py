"""Folders that one command owns: live ones are refused, dead ones taken over, new names unique."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runs import ROOT, run_command
from yogo_jax import infer
from yogo_jax import inspect_data as inspect
from yogo_jax.errors import UserError
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.ownership import OWNER, make_new_folder, own_folder


OWNS = """
import sys, time
from pathlib import Path
from yogo_jax.errors import exit_on_user_error
from yogo_jax.ownership import own_folder

with exit_on_user_error(), own_folder(Path(sys.argv[1]), "--workdir"):
    print("owned", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start_owner(folder: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", OWNS, str(folder), str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_live_owner_is_refused_by_name_and_a_killed_one_replaced_at_once(tmp_path):
    folder = tmp_path / "run"
    owner = start_owner(folder, 60)
    assert owner.stdout.readline() == "owned\n"
    named = f"process {owner.pid} on {socket.gethostname()}, since"
    refused = pytest.raises(UserError, match=rf"--output .*run is in use by {named}")
    with refused, own_folder(folder, "--output"):
        raise AssertionError("two own it")
    owner.kill()
    owner.communicate()
    with own_folder(folder, "--output"):
        (folder / "file").touch()
        refused = pytest.raises(UserError, match=f"in use by process {os.getpid()} ")
        with refused, own_folder(folder, "--output"):
            raise AssertionError("two own it")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_of_several_that_start_at_once_one_owns_it(tmp_path):
    folder = tmp_path / "run"
    # As long as the slowest takes to look.
    processes = [start_owner(folder, 5) for _ in range(4)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2, 2, 2]
    assert [out for out, _ in ends].count("owned\n") == 1
    winner = next(p.pid for p, (out, _) in zip(processes, ends, strict=True) if out)
    said = [error for out, error in ends if not out]
    assert all(f"is in use by process {winner} on" in error for error in said)
    # Empty, it stays where a loser was the one that made it.
    assert not folder.exists() or not list(folder.iterdir())


def write_owner(folder: Path, **values) -> Path:
    """As another process leaves it."""
    path = folder / OWNER / "0.json"
    path.parent.mkdir(parents=True)
    start = {"host": "node7", "process": os.getpid(), "machine": "other", "started": "1"}
    path.write_text(json.dumps({**start, "job": None, "restart": "0", "time": "12:00", **values}))
    return path


def test_a_dead_owner_on_another_host_is_waited_for(tmp_path, capsys):
    write_owner(tmp_path)
    began = time.monotonic()
    with own_folder(tmp_path, "--workdir", stale_after=2.0):
        assert 1.0 < time.monotonic() - began < 20
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"waiting up to 2 s: {tmp_path} is owned by process {os.getpid()} on node7" in said
    assert not list(tmp_path.iterdir())


def test_a_claim_that_was_cut_off_is_waited_for_aloud(tmp_path, capsys):
    (tmp_path / OWNER).mkdir()
    (tmp_path / OWNER / "0.json").write_text('{"host": "no')
    with own_folder(tmp_path, "--workdir", stale_after=2.5):
        pass
    assert capsys.readouterr().err == (
        f"waiting up to 2 s: {tmp_path} is owned by another process, which may be dead\n"
    )


def test_a_live_owner_on_another_host_is_refused_when_it_gives_a_sign(tmp_path, capsys):
    path = write_owner(tmp_path, job="12")
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        # Far from its clock: only what changes counts.
        refused = pytest.raises(UserError, match=r"process .* on node7, job 12, since 12:00")
        with refused, own_folder(tmp_path, "--workdir"):
            raise AssertionError("two own it")
    finally:
        stop.set()
        thread.join()
    assert path.exists()


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param({"machine": None}, {}, id="the number of its process has another now"),
        pytest.param(
            {"job": "7", "restart": "0"}, {"JOB_ID": "7", "RESTART_COUNT": "1"}, id="requeued"
        ),
    ],
)
def test_an_owner_that_must_be_dead_is_replaced_at_once(tmp_path, monkeypatch, before, now):
    from yogo_jax.ownership import _machine

    for name, value in now.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    here = {"machine": _machine()} if "machine" in before else {}
    write_owner(tmp_path, **{**before, **here})
    began = time.monotonic()
    with own_folder(tmp_path, "--workdir"):
        assert time.monotonic() - began < 20


def test_another_step_of_the_same_start_of_a_job_is_not_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    path = write_owner(tmp_path, job="7", restart="1")
    threading.Timer(1.0, os.utime, [path]).start()
    threading.Timer(1.5, os.utime, [path]).start()
    with pytest.raises(UserError, match="in use by"), own_folder(tmp_path, "--workdir"):
        raise AssertionError("two own it")


def test_folders_are_as_they_were_when_nothing_was_written(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for folder, is_new in ((there, False), (tmp_path / "a/b", False), (tmp_path / "made", True)):
        if is_new:
            folder.mkdir()
        with pytest.raises(OSError, match="x"), own_folder(folder, "--output", is_new=is_new):
            raise OSError("x")
    assert there.is_dir()
    assert not list(there.iterdir())
    assert not (tmp_path / "a/b").exists()
    assert not (tmp_path / "made").exists()


def test_new_folders_are_never_shared(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_new_folder, [tmp_path / "runs/base-1"] * 24))
    numbers = ["", *(f"-{number}" for number in range(2, 25))]
    assert sorted(path.name for path in made) == sorted(f"base-1{each}" for each in numbers)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made a folder"):
        make_new_folder(tmp_path / "file/run")


def test_commands_refuse_a_folder_that_another_writes_to(tmp_path, capsys):
    from bridge import to_openvino

    folder = str(tmp_path / "out")
    commands = {
        evaluate_command: ["run", "--output", folder],
        inspect.main: ["x.yml", "--output", folder],
        infer.main: ["model.xml", "--images", str(tmp_path), "--output", folder],
        to_openvino.main: ["run", "--output", folder],
    }
    with own_folder(tmp_path / "out", "--output"):
        for main, arguments in commands.items():
            with pytest.raises(SystemExit) as stopped:
                main(arguments)
            assert stopped.value.code == 2
            assert f"--output {folder} is in use by process" in capsys.readouterr().err


@pytest.mark.slow
def test_training_refuses_a_workdir_in_use_and_makes_default_names_of_its_own(tmp_path):
    command = [sys.executable, "-m", "yogo_jax.train", "--config", "demo"]
    missing = "--config.data.definition=nowhere.yml"
    with own_folder(tmp_path / "run", "--workdir"):
        done = run_command([*command, "--workdir", "run", missing], cwd=tmp_path)
    assert done.returncode == 2
    assert "--workdir run is in use by process" in done.stderr
    # A mistake leaves no folder behind.
    done = run_command([*command, missing], cwd=tmp_path)
    assert done.returncode == 2
    assert not list((tmp_path / "runs").iterdir())
