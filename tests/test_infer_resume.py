"""Interrupted inferences: the journal, kills at any moment, and what --resume makes of them."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from inferences import THRESHOLD, contents, refused_infer, run_infer, write_frames, write_models
from mounts import mounted
from runs import ROOT, environment, run_command
from yogo_jax.detector.found import Found
from yogo_jax.errors import UserError
from yogo_jax.inference.journal import JOURNAL_NAME, FrameRecord, Journal, skipped
from yogo_jax.inference.writers import scope_array


SETTINGS = {"model": "m", "obj_thresh": 0.5, "classes": ("a", "b")}
ALL_OUTPUTS = ("--draw-boxes", "--save-preds", "--save-npy", "--csv", "--coco", "--count")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def records() -> list[FrameRecord]:
    rng = np.random.default_rng(0)
    found = []
    for image_id, count in enumerate((3, 0, 2)):
        arrays = (rng.random((count, 4)), rng.random(count), rng.random((count, 2)))
        found.append(
            FrameRecord(
                image_id,
                f"ü{image_id}.png",
                None,
                (7, 9),
                (0.0, 1 / 3, 1.0, 2 / 3),
                Found(*(array.astype(np.float32) for array in arrays)),
            )
        )
    return [*found, skipped(3, "broken.png", "it is broken", 2)]


def assert_same(ours: FrameRecord, theirs: FrameRecord) -> None:
    assert ours[:5] == theirs[:5]
    for a, b in zip(ours.found, theirs.found, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


def write_journal(folder: Path) -> bytes:
    with Journal(folder, SETTINGS, resume=False) as journal:
        for record in records():
            journal.append(record)
        for ours, theirs in zip(journal.records(), records(), strict=True):
            assert_same(ours, theirs)
    return (folder / JOURNAL_NAME).read_bytes()


def test_a_journal_torn_anywhere_goes_on_to_be_the_same(tmp_path):
    whole = write_journal(tmp_path)
    counts = []
    for size in range(len(whole) + 1):
        (tmp_path / JOURNAL_NAME).write_bytes(whole[:size])
        with Journal(tmp_path, SETTINGS, resume=True) as journal:
            counts.append(journal.count)
            for record in records()[journal.count :]:
                journal.append(record)
        assert (tmp_path / JOURNAL_NAME).read_bytes() == whole
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}


def test_a_damaged_record_and_what_follows_are_dropped(tmp_path):
    whole = write_journal(tmp_path)
    start = whole.index(b"\n") + 1
    for place in range(start, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / JOURNAL_NAME).write_bytes(damaged)
        with Journal(tmp_path, SETTINGS, resume=True) as journal:
            assert journal.count < 4
            for ours, theirs in zip(journal.records(), records(), strict=False):
                assert_same(ours, theirs)


def test_a_journal_of_other_settings_or_in_use_is_refused(tmp_path):
    write_journal(tmp_path)
    with pytest.raises(UserError, match=r"another obj_thresh \(0.5 then, 0.6 now\); another new"):
        Journal(tmp_path, {**SETTINGS, "obj_thresh": 0.6, "new": 1}, resume=True)
    with (
        Journal(tmp_path, SETTINGS, resume=True),
        pytest.raises(UserError, match="another process is writing it"),
    ):
        Journal(tmp_path, SETTINGS, resume=True)
    (tmp_path / JOURNAL_NAME).write_bytes(b"something else\n")
    with pytest.raises(UserError, match="its first line is no JSON"):
        Journal(tmp_path, SETTINGS, resume=True)


def test_an_interruption_at_any_step_leaves_no_trace(models, tmp_path, monkeypatch, capsys):
    frames = write_frames(tmp_path / "run")
    (frames / "f2.png").write_bytes(b"broken")
    base = [models["ir"], "--images", frames, "--obj-thresh", THRESHOLD, *ALL_OUTPUTS]
    run_infer(*base, "--output", tmp_path / "peace")
    expected = contents(tmp_path / "peace")
    steps = 0
    stop_at = None

    def interrupted(function):
        def call(*args):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt
            return function(*args)

        return call

    # Files get their names, and frames get into the journal, by these two.
    monkeypatch.setattr(Path, "replace", interrupted(Path.replace))
    monkeypatch.setattr(Journal, "append", interrupted(Journal.append))
    run_infer(*base, "--output", tmp_path / "counted")
    total = steps
    assert total == 5 * 3 + 1 + 8
    for number, stop_at in enumerate((1, 6, 11, 16, 18, 20, 24)):
        steps = 0
        output = ["--output", tmp_path / str(number)]
        with pytest.raises(SystemExit) as stopped:
            run_infer(*base, *output)
        assert stopped.value.code == 75
        assert "--resume goes on" in capsys.readouterr().err
        assert "add --resume to go on with it" in refused_infer(capsys, *base, *output)
        stop_at = None
        run_infer(*base, *output, "--resume")
        assert contents(tmp_path / str(number)) == expected


def test_resuming_what_has_ended_or_is_another_run(models, tmp_path, capsys):
    frames = write_frames(tmp_path / "run", count=2)
    base = [models["ir"], "--images", frames, "--output", tmp_path / "out", "--count"]
    # Nothing there to go on with: it begins.
    run_infer(*base, "--resume")
    before = contents(tmp_path / "out")
    run_infer(*base, "--resume")
    assert "this run has already ended" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    assert "already holds summary.json, counts.csv" in refused_infer(capsys, *base)
    message = refused_infer(capsys, *base, "--resume", "--obj-thresh", 0.25)
    assert "another obj_thresh (0.5 then, 0.25 now)" in message
    message = refused_infer(capsys, *base, "--resume", "--csv")
    assert "another output csv (False then, True now)" in message
    (frames / "f9.png").write_bytes((frames / "f0.png").read_bytes())
    assert "another files (" in refused_infer(capsys, *base, "--resume")


def test_a_store_that_has_grown_is_not_said_to_be_done(models, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.zarr"
    array = zarr.create_array(
        str(path), shape=(96, 128, 9), chunks=(96, 128, 1), dtype="u1", zarr_format=2
    )
    written = np.random.default_rng(0).integers(1, 256, (96, 128, 9), np.uint8)
    array[..., :2] = written[..., :2]
    base = [models["ir"], "--zarr", path, "--zarr-layout", "hwn", "--count", "--resume"]
    ended, interrupted = (["--output", tmp_path / name] for name in ("ended", "interrupted"))
    run_infer(*base, *ended)
    run_infer(*base, *ended)
    assert "this run has already ended" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            run_infer(*base, *interrupted)
    capsys.readouterr()

    array[..., 2:5] = written[..., 2:5]
    message = refused_infer(capsys, *base, *ended)
    assert "is of a run that ended with 2 frames, now there are 5: choose another" in message
    run_infer(*base, *interrupted)
    assert json.loads((tmp_path / "interrupted" / "summary.json").read_text())["frames"] == 5


def test_strictness_sees_what_was_skipped_before(models, tmp_path, monkeypatch, capsys):
    frames = write_frames(tmp_path / "run", count=3)
    (frames / "f0.png").write_bytes(b"broken")
    base = [models["ir"], "--images", frames, "--output", tmp_path / "out", "--count"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("yogo_jax.inference.run.write_over_all", stop)
        with pytest.raises(SystemExit):
            run_infer(*base)
    message = refused_infer(capsys, *base, "--resume", "--strict")
    assert "it was skipped before: mend it and begin anew" in message
    run_infer(*base, "--resume")


def test_a_full_disk_says_how_to_go_on(models, tmp_path, monkeypatch, capsys):
    frames = write_frames(tmp_path / "run", count=3)
    base = [models["ir"], "--images", frames, "--output", tmp_path / "out", "--save-preds"]
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_text", full)
        message = refused_infer(capsys, *base)
    assert "No space left on device; when that is mended, add --resume" in message
    run_infer(*base, "--resume")
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3


def test_a_disk_that_fills_while_the_array_is_written(tmp_path):
    """The array is mapped into memory, where a full disk would kill the process without a word."""
    found = Found(
        np.zeros((200, 4), np.float32), np.ones(200, np.float32), np.ones((200, 7), np.float32)
    )
    record = FrameRecord(0, "a", None, (32, 48), (0.0, 0.0, 1.0, 1.0), found)
    with mounted(tmp_path / "small", "size=64k") as folder:

        def write():
            with scope_array(folder / "run.npy", boxes=2000, classes=7, image_hw=(32, 48)) as add:
                for _ in range(10):
                    add(record)

        with pytest.raises(OSError, match="No space left"):
            write()
        assert not list(folder.iterdir())


def infer_under_fire(command: list[str], journal: Path, *, kills: int, frames: int) -> None:
    """Kills the command at random places of its journal, and resumes it each time."""
    rng = random.Random(0)
    for number in range(kills):
        resume = ["--resume"] if number else []
        process = subprocess.Popen(
            [*command, *resume],
            cwd=ROOT,
            env=environment(optimized=False),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        size_of_frame = 400
        wanted = size_of_frame * frames * (number + rng.random()) / (kills + 1)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert journal.exists(), "the run ended before it was killed"
    done = run_command([*command, "--resume"])
    assert done.returncode == 0, done.stderr
    assert "frames were finished before" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ir"])
def test_killed_runs_are_as_those_in_peace(model, models, tmp_path):
    frames = write_frames(tmp_path / "run", count=40)
    flags = ["--images", frames, "--obj-thresh", THRESHOLD, *ALL_OUTPUTS]
    run_infer(models[model], *flags, "--output", tmp_path / "peace")
    command = [sys.executable, "-m", "yogo_jax.infer", models[model], *flags]
    command += ["--output", tmp_path / "fire"]
    infer_under_fire(list(map(str, command)), tmp_path / "fire" / JOURNAL_NAME, kills=2, frames=40)
    assert contents(tmp_path / "fire") == contents(tmp_path / "peace")
