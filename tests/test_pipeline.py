import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_data import write_dataset
from yogo_jax.data.definition import load_definition
from yogo_jax.data.pipeline import (
    EpochOrder,
    RecordSource,
    open_batches,
    padded_box_count,
    repeat_factors,
)
from yogo_jax.data.splits import load_splits
from yogo_jax.errors import UserError


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    definition = write_dataset(tmp_path_factory.mktemp("data"), images=14)
    return load_splits(load_definition(definition), min_box_area=0.0, on_bad_label="error").train


def make_source(records) -> RecordSource:
    return RecordSource(records, image_hw=(64, 96), rgb=False, max_boxes=8)


def collect(records, order, **options) -> list[dict]:
    with open_batches(make_source(records), order, **options) as batches:
        return list(batches)


@pytest.mark.parametrize("num_records", [1, 3, 4, 5, 12])
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_every_epoch_holds_every_record_once(num_records, seed):
    order = EpochOrder(num_records=num_records, batch_size=4, seed=seed)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        epochs.append([record for step in steps for record in order.records_of_batch(step)])
        assert sorted(epochs[-1]) == list(range(num_records))
    if seed is None:
        assert epochs[0] == epochs[1] == sorted(epochs[0])
    elif num_records > 4:
        assert epochs[0] != epochs[1]


def test_another_seed_is_another_order():
    orders = [EpochOrder(num_records=20, batch_size=20, seed=seed) for seed in (0, 1)]
    assert orders[0].records_of_batch(0) != orders[1].records_of_batch(0)


@pytest.mark.parametrize("step", range(8))
def test_position_and_slot_are_two_names_of_one_place(step):
    order = EpochOrder(num_records=7, batch_size=3, seed=0)
    assert order.first_slot(order.position_after(step)) == step * 3
    consumed = sum(len(order.records_of_batch(each)) for each in range(step))
    assert order.position_after(step) == consumed


def test_repeated_records_are_seen_as_often_as_their_factors_say():
    factors = (1.0, 2.5, 1.0, 1.25, 1.0)
    order = EpochOrder(num_records=5, batch_size=4, seed=3, repeat_factors=factors)
    assert (order.images_per_epoch, order.steps_per_epoch) == (7, 2)
    epochs = [order.records_of_epoch(epoch) for epoch in range(400)]
    assert all(epoch[7:] == [-1] for epoch in epochs)
    counts = np.asarray([np.bincount(epoch[:7], minlength=5) for epoch in epochs])
    scale = 7 / sum(factors)
    for record, factor in enumerate(factors):
        seen = set(counts[:, record].tolist())
        assert seen <= {int(np.floor(scale * factor)), int(np.ceil(scale * factor))}
    np.testing.assert_allclose(counts.mean(0), scale * np.asarray(factors), atol=0.06)
    assert epochs[0] != epochs[1]
    # One by one as all at once.
    assert [order.record_of(slot) for slot in range(8)] == [*epochs[0][:7], None]
    assert order.position_after(3) == 7 + 4
    assert order.first_slot(7 + 4) == 8 + 4


def test_repeat_factors_against_the_formula(records):
    boxes = {0: [0], 1: [0, 1], 2: [], 3: [0, 2]}
    classes = [k for own in boxes.values() for k in own]
    given = dataclasses.replace(
        records.subset(range(4)),
        class_names=("common", "seldom", "rare", "absent"),
        offsets=np.cumsum([0, *map(len, boxes.values())]),
        boxes_cxcywh=np.full((len(classes), 4), 0.2, np.float32),
        class_ids=np.asarray(classes, np.int32),
    )
    factors = repeat_factors(given, 0.5)
    assert factors == pytest.approx((1, np.sqrt(2), 1, np.sqrt(2)))
    assert repeat_factors(given, 0.25) == (1, 1, 1, 1)


def test_batches_have_one_shape_and_padding_is_not_valid(records):
    order = EpochOrder(num_records=len(records), batch_size=4, seed=3)
    batches = collect(records, order, epochs=2)
    assert len(batches) == 4
    shapes = {name: array.shape for name, array in batches[0].items()}
    assert shapes["image"] == (4, 64, 96, 1)
    assert shapes["boxes_cxcywh"] == (4, 8, 4)
    for batch in batches:
        assert {name: array.shape for name, array in batch.items()} == shapes
        assert batch["image"].dtype == np.uint8
    counts = [int(batch["image_valid"].sum()) for batch in batches]
    assert counts == [4, 3, 4, 3]
    padding = ~batches[1]["image_valid"]
    assert not batches[1]["valid"][padding].any()
    assert not batches[1]["image"][padding].any()


def test_examples_hold_the_records_labels(records):
    source = make_source(records)
    example = source[2]
    boxes, ids = records.labels_of(2)
    np.testing.assert_array_equal(example["boxes_cxcywh"][example["valid"]], boxes)
    np.testing.assert_array_equal(example["class_ids"][example["valid"]], ids)
    assert int(example["valid"].sum()) == len(ids)


@pytest.mark.smoke
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_does_not_depend_on_workers_nor_on_where_a_run_was_cut(records, workers):
    order = EpochOrder(num_records=len(records), batch_size=4, seed=5)
    whole = collect(records, order, epochs=2)
    rest = collect(records, order, epochs=2, position=order.position_after(1), workers=workers)
    assert len(rest) == len(whole) - 1
    for found, expected in zip(rest, whole[1:], strict=True):
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_workers_leave_nothing_in_shared_memory(records):
    def segments() -> set[str]:
        return {path.name for path in Path("/dev/shm").glob("psm_*")}

    order = EpochOrder(num_records=len(records), batch_size=2, seed=None)
    before = segments()
    with open_batches(make_source(records), order, epochs=50, workers=1) as batches:
        for _ in range(3):
            next(batches)
            assert segments() <= before


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_named(tmp_path, workers):
    definition = write_dataset(tmp_path, images=8)
    train = load_splits(load_definition(definition), min_box_area=0.0, on_bad_label="error").train
    with open(train.image_paths[1], "wb") as file:
        file.write(b"no image")
    order = EpochOrder(num_records=len(train), batch_size=2, seed=None)
    with (
        pytest.raises(Exception, match="all_"),
        open_batches(make_source(train), order, workers=workers) as batches,
    ):
        list(batches)


def test_max_boxes(records):
    most = int(records.box_counts.max())
    assert padded_box_count([records], 0) == most
    assert padded_box_count([records], most + 5) == most + 5
    with pytest.raises(UserError, match=r"data.max_boxes is 1, but .*\.png has"):
        padded_box_count([records], 1)


def test_other_sizes_are_resized(tmp_path):
    definition = write_dataset(tmp_path, images=4)
    train = load_splits(load_definition(definition), min_box_area=0.0, on_bad_label="error").train
    example = RecordSource(train, image_hw=(32, 48), rgb=True, max_boxes=8)[0]
    assert example["image"].shape == (32, 48, 3)
    with Image.open(train.image_paths[0]) as image:
        assert abs(float(np.asarray(image).mean()) - example["image"].mean()) < 1
