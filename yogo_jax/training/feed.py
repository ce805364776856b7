"""The way of the training images to the step: batch by batch from the host, or all at once.

Either way a batch holds the same images in the same rows. The host puts it together, ahead of the
device; or the device does, from the whole split in its memory, several steps for each call of the
host.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from yogo_jax.checkpoint.run_data import RunData
from yogo_jax.checkpoint.store import TrainState
from yogo_jax.config.schema import Config, DataConfig
from yogo_jax.data.pack import (
    CannotPackError,
    find_pack,
    make_pack,
    pack_bytes,
    room_for_packs,
)
from yogo_jax.data.pipeline import EpochOrder, PackedImages, RecordSource, open_batches
from yogo_jax.data.records import Records
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.parallel import Devices
from yogo_jax.training.step import Batch, StepMetrics, Steps, TrainStep
from yogo_jax.training.tracking import Tracker


# Of the free room, what "auto" takes at most.
_SHARE_OF_ROOM = 0.5


def open_pack(
    name: str,
    records: Records,
    spec: ModelSpec,
    data: DataConfig,
    tracker: Tracker,
    check: Callable[[], None],
) -> PackedImages | None:
    """The images of a split from a pack, made first if need be; None to decode them each time.

    "auto" packs what takes no more than half of the free room. Where that cannot be it decodes each
    time; so does "device", which reads the images of the training only once.

    Args:
      spec: says in which size and colours images are wanted.
      data: with `cache`.
      tracker: takes lines, and what is being done.
      check: called every few images; what it raises ends the packing.

    Raises:
      UserError: an image cannot be read, or cannot be packed where "disk" asks for it.
    """
    if data.cache == "none" or len(records) == 0:
        return None

    def tell(done: int, total: int) -> None:
        check()
        tracker.doing(f"packing images of {name}, {done} of {total}")

    try:
        packed = find_pack(
            records.image_paths,
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            apply_orientation=spec.apply_orientation,
        )
        if packed.made:
            return packed
        needed, room = pack_bytes(len(records), spec.image_hw, rgb=spec.rgb), room_for_packs()
        if data.cache == "auto" and needed > _SHARE_OF_ROOM * room:
            raise CannotPackError(
                f"packed they take {needed / 2**30:.1f} GiB, and {room / 2**30:.1f} GiB are free "
                "(--config.data.cache=disk packs them, where YOGO_JAX_CACHE says)"
            )
        make_pack(
            packed,
            records.image_paths,
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            workers=data.workers,
            tell=tell,
            apply_orientation=spec.apply_orientation,
        )
    except CannotPackError as error:
        if data.cache == "disk":
            raise
        tracker.say(f"images of {name} are decoded each time: {error}")
        return None
    return packed


# Steps of one call when the images are on the device: enough that the host's part does not count,
# few enough that a signal is noticed soon.
STEPS_PER_CALL = 8
# Of a device's memory, what images may take; the rest is for the network.
SHARE_OF_MEMORY = 0.4


class Work(NamedTuple):
    """The work of one call: its number of steps, and its inputs on the devices."""

    steps: int
    inputs: Any


class Feed(NamedTuple):
    """The batches of a run.

    Attributes:
      steps_of: the steps of one call, made of the step on one batch.
      open: a context that gives the work from a step to the end of the run. An image that cannot be
        read raises a `UserError` there.
    """

    steps_of: Callable[[TrainStep], Steps]
    open: Callable[[int], AbstractContextManager[Iterator[Work]]]


def training_source(data: RunData, spec: ModelSpec, packed: PackedImages | None) -> RecordSource:
    """The training images and labels of a run by their index, as the network takes them."""
    return RecordSource(
        data.splits.train,
        image_hw=spec.image_hw,
        rgb=spec.rgb,
        max_boxes=data.max_boxes,
        apply_orientation=spec.apply_orientation,
        packed=packed,
    )


def make_feed(
    data: RunData,
    spec: ModelSpec,
    config: Config,
    order: EpochOrder,
    devices: Devices,
    packed: PackedImages | None,
) -> Feed:
    """The feed of a run, by `data.cache`; `packed` holds the training images, if they are packed.

    Raises:
      UserError: the images cannot be read, or do not fit on the device where they have to.
    """
    source = training_source(data, spec, packed)
    epochs, cache = config.train.epochs, config.data.cache
    if cache == "device" or (cache == "auto" and fits_on_device(source, devices)):
        return device_feed(source, order, epochs=epochs, devices=devices)
    return host_feed(source, order, epochs=epochs, workers=config.data.workers, devices=devices)


def fits_on_device(source: RecordSource, devices: Devices) -> bool:
    """True if "auto" keeps the images on the device: an accelerator with memory enough."""
    limit = devices.memory_limit
    return limit is not None and source.nbytes <= SHARE_OF_MEMORY * limit


def host_feed(
    source: RecordSource, order: EpochOrder, *, epochs: int, workers: int, devices: Devices
) -> Feed:
    """Batches that the host puts together, one for each call; `workers` processes read ahead."""

    def steps_of(train_step: TrainStep) -> Steps:
        def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            state, metrics = train_step(state, batch)
            return state, jax.tree.map(lambda value: value[None], metrics)

        return one_step

    @contextmanager
    def works(first_step: int) -> Iterator[Iterator[Work]]:
        with open_batches(
            source,
            order,
            epochs=epochs,
            position=order.position_after(first_step),
            workers=workers,
            share=devices.share,
        ) as batches:
            yield (Work(1, devices.spread(batch)) for batch in batches)

    return Feed(steps_of, works)


def device_feed(source: RecordSource, order: EpochOrder, *, epochs: int, devices: Devices) -> Feed:
    """All images in the memory of every device, which gather their batches themselves.

    All of them are read now. A call takes `STEPS_PER_CALL` steps, of which the last may be left
    out; none goes over the end of an epoch.

    Raises:
      UserError: an image cannot be read, or they do not fit.
    """
    count, needed, limit = len(source), source.nbytes, devices.memory_limit
    if limit is not None and needed > limit:
        raise UserError(
            f"data.cache=device: the training images take {needed / 2**30:.1f} GiB, a device "
            f"has {limit / 2**30:.1f}: use --config.data.cache=disk"
        )
    data = devices.copy(source.all())

    def steps_of(train_step: TrainStep) -> Steps:
        def some_steps(state: TrainState, inputs: Any) -> tuple[TrainState, StepMetrics]:
            def batch_of(rows: Int[Array, " b"]) -> Batch:
                batch = jax.tree.map(lambda array: array[rows], inputs["data"])
                is_image = rows < count
                index = jnp.where(is_image, rows, -1)
                return {**batch, "image_valid": is_image, "record_index": index}

            def step(state: TrainState, at: Any) -> tuple[TrainState, StepMetrics]:
                number, rows = at
                like = jax.eval_shape(lambda: train_step(state, batch_of(rows))[1])
                nothing = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), like)
                return jax.lax.cond(
                    number < inputs["steps"],
                    lambda: train_step(state, batch_of(rows)),
                    lambda: (state, nothing),
                )

            numbers = jnp.arange(STEPS_PER_CALL, dtype=jnp.int32)
            return jax.lax.scan(step, state, (numbers, inputs["rows"].T))

        return some_steps

    def works(first_step: int) -> Iterator[Work]:
        own = order.batch_size // devices.share.count
        begin = devices.share.index * own
        first_epoch, first = divmod(first_step, order.steps_per_epoch)
        for epoch in range(first_epoch, epochs):
            # The data has one row more, for padding.
            slots = np.asarray(order.records_of_epoch(epoch), np.int32)
            slots = np.where(slots < 0, count, slots).reshape(-1, order.batch_size)
            for step in range(first if epoch == first_epoch else 0, len(slots), STEPS_PER_CALL):
                rows = slots[step : step + STEPS_PER_CALL, begin : begin + own]
                padding = np.full((STEPS_PER_CALL - len(rows), own), count, np.int32)
                inputs = {
                    "data": data,
                    "rows": devices.spread(np.concatenate([rows, padding]).T),
                    "steps": devices.copy(np.asarray(len(rows), np.int32)),
                }
                yield Work(len(rows), inputs)

    return Feed(steps_of, lambda first_step: nullcontext(works(first_step)))
