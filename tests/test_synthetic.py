"""The synthetic data set on disk: its spec, its files, and a cache that survives accidents."""

import dataclasses
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from yogo_jax.errors import UserError
from yogo_jax.startup import cache_folder
from yogo_jax.synthetic import dataset as synthetic
from yogo_jax.synthetic.cells import CLASS_NAMES
from yogo_jax.synthetic.dataset import (
    DOMAINS,
    SPLITS,
    SyntheticSpec,
    default_spec,
    ensure_dataset,
    render_frame,
    synthetic_dataset,
)


SMALL = default_spec((240, 320))
NATIVE = default_spec((772, 1032))
# The whole test split of the default, and little of the others.
SHORT = dataclasses.replace(SMALL, train_images=8, val_images=8)
TINY = SyntheticSpec(
    image_hw=(96, 128), train_images=3, val_images=2, test_images=1, cells_per_frame=3
)


def read_rows(folder):
    """All label rows under a folder, read in the plainest way."""
    return [
        [float(word) for word in line.split()]
        for path in sorted(folder.glob("*.txt"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory):
    return ensure_dataset(SHORT, cache_folder=tmp_path_factory.mktemp("cache"))


# Spec --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_hw": (50, 320)}, "image_hw must be .* at least 96"),
        ({"train_images": 0}, "train must be at least 1; got 0"),
        ({"test_images": -3}, "test must be at least 1; got -3"),
        ({"cells_per_frame": 0.0}, "cells must be more than 0"),
        ({"cells_per_frame": 400.0}, "at most 21.33"),
        ({"class_proportions": (0.5, 0.5)}, "7 shares"),
        ({"class_proportions": (0.5, 0.6, 0.1, -0.2, 0.0, 0.0, 0.0)}, "7 shares from 0 to 1"),
        ({"class_proportions": (0.5, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0)}, "which sum to 0.9"),
        ({"class_proportions": (float("nan"),) * 7}, "7 shares from 0 to 1"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
    ids=str,
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)


def test_default_of_a_tiny_frame_is_refused():
    with pytest.raises(UserError, match="image_hw"):
        default_spec((64, 64))


@pytest.mark.parametrize("image_hw", [(96, 96), (193, 1032), (1544, 2064)], ids=str)
def test_defaults_fit_every_size(image_hw):
    spec = default_spec(image_hw)
    assert spec.train_images >= spec.test_images >= spec.val_images >= 1
    assert 0 < spec.cells_per_frame * 3600 <= image_hw[0] * image_hw[1]


def test_folder_name_follows_the_spec_and_the_version(monkeypatch):
    names = {
        spec.folder_name
        for spec in (TINY, NATIVE, dataclasses.replace(TINY, seed=1), dataclasses.replace(TINY))
    }
    assert len(names) == 3
    newer = DOMAINS["flow"]._replace(version=DOMAINS["flow"].version + 1)
    monkeypatch.setitem(DOMAINS, "flow", newer)
    assert TINY.folder_name not in names


# Files -------------------------------------------------------------------------------------------


def test_default_set_has_thirty_boxes_of_every_class(small_dataset):
    rows = np.array(read_rows(small_dataset.parent / "labels" / "test"))
    counts = np.bincount(rows[:, 0].astype(int), minlength=7)
    assert (counts >= 30).all(), dict(zip(CLASS_NAMES, counts, strict=True))
    assert (rows[:, 1:3] > 0).all()
    assert (rows[:, 1:3] < 1).all()
    assert (rows[:, 3:] > 0).all()


@pytest.mark.slow
def test_default_set_at_native_size_has_thirty_boxes_of_every_class():
    ids = [render_frame(NATIVE, "test", index)[2] for index in range(NATIVE.test_images)]
    assert (np.bincount(np.concatenate(ids), minlength=7) >= 30).all()


def test_files_hold_what_was_rendered(small_dataset):
    for split, count in SHORT.image_counts.items():
        images = sorted((small_dataset.parent / "images" / split).iterdir())
        labels = sorted((small_dataset.parent / "labels" / split).iterdir())
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert len(images) == count
        image, boxes, class_ids = render_frame(SHORT, split, 7)
        np.testing.assert_array_equal(np.asarray(Image.open(images[7])), image)
        rows = np.array([line.split() for line in labels[7].read_text().splitlines()], float)
        np.testing.assert_array_equal(rows[:, 0], class_ids)
        np.testing.assert_allclose(rows[:, 1:], boxes, atol=1e-6)


def test_definition_names_the_three_splits(small_dataset):
    definition = YAML(typ="safe").load(small_dataset)
    assert definition["class_names"] == list(CLASS_NAMES)
    keys = ("dataset_paths", "val_paths", "test_paths")
    for key, split in zip(keys, SPLITS, strict=True):
        (entry,) = definition[key].values()
        assert entry == {"image_path": f"images/{split}", "label_path": f"labels/{split}"}
        assert (small_dataset.parent / entry["image_path"]).is_dir()


def test_default_set_is_the_default_spec(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(synthetic, "_write_dataset", lambda spec, folder: written.append(spec))
    with pytest.raises(UserError):  # for nothing was written
        synthetic_dataset((240, 320), cache_folder=tmp_path)
    assert written == [SMALL]


def test_second_call_rewrites_nothing(tmp_path):
    first = ensure_dataset(TINY, cache_folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ensure_dataset(TINY, cache_folder=tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_two_writings_give_the_same_bytes(tmp_path):
    first = ensure_dataset(TINY, cache_folder=tmp_path / "a").parent
    again = ensure_dataset(TINY, cache_folder=tmp_path / "b").parent
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 2 * 6 + 1
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_interrupted_writing_leaves_no_data_set(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_definition", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure_dataset(TINY, cache_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_left_overs_of_a_killed_process_are_ignored(tmp_path):
    left_over = tmp_path / f".{TINY.folder_name}.1234.abcd" / "images"
    left_over.mkdir(parents=True)
    definition = ensure_dataset(TINY, cache_folder=tmp_path)
    assert definition.parent == tmp_path / TINY.folder_name
    assert len(read_rows(definition.parent / "labels" / "train")) > 0
    assert left_over.is_dir()


def test_loser_of_a_race_uses_the_winners_files(tmp_path, monkeypatch):
    write = synthetic._write_dataset

    def write_while_another_wins(spec, folder):
        write(spec, folder)
        monkeypatch.setattr(synthetic, "_write_dataset", write)
        ensure_dataset(spec, cache_folder=tmp_path)

    monkeypatch.setattr(synthetic, "_write_dataset", write_while_another_wins)
    definition = ensure_dataset(TINY, cache_folder=tmp_path)
    assert definition.is_file()
    assert list(tmp_path.iterdir()) == [definition.parent]


def test_processes_may_race(tmp_path):
    context = multiprocessing.get_context("spawn")
    racers = [
        context.Process(target=ensure_dataset, args=(TINY,), kwargs={"cache_folder": tmp_path})
        for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == [TINY.folder_name]


def test_folder_in_the_way_is_reported(tmp_path):
    (tmp_path / TINY.folder_name / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="YOGO_JAX_CACHE"):
        ensure_dataset(TINY, cache_folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [TINY.folder_name]


def test_unusable_cache_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="YOGO_JAX_CACHE"):
        ensure_dataset(TINY, cache_folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/somewhere/cache", "/xdg", "/somewhere/cache"),
        ("", "/xdg", "/xdg/yogo_jax"),
        (None, None, "~/.cache/yogo_jax"),
        (None, "relative", "~/.cache/yogo_jax"),
    ],
    ids=["own", "xdg", "home", "relative xdg is ignored"],
)
def test_cache_folder(monkeypatch, own, xdg, expected):
    for name, value in (("YOGO_JAX_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_folder() == Path(os.path.expanduser(expected))


def test_default_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path / "own"))
    assert ensure_dataset(TINY) == tmp_path / "own" / TINY.folder_name / "definition.yml"
