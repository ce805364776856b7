"""Batches of a run, put together by the host or by the device: the same ones, step by step."""

import itertools

import jax
import numpy as np
import pytest

from tiny_data import write_dataset
from yogo_jax.checkpoint.store import TrainState
from yogo_jax.data.definition import load_definition
from yogo_jax.data.pipeline import EpochOrder, RecordSource
from yogo_jax.data.splits import load_splits
from yogo_jax.detector.losses import LossTerms
from yogo_jax.errors import UserError
from yogo_jax.parallel import Devices
from yogo_jax.training import feed
from yogo_jax.training.feed import device_feed, fits_on_device, host_feed
from yogo_jax.training.step import StepMetrics


EPOCHS = 3


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    definition = write_dataset(tmp_path_factory.mktemp("data"), images=22)
    return load_splits(load_definition(definition), min_box_area=0, on_bad_label="error").train


def source_of(records):
    return RecordSource(records, image_hw=(64, 96), rgb=False, max_boxes=8)


def counting_step(state, batch):
    """Shows what a step gets in the place of its metrics."""
    number = state.step
    shown = StepMetrics(batch, LossTerms(number, number, number), number, number, number)
    return TrainState(number + 1, {}, {}, ()), shown


def batches_of(each, first_step):
    """Batches that the steps got, one after the other."""
    devices = Devices()
    step = jax.jit(each.steps_of(counting_step), in_shardings=(devices.copied, None))
    state = TrainState(devices.copy(np.asarray(first_step, np.int32)), {}, {}, ())
    got = []
    with each.open(first_step) as works:
        for work in works:
            state, shown = step(state, work.inputs)
            assert int(state.step) == first_step + len(got) + work.steps
            assert shown.grad_norm[: work.steps].tolist() == list(
                range(first_step + len(got), int(state.step))
            )
            batches = shown.loss
            got += [
                {name: np.asarray(array[k]) for name, array in batches.items()}
                for k in range(work.steps)
            ]
    assert step._cache_size() == 1
    return got


@pytest.mark.parametrize("first_step", [0, 2, 4, 5])
@pytest.mark.parametrize("steps_per_call", [1, 2, 8])
def test_both_feeds_give_the_same(records, monkeypatch, first_step, steps_per_call):
    monkeypatch.setattr(feed, "STEPS_PER_CALL", steps_per_call)
    order = EpochOrder(num_records=len(records), batch_size=3, seed=7)
    assert len(records) == 11  # so that the last batch of an epoch is not full
    source, devices = source_of(records), Devices()
    host = host_feed(source, order, epochs=EPOCHS, workers=0, devices=devices)
    device = device_feed(source, order, epochs=EPOCHS, devices=devices)
    expected = batches_of(host, first_step)
    found = batches_of(device, first_step)
    assert len(found) == len(expected) == EPOCHS * order.steps_per_epoch - first_step
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype, name
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("num_records", "batch_size", "seed"), [(11, 3, 7), (6, 3, 0), (5, 8, None)]
)
def test_records_of_an_epoch_are_those_of_its_slots(num_records, batch_size, seed):
    order = EpochOrder(num_records=num_records, batch_size=batch_size, seed=seed)
    for epoch in range(3):
        first = epoch * order.slots_per_epoch
        slots = range(first, first + order.slots_per_epoch)
        expected = [-1 if (r := order.record_of(slot)) is None else r for slot in slots]
        assert order.records_of_epoch(epoch) == expected


def test_what_does_not_fit_is_refused(records, monkeypatch):
    source, devices = source_of(records), Devices()
    assert source.nbytes == sum(array.nbytes for array in source.all().values())
    assert not fits_on_device(source, devices)  # a CPU has no memory of its own
    order = EpochOrder(num_records=len(records), batch_size=3, seed=7)
    limits = itertools.chain([source.nbytes - 1], itertools.repeat(source.nbytes))
    monkeypatch.setattr(Devices, "memory_limit", property(lambda _: next(limits)))
    with pytest.raises(UserError, match=r"data\.cache=device: the training images take"):
        device_feed(source, order, epochs=1, devices=devices)
    device_feed(source, order, epochs=1, devices=devices)
    assert not fits_on_device(source, devices)
    monkeypatch.setattr(Devices, "memory_limit", property(lambda _: 3 * source.nbytes))
    assert fits_on_device(source, devices)
