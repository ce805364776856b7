import os
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tiny_data import write_dataset
from yogo_jax.data.definition import SplitFractions, load_definition
from yogo_jax.data.splits import Splits, load_splits, split_indices
from yogo_jax.errors import UserError


SHARED = Path(__file__).parents[2] / "shared" / "data"


def load(definition, **options) -> Splits:
    return load_splits(definition, **{"min_box_area": 0.0, "on_bad_label": "error", **options})


def names(records) -> list[str]:
    return [os.path.basename(path) for path in records.image_paths]


def by_name(splits: Splits) -> dict[str, list[str]]:
    return {name: names(getattr(splits, name)) for name in ("train", "val", "test")}


SIZES = {
    "quarters": (12, (0.5, 0.25, 0.25), (6, 3, 3)),
    "last_takes_the_rest": (11, (0.5, 0.25, 0.25), (6, 3, 2)),  # round(5.5) = 6, round(2.75) = 3
    "half_to_even": (5, (0.5, 0, 0.5), (2, 0, 3)),
    "last_is_val": (3, (0.5, 0.5, 0), (2, 1, 0)),
    "train_only": (7, (1, 0, 0), (7, 0, 0)),
    "test_only": (7, (0, 0, 1), (0, 0, 7)),
    "no_images": (0, (0.5, 0.25, 0.25), (0, 0, 0)),
    "one_image": (1, (0.8, 0.1, 0.1), (1, 0, 0)),
    "one_image_left_over": (1, (0.4, 0.4, 0.2), (0, 0, 1)),
    "bccd": (364, (0.5632, 0.239, 0.1978), (205, 87, 72)),
    "lfm": (13, (0.6154, 0.1538, 0.2308), (8, 2, 3)),
}


@pytest.mark.parametrize(("n", "fractions", "sizes"), SIZES.values(), ids=SIZES)
def test_split_indices(n, fractions, sizes):
    parts = split_indices(n, SplitFractions(*fractions))
    assert tuple(map(len, parts)) == sizes
    assert all((np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@pytest.mark.parametrize("n", range(30), ids=str)
def test_split_sizes_never_exceed_the_whole(n):
    rng = np.random.default_rng(n)
    for _ in range(50):
        fractions = rng.dirichlet([0.3, 0.3, 0.3])
        assert sum(map(len, split_indices(n, SplitFractions(*fractions)))) == n


def test_the_split_is_pinned():
    """Published test figures depend on it: a change makes old and new runs incomparable."""
    train, val, test = split_indices(10, SplitFractions(0.6, 0.2, 0.2))
    assert (train.tolist(), val.tolist(), test.tolist()) == ([0, 1, 2, 3, 6, 8], [4, 7], [5, 9])


def test_the_split_is_random():
    train, _, _ = split_indices(1000, SplitFractions(0.5, 0, 0.5))
    assert abs(train.mean() - 499.5) < 40  # a first half has 249.5; the standard error is 9
    assert np.diff(train).max() > 4


def test_fractions(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=12))
    splits = load(definition)
    found = by_name(splits)
    assert [len(part) for part in found.values()] == [6, 3, 3]
    assert sorted(chain(*found.values())) == [f"all_{i:04d}.png" for i in range(12)]
    assert all(part == sorted(part) for part in found.values())
    assert splits.report.images == 12
    assert splits.report.boxes == 72
    assert by_name(load(definition)) == found
    for records in (splits.train, splits.val, splits.test):
        for i, name in enumerate(names(records)):
            text = (tmp_path / "labels" / "all" / name).with_suffix(".txt").read_text()
            expected = np.float32([row.split()[1:] for row in text.splitlines()])
            np.testing.assert_array_equal(records.labels_of(i)[0], expected)


def test_published(tmp_path):
    splits = load(load_definition(write_dataset(tmp_path, images=8, published=True)))
    assert by_name(splits) == {
        "train": [f"train_{i:04d}.png" for i in range(4)],
        "val": ["val_0000.png", "val_0001.png"],
        "test": ["test_0000.png", "test_0001.png"],
    }
    assert splits.report.images == 8
    assert splits.report.boxes == 48


def test_val_from_the_pool_and_test_published(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=8, published=True))
    definition = replace(definition, val_paths=(), split_fractions=SplitFractions(0.5, 0.5, 0))
    found = by_name(load(definition))
    assert sorted(found["train"] + found["val"]) == [f"train_{i:04d}.png" for i in range(4)]
    assert len(found["val"]) == 2
    assert found["test"] == ["test_0000.png", "test_0001.png"]


def test_override_pools_everything(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=16, published=True))
    splits = load(definition, split_override=(0.5, 0.25, 0.25))
    found = by_name(splits)
    assert [len(part) for part in found.values()] == [8, 4, 4]
    assert len(set(chain(*found.values()))) == 16
    assert {name.split("_")[0] for name in found["train"]} == {"train", "val", "test"}
    assert splits.report.images == 16


@pytest.mark.parametrize(
    "override",
    [(0.5, 0.5, 0.5), (1.5, -0.5, 0.0), (float("nan"), 0.5, 0.5), (0.0, 0.0, 0.0)],
    ids=["sum", "range", "nan", "nothing"],
)
def test_bad_override(tmp_path, override):
    definition = load_definition(write_dataset(tmp_path, images=4))
    with pytest.raises(UserError, match=r"data.split_override is .*; expected three fractions"):
        load(definition, split_override=override)


def test_report_counts_all_splits(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=8, published=True))
    for split in ("train", "val", "test"):
        with open(tmp_path / "labels" / split / f"{split}_0000.txt", "a") as file:
            file.write("9 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.0001 0.0001\n")
    with pytest.raises(UserError, match="class is 9"):
        load(definition)
    report = load(definition, on_bad_label="skip", min_box_area=1e-4).report
    assert (report.bad_rows, report.small_boxes, len(report.messages)) == (3, 3, 3)


def test_empty_train(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=4, published=True))
    definition = replace(definition, split_fractions=SplitFractions(0, 0, 1), test_paths=())
    with pytest.raises(
        UserError, match=r"the training split is empty \(2 images, fractions 0, 0, 1"
    ):
        load(definition)
    assert len(load(definition, require_train=False).test) == 2


def test_only_test_paths(tmp_path):
    path = write_dataset(tmp_path, images=8, published=True)
    text = path.read_text()
    start, end = text.index("dataset_paths:"), text.index("test_paths:")
    path.write_text(text[:start] + text[end:])
    with pytest.raises(UserError, match=r"training split is empty \(0 images.*add data under"):
        load(load_definition(path))
    splits = load(load_definition(path), require_train=False)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (0, 0, 2)


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_image_file_in_two_splits(tmp_path, split):
    definition = load_definition(write_dataset(tmp_path, images=8, published=True))
    image = tmp_path / "images" / split / f"{split}_0001.png"
    image.unlink()
    image.symlink_to("../train/train_0002.png")
    with pytest.raises(UserError) as error:
        load(definition)
    message = str(error.value)
    assert message.startswith(
        f"{tmp_path}/images/train/train_0002.png: this image (1 in all) is in"
    )
    assert f"the train and in the {split} split; expected each image in one split" in message


def test_one_image_in_two_sets_of_the_pool(tmp_path):
    """Two label folders for one image folder: fine as training data, not if split."""
    path = write_dataset(tmp_path, images=12)
    (tmp_path / "labels" / "again").mkdir()
    for file in (tmp_path / "labels" / "all").iterdir():
        (tmp_path / "labels" / "again" / file.name).write_bytes(file.read_bytes())
    text = path.read_text()
    again = "  again: {image_path: images/all, label_path: labels/again}\n"
    path.write_text(text.replace("dataset_paths:\n", f"dataset_paths:\n{again}"))
    with pytest.raises(UserError, match="is in the train and in the "):
        load(load_definition(path))
    definition = replace(load_definition(path), split_fractions=SplitFractions(1, 0, 0))
    assert len(load(definition).train) == 24


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("dataset", (205, 87, 72)),
        ("dataset_published", (205, 87, 72)),
        ("dataset_test", (205, 87, 72)),
    ],
    ids=str,
)
def test_real_data(kind, sizes):
    path = SHARED / "bccd" / f"{kind}.yml"
    if not path.exists():
        pytest.skip(f"no {path}")
    splits = load(load_definition(path))
    assert (len(splits.train), len(splits.val), len(splits.test)) == sizes
