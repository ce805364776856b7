"""Packed images: the pixels of the files, made once, whole or not there."""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mounts import mounted
from runs import environment
from yogo_jax.data import pack
from yogo_jax.data.images import read_image
from yogo_jax.data.pack import CannotPackError, find_pack, make_pack
from yogo_jax.data.pipeline import PackedImages
from yogo_jax.errors import UserError


HW = (20, 30)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("YOGO_JAX_CACHE", str(folder))
    return folder


@pytest.fixture
def paths(tmp_path):
    """Images of two sizes, gray and colour, more than one worker's worth."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "images"
    folder.mkdir()
    found = []
    for index in range(40):
        shape = (20, 30, 3) if index % 3 else (25, 32)
        path = folder / f"{index:02d}.png"
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
        found.append(str(path))
    return found


def packed(paths, *, rgb=False, workers=0, tell=lambda done, total: None, hw=HW) -> PackedImages:
    found = find_pack(paths, image_hw=hw, rgb=rgb)
    if not found.made:
        make_pack(found, paths, image_hw=hw, rgb=rgb, workers=workers, tell=tell)
    assert found.made
    return found


def packs(cache):
    return sorted(path.parent.name for path in cache.glob("packs/*/images.npy"))


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pack_holds_what_the_files_hold(paths, rgb, workers):
    told = []
    ours = packed(paths, rgb=rgb, workers=workers, tell=lambda *each: told.append(each))
    assert told == [(each, 40) for each in sorted(done for done, _ in told)]
    assert told[-1] == (40, 40)
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(ours[index], read_image(path, image_hw=HW, rgb=rgb))
    assert ours[0].flags.writeable
    assert not ours.array.flags.writeable
    # Through a pipe goes the path alone.
    assert len(pickle.dumps(ours)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours))[7], ours[7])


def never(*_, **__):
    raise AssertionError


def test_a_pack_is_made_once(paths, cache, monkeypatch):
    packed(paths)
    monkeypatch.setattr(pack, "read_image", never)
    with monkeypatch.context() as patch:
        patch.setattr(pack, "_digest", never)  # nor are files read that have not changed
        packed(paths)
    (key,) = packs(cache)
    # The same contents elsewhere are the same pack.
    copies = [shutil.copy(path, f"{path}.copy.png") for path in paths]
    packed(copies)
    assert packs(cache) == [key]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda paths: {"paths": paths[::-1]}, id="order"),
        pytest.param(lambda paths: {"paths": paths[1:]}, id="fewer"),
        pytest.param(lambda paths: {"rgb": True}, id="colour"),
        pytest.param(lambda paths: {"hw": (30, 20)}, id="size"),
    ],
)
def test_other_pixels_are_another_pack(paths, cache, change):
    packed(paths)
    packed(**({"paths": paths} | change(paths)))
    assert len(packs(cache)) == 2


def test_a_changed_file_is_another_pack(paths, cache):
    packed(paths)
    old = os.stat(paths[0])
    shutil.copy(paths[3], paths[0])
    os.utime(paths[0], ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    ours = packed(paths)
    np.testing.assert_array_equal(ours[0], ours[3])
    assert len(packs(cache)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_and_nothing_is_left(paths, cache, workers):
    whole = Path(paths[20]).read_bytes()
    Path(paths[20]).write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"20\.png: cannot be decoded"):
        packed(paths, workers=workers)
    assert packs(cache) == []
    assert not list(cache.rglob("*.partial"))
    Path(paths[20]).write_bytes(whole)
    packed(paths, workers=workers)
    os.remove(paths[3])
    with pytest.raises(UserError, match=r"03\.png: No such file"):
        packed(paths)


def test_who_asks_meanwhile_waits(paths, monkeypatch):
    built = []
    build = pack._build

    def slow_build(*arguments):
        built.append(threading.get_ident())
        time.sleep(0.5)
        build(*arguments)

    monkeypatch.setattr(pack, "_build", slow_build)
    found = []
    waited = threading.Event()

    def ask():
        ours = packed(paths, tell=lambda done, _: done == 0 and waited.set())
        found.append(ours[39])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert waited.is_set()
    for each in found:
        np.testing.assert_array_equal(each, read_image(paths[39], image_hw=HW, rgb=False))


def test_a_file_system_without_locks(paths, cache, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(pack.fcntl, "flock", unknown)
    packed(paths)
    assert len(packs(cache)) == 1


def test_packing_can_be_stopped(paths, cache):
    class Stopped(Exception):
        pass

    def stop(done, total):
        raise Stopped

    with pytest.raises(Stopped):
        packed(paths, tell=stop)
    assert packs(cache) == []
    assert not list(cache.rglob("*.partial"))
    packed(paths)


KILLED = """
import sys, time
from yogo_jax.data.pack import find_pack, make_pack
def tell(done, total):
    print(done, flush=True)
    time.sleep(60)
if __name__ == "__main__":
    wanted = dict(image_hw=(20, 30), rgb=False)
    make_pack(find_pack(sys.argv[1:], **wanted), sys.argv[1:], **wanted, workers=2, tell=tell)
"""


def test_a_kill_leaves_nothing_that_is_read_and_nobody_behind(paths, cache, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = subprocess.Popen(
        [sys.executable, str(script), *paths],
        stdout=subprocess.PIPE,
        env=environment(optimized=False),
        start_new_session=True,
    )
    assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert packs(cache) == []
    assert len(list(cache.rglob("*.partial"))) == 1
    ours = packed(paths)
    assert not list(cache.rglob("*.partial"))
    np.testing.assert_array_equal(ours[39], read_image(paths[39], image_hw=HW, rgb=False))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)  # its workers are of its session
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("workers outlived the process that was killed")


def test_what_other_nodes_fill_stays_while_it_is_young(paths, cache):
    found = find_pack(paths, image_hw=HW, rgb=False)
    folder = found.path.parent
    folder.mkdir(parents=True)
    old, young = folder / "elsewhere-0.partial", folder / "elsewhere-1.partial"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    packed(paths)
    assert list(cache.rglob("*.partial")) == [young]


def test_a_full_disk(paths, monkeypatch, tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        monkeypatch.setenv("YOGO_JAX_CACHE", str(folder))
        with pytest.raises(CannotPackError, match="No space left on device; make room, or set"):
            packed(paths, hw=(200, 300))
        assert not list(folder.rglob("images.npy")) + list(folder.rglob("*.partial"))


def test_a_cache_folder_that_cannot_be_written(paths, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CannotPackError, match=r"Not a directory; set YOGO_JAX_CACHE to another"):
        packed(paths)


def test_trouble_of_who_is_told_is_not_that_of_the_pack(paths):
    def tell(done, total):
        raise OSError("the log is full")

    with pytest.raises(OSError, match="the log is full"):
        packed(paths, tell=tell)
