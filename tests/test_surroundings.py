"""Users without a home, a name or a locale in UTF-8: everything is written, nothing raises."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runs import ROOT, train_command
from tiny_data import write_dataset
from yogo_jax import startup as cache


NOBODY = 54321
# Of a system of old; Python else chooses UTF-8 by itself.
LATIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "iso-8859-1"}
CLASSES = ("здоровая", "кольцо")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files, and no cache set."""
    monkeypatch.delenv("YOGO_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache, "_told", set())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_cache_is_where_the_user_says(temporary, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(temporary / "home"))
    assert cache.cache_folder() == temporary / "home/.cache/yogo_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == temporary / "home/.cache/yogo_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary / "xdg"))
    assert cache.cache_folder() == temporary / "xdg/yogo_jax"
    monkeypatch.setenv("YOGO_JAX_CACHE", "~/own")
    assert cache.cache_folder() == temporary / "home/own"
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_is_a_temporary_folder_of_this_user(
    temporary, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    folder = temporary / f"yogo_jax-{os.getuid()}"
    assert cache.cache_folder() == cache.cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    said = capsys.readouterr().err
    assert said.count("/proc/nowhere/.cache/yogo_jax cannot be made") == 1
    assert said.count(f"the cache is {folder}; export YOGO_JAX_CACHE=FOLDER for another") == 1


def test_a_temporary_folder_that_hands_its_group_on(temporary, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    temporary.chmod(0o2777)
    folder = cache.cache_folder()
    assert folder == temporary / f"yogo_jax-{os.getuid()}"
    assert folder.stat().st_mode & stat.S_ISGID


def make_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")


def make_open(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def make_others(place: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make folders of others")
    place.mkdir(mode=0o700)
    os.chown(place, NOBODY, NOBODY)


@pytest.mark.parametrize("make", [make_link, make_open, make_others, Path.touch])
def test_a_temporary_folder_that_others_made_is_not_used(temporary, monkeypatch, make):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    cache._private_folder.cache_clear()
    place = temporary / f"yogo_jax-{os.getuid()}"
    make(place)
    folder = cache.cache_folder()
    assert folder == cache.cache_folder() != place
    assert folder.parent == temporary
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.owner() == Path("/proc/self").owner()
    cache._private_folder.cache_clear()


def test_libraries_get_a_home_where_there_is_none(temporary, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    def no_name():
        raise KeyError("uid not found")

    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("LOGNAME", "")
    monkeypatch.setenv("YOGO_JAX_CACHE", "")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("getpass.getuser", no_name)
    cache.spare_libraries_the_home()
    assert os.environ["HOME"] == str(temporary / f"yogo_jax-{os.getuid()}")
    assert os.environ["YOGO_JAX_CACHE"] == os.environ["HOME"]
    assert os.environ["LOGNAME"] == f"user{os.getuid()}"
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setattr(Path, "home", lambda: Path("/proc/nowhere"))
    monkeypatch.setenv("YOGO_JAX_CACHE", str(temporary / "own"))
    cache.spare_libraries_the_home()
    assert os.environ["MPLCONFIGDIR"] == str(temporary / "own/matplotlib")
    monkeypatch.delenv("MPLCONFIGDIR")


def as_nobody(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """The command as a user that no table of users knows, in a locale that is not UTF-8."""
    become = []
    if os.getuid() == 0 and shutil.which("setpriv"):
        # Such a user may still read what belongs to root, as these tests do here.
        become = [shutil.which("setpriv"), "--reuid", str(NOBODY), "--regid", str(NOBODY)]
        become += ["--clear-groups"]
        become += [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
        os.chown(folder, NOBODY, NOBODY)
    fixed = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    fixed |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "LC_ALL": "C", "TMPDIR": str(folder)}
    return subprocess.run(
        [*become, *command],
        cwd=folder,
        env={**fixed, **LATIN, **variables},
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def cyrillic():
    """A data set whose classes have Cyrillic names, and a folder to work in."""
    # That of the test is closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        definition = write_dataset(folder / "data", images=8, class_names=CLASSES)
        assert CLASSES[0] in definition.read_text(encoding="utf-8")
        work = folder / "work"
        work.mkdir()
        yield definition, work


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"HOME": "/proc/nowhere"}], ids=["none", "read-only"])
def test_a_command_without_home_and_name(cyrillic, variables):
    definition, work = cyrillic
    command = [sys.executable, "-m", "yogo_jax.inspect_data", str(definition), "--output", "found"]
    done = as_nobody(command, work, **variables)
    said = done.stderr.decode("iso-8859-1")
    assert done.returncode == 0, said
    assert len(said.splitlines()) == 1
    assert f"the cache is {work}/yogo_jax-" in said
    # What the terminal cannot show is escaped.
    assert CLASSES[1].encode("ascii", "backslashreplace") in done.stdout
    assert CLASSES[1] in (work / "found/inspection.html").read_text(encoding="utf-8")
    assert not (work / "~").exists()


@pytest.mark.acceptance
def test_a_training_without_home_and_name(cyrillic):
    definition, work = cyrillic
    done = as_nobody(train_command(definition, "run", train__epochs=1), work)
    said = done.stderr.decode("iso-8859-1")
    assert done.returncode == 0, said
    assert len(said.splitlines()) == 1
    metrics = json.loads((work / "run/test/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["AP50_by_class"]) == set(CLASSES)
    assert CLASSES[1] in (work / "run/test/report.html").read_text(encoding="utf-8")
    assert CLASSES[1] in (work / "run/train.log").read_text(encoding="utf-8")


def test_a_path_that_the_locale_cannot_write_is_named(tmp_path):
    (tmp_path / "data.yml").write_text(
        "class_names: [a]\ndataset_paths:\n  x:\n    image_path: кровь\n    label_path: кровь\n",
        encoding="utf-8",
    )
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "yogo_jax.anchors", str(tmp_path / "data.yml")]
    done = as_nobody(command, work)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert "кровь".encode("ascii", "backslashreplace") in done.stderr


def test_a_file_of_thresholds_in_another_encoding_is_refused(tmp_path):
    from yogo_jax.detector.detections import Thresholds
    from yogo_jax.detector.given_thresholds import thresholds_given
    from yogo_jax.errors import UserError

    path = tmp_path / "thresholds.json"
    path.write_bytes('{"thresholds": {"кольцо": null}}'.encode("koi8-r"))
    with pytest.raises(UserError, match=r"thresholds\.json:1: byte 17, 0xcb, is not UTF-8"):
        thresholds_given(Thresholds(), ["кольцо"], path, print)
