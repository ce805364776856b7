"""Interrupted inferences: the journal, kills at any moment, and what --resume makes of them."""

import fcntl
import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zarr

from inferences import THRESHOLD, contents, refused_infer, run_infer, write_frames, write_models
from mounts import mounted
from runs import ROOT, environment, run_command
from yogo_jax.detector.detections import Detections
from yogo_jax.errors import UserError
from yogo_jax.inference.journal import JOURNAL_NAME, FrameRecord, Journal, check_same_settings
from yogo_jax.inference.writers import scope_array


SETTINGS = {"model": "m", "obj_thresh": 0.5, "class_names": ("a", "b")}
ALL_OUTPUTS = ("--draw-boxes", "--save-preds", "--save-npy", "--csv", "--coco", "--count")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def records() -> list[FrameRecord]:
    rng = np.random.default_rng(0)
    found = []
    for image_id, count in enumerate((3, 0, 2)):
        arrays = (rng.random((count, 4)), rng.random(count), rng.random((count, 2)))
        boxes, objectness, class_probs = (array.astype(np.float32) for array in arrays)
        detections = Detections(
            boxes_xyxy=boxes,
            objectness=objectness,
            class_probs=class_probs,
            class_names=("a", "b"),
            image_hw=(7, 9),
            window_xyxy=(0.0, 1 / 3, 1.0, 2 / 3),
        )
        found.append(FrameRecord(image_id, f"ü{image_id}.png", None, detections))
    return [*found, FrameRecord(3, "broken.png", "it is broken", None)]


def assert_same(ours: FrameRecord, theirs: FrameRecord) -> None:
    assert ours[:3] == theirs[:3]
    a, b = ours.detections, theirs.detections
    if b is None:
        assert a is None
        return
    for name in ("class_names", "image_hw", "window_xyxy"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("boxes_xyxy", "objectness", "class_probs"):
        assert getattr(a, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def write_journal(folder: Path) -> None:
    with Journal(folder, SETTINGS) as journal:
        for record in records():
            journal.append(record)
        assert_holds(journal, 4)


def assert_holds(journal: Journal, count: int) -> None:
    """The journal has so many of the records."""
    assert journal.count == count
    for ours, theirs in zip(journal.records(), records()[:count], strict=True):
        assert_same(ours, theirs)


def go_on(folder: Path) -> int:
    """Goes on with a journal to its end; returns how many records it had."""
    with Journal(folder, SETTINGS) as journal:
        count = journal.count
        assert_holds(journal, count)
        for record in records()[count:]:
            journal.append(record)
        assert_holds(journal, 4)
    with Journal(folder, SETTINGS) as journal:
        assert_holds(journal, 4)
    return count


def old_journal() -> bytes:
    """The records as version 0.1 wrote them."""
    written = json.dumps(SETTINGS).encode() + b"\n"
    for image_id, name, error, found in records():
        if found is None:
            head, rows = [image_id, name, error, (0, 0), (0.0, 0.0, 1.0, 1.0)], np.zeros((0, 7))
        else:
            head = [image_id, name, error, found.image_hw, found.window_xyxy]
            columns = (found.boxes_xyxy, found.objectness[:, None], found.class_probs)
            rows = np.concatenate(columns, axis=1)
        parts = json.dumps(head).encode(), struct.pack("<I", 7) + rows.astype("<f4").tobytes()
        crc = zlib.crc32(parts[1], zlib.crc32(parts[0]))
        written += struct.pack("<III", *map(len, parts), crc) + b"".join(parts)
    return written


def test_an_old_journal_torn_anywhere_goes_on_to_be_the_same(tmp_path):
    whole, counts = old_journal(), []
    for size in range(len(whole) + 1):
        (tmp_path / JOURNAL_NAME).write_bytes(whole[:size])
        counts.append(go_on(tmp_path))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_NAME]


def test_a_damaged_record_of_an_old_journal_and_what_follows_are_dropped(tmp_path):
    whole = old_journal()
    for place in range(whole.index(b"\n") + 1, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / JOURNAL_NAME).write_bytes(damaged)
        assert go_on(tmp_path) < 4


@pytest.mark.parametrize("damage", ["detections = x'00'", "name = 'other'", "image_rows = 8"])
def test_a_damaged_record_and_what_follows_are_dropped(damage, tmp_path):
    write_journal(tmp_path)
    with closing(sqlite3.connect(tmp_path / JOURNAL_NAME)) as db:
        db.execute(f"UPDATE frames SET {damage} WHERE image_id = 2")
        db.commit()
    assert go_on(tmp_path) == 2
    with closing(sqlite3.connect(tmp_path / JOURNAL_NAME)) as db:
        db.execute("DELETE FROM frames WHERE image_id = 1")
        db.commit()
    assert go_on(tmp_path) == 1


def test_a_damaged_file_is_named(tmp_path):
    write_journal(tmp_path)
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(path.read_bytes()[:100] + b"x" * 5000)
    with pytest.raises(UserError, match=r"infer\.journal: cannot be read .* delete it to begin"):
        Journal(tmp_path, SETTINGS)


def test_a_journal_on_a_full_disk_says_so(tmp_path):
    def fill(folder: Path) -> None:
        with Journal(folder, SETTINGS) as journal:
            for number in range(200):
                journal.append(records()[0]._replace(image_id=number, name="x" * 2000))

    with mounted(tmp_path / "small", "size=64k") as folder:
        with pytest.raises(OSError, match="No space left"):
            fill(folder)
        with Journal(folder, SETTINGS) as journal:
            assert journal.count < 200


def test_a_journal_decides_classes_anew(tmp_path):
    decided = {**SETTINGS, "class_thresholds": (1e-3, 1.0)}
    with Journal(tmp_path, decided) as journal:
        for record in records():
            journal.append(record)
        found = [each.detections for each in journal.records() if each.detections is not None]
    assert [each.class_ids.tolist() for each in found] == [[0, 0, 0], [], [0, 0]]
    with pytest.raises(UserError, match=r"another class_thresholds .* then, \[0.1, 1\] now"):
        Journal(tmp_path, {**decided, "class_thresholds": (0.1, 1)})


def test_a_journal_of_a_version_with_least_scores_goes_on_without_any(tmp_path):
    plain = {**SETTINGS, "class_names": ["a", "b"]}
    earlier, now = {**plain, "score_thresholds": []}, {**plain, "class_thresholds": []}
    with Journal(tmp_path, earlier) as journal:
        journal.append(records()[0])
    with Journal(tmp_path, now) as journal:
        assert_holds(journal, 1)
    with pytest.raises(UserError, match="another class_thresholds"):
        Journal(tmp_path, {**now, "class_thresholds": [0.3, 0.4]})
    check_same_settings(tmp_path, earlier, now)
    with pytest.raises(
        UserError, match=r"another score_thresholds \(\[0.3, 0.4\] then, not set now\)"
    ):
        check_same_settings(tmp_path, {**earlier, "score_thresholds": [0.3, 0.4]}, now)


def test_a_journal_of_other_settings_or_in_use_is_refused(tmp_path):
    other = {**SETTINGS, "obj_thresh": 0.6, "new": 1}
    differing = r"another obj_thresh \(0.5 then, 0.6 now\); another new"
    (tmp_path / JOURNAL_NAME).write_bytes(old_journal())
    for _ in range(2):
        with pytest.raises(UserError, match=differing):
            Journal(tmp_path, other)
        assert go_on(tmp_path) == 4  # which makes of the old one a new one
    with Journal(tmp_path, SETTINGS), pytest.raises(UserError, match="another process is writing"):
        Journal(tmp_path, SETTINGS)
    (tmp_path / JOURNAL_NAME).write_bytes(old_journal())
    with (tmp_path / JOURNAL_NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing"):
            Journal(tmp_path, SETTINGS)
    (tmp_path / JOURNAL_NAME).write_bytes(b"something else\n")
    with pytest.raises(UserError, match="its first line is no JSON"):
        Journal(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_NAME]


def test_frames_are_kept_without_a_commit_of_each(tmp_path, monkeypatch):
    """A kill loses what came after the last commit, and that alone."""
    script = (
        "import os, sys; from pathlib import Path; from yogo_jax.inference import journal\n"
        "journal.SECONDS_BETWEEN_COMMITS = float(sys.argv[2])\n"
        f"with journal.Journal(Path(sys.argv[1]), {SETTINGS!r}) as it:\n"
        "    for i in range(3): it.append(journal.FrameRecord(i, 'x.png', 'broken', None))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for number, (seconds, kept) in enumerate(((0.0, 3), (3600.0, 0))):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = run_command([sys.executable, "-c", script, str(folder), str(seconds)])
        assert done.returncode == -signal.SIGKILL, done.stderr
        with Journal(folder, SETTINGS) as journal:
            assert journal.count == kept


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
    found = Detections(
        boxes_xyxy=np.zeros((200, 4), np.float32),
        objectness=np.ones(200, np.float32),
        class_probs=np.ones((200, 7), np.float32),
        class_names=tuple("abcdefg"),
        image_hw=(32, 48),
    )
    record = FrameRecord(0, "a", None, found)
    with mounted(tmp_path / "small", "size=64k") as folder:

        def write():
            with scope_array(folder / "run.npy", boxes=2000, classes=7, image_hw=(32, 48)) as add:
                for _ in range(10):
                    add(record)

        with pytest.raises(OSError, match="No space left"):
            write()
        assert not list(folder.iterdir())


# Commits each frame, so that a kill often comes in the middle of a commit.
COMMITTING = (
    "import sys; from yogo_jax import infer; from yogo_jax.inference import journal; "
    "journal.SECONDS_BETWEEN_COMMITS = 0.0; infer.main(sys.argv[1:])"
)


def infer_under_fire(arguments: list[str], labels: Path, *, kills: int, frames: int) -> None:
    """Kills the command when random numbers of frames have label files; resumes it each time."""
    rng = random.Random(0)
    command = [sys.executable, "-c", COMMITTING, *arguments]
    for number in range(kills):
        resume = ["--resume"] if number else []
        process = subprocess.Popen(
            [*command, *resume],
            cwd=ROOT,
            env=environment(optimized=False),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted = frames * (number + rng.random()) / (kills + 1)
        while process.poll() is None and not (labels.exists() and len(os.listdir(labels)) > wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    done = run_command([*command, "--resume"])
    assert done.returncode == 0, done.stderr
    assert "frames were finished before" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ir"])
def test_killed_runs_are_as_those_in_peace(model, models, tmp_path):
    frames = write_frames(tmp_path / "run", count=40)
    flags = ["--images", frames, "--obj-thresh", THRESHOLD, *ALL_OUTPUTS]
    run_infer(models[model], *flags, "--output", tmp_path / "peace")
    arguments = [models[model], *flags, "--output", tmp_path / "fire"]
    infer_under_fire(list(map(str, arguments)), tmp_path / "fire" / "labels", kills=4, frames=40)
    assert contents(tmp_path / "fire") == contents(tmp_path / "peace")
