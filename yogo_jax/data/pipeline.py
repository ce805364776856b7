"""Padded examples of records, their order, and batches of them from threads or worker processes.

The order is a function of the seed and of one number, the position: the count of images that the
run has consumed. A run continues from it with any number of workers.

Workers are protected: signals to stop do not reach them, and they end with the process that started
them.
"""

import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypedDict

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, UInt8

from yogo_jax.data.images import read_image
from yogo_jax.data.records import Records
from yogo_jax.errors import UserError


# Schedulers send the first two to every process of a job, a terminal the third. Only the one that
# trains is to act on them, and it still needs its workers while it does.
_SIGNALS_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Images reach this process through pipes. In shared memory, Grain's default, what a run leaves
# behind when it ends fills a file system that containers keep small; and it is no faster.
_THROUGH_PIPES = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)


class Example(TypedDict):
    """One image in arrays of fixed size; batched, every array gains a leading axis."""

    image: UInt8[np.ndarray, "h w c"]
    boxes_cxcywh: Float[np.ndarray, "n 4"]
    class_ids: Int[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]
    image_valid: Bool[np.ndarray, ""]
    record_index: Int[np.ndarray, ""]


def padded_box_count(records: list[Records], max_boxes: int) -> int:
    """Rows that the boxes of every image are padded to, at least 1.

    Args:
      records: all splits of a run, so that they share one compiled step.
      max_boxes: the asked-for number, or 0 for the most boxes of any image.

    Raises:
      UserError: an image has more boxes than `max_boxes`; none is dropped silently.
    """
    most = 0
    for split in records:
        for index, count in enumerate(split.box_counts):
            if max_boxes and count > max_boxes:
                raise UserError(
                    f"config.data.max_boxes is {max_boxes}, but {split.image_paths[index]} has "
                    f"{count} boxes: raise it, or set it to 0 for the most of any image"
                )
            most = max(most, int(count))
    return max_boxes or max(most, 1)


class PackedImages:
    """A pack of decoded images, which each process maps into memory when it first reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def array(self) -> UInt8[np.ndarray, "n h w c"]:
        """All images, read-only."""
        return np.load(self.path, mmap_mode="r")

    @property
    def made(self) -> bool:
        """True once it is there."""
        return self.path.exists()

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return np.array(self.array[index])

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}  # the pixels themselves would go through a pipe


class RecordSource:
    """Examples by record index; reads the image file at each access, or takes it from a pack."""

    def __init__(
        self,
        records: Records,
        *,
        image_hw: tuple[int, int],
        rgb: bool,
        max_boxes: int,
        apply_orientation: bool = True,
        packed: PackedImages | None = None,
    ) -> None:
        self._records = records
        self._image_hw = image_hw
        self._rgb = rgb
        self._read = functools.partial(
            read_image, image_hw=image_hw, rgb=rgb, apply_orientation=apply_orientation
        )
        self._max_boxes = max_boxes
        self._packed = packed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        boxes_cxcywh, class_ids = self._records.labels_of(index)
        example = self.padding()
        if self._packed is not None:
            example["image"] = self._packed[index]
        else:
            example["image"] = self._read(self._records.image_paths[index])
        count = len(class_ids)
        example["boxes_cxcywh"][:count] = boxes_cxcywh
        example["class_ids"][:count] = class_ids
        example["valid"][:count] = True
        example["image_valid"] = np.asarray(True)
        example["record_index"] = np.asarray(index, np.int32)
        return example

    def _row_of_all(self) -> dict[str, np.ndarray]:
        row: Mapping[str, Any] = self.padding()
        return {name: row[name] for name in ("image", "boxes_cxcywh", "class_ids", "valid")}

    @property
    def nbytes(self) -> int:
        """Bytes of `all`."""
        return (len(self) + 1) * sum(array.nbytes for array in self._row_of_all().values())

    def all(self) -> dict[str, np.ndarray]:
        """All records in one array each of images, boxes, classes and `valid`.

        The last row is padding.
        """
        everything = {
            name: np.zeros((len(self) + 1, *row.shape), row.dtype)
            for name, row in self._row_of_all().items()
        }
        for index in range(len(self)):
            example: Mapping[str, Any] = self[index]
            for name, array in everything.items():
                array[index] = example[name]
        return everything

    def padding(self) -> Example:
        """An example that stands for no image: zeros, nowhere valid."""
        channels = 3 if self._rgb else 1
        return Example(
            image=np.zeros((*self._image_hw, channels), np.uint8),
            boxes_cxcywh=np.zeros((self._max_boxes, 4), np.float32),
            class_ids=np.zeros(self._max_boxes, np.int32),
            valid=np.zeros(self._max_boxes, bool),
            image_valid=np.asarray(False),
            record_index=np.asarray(-1, np.int32),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The record in each slot of each batch, epoch after epoch.

    An epoch has `steps_per_epoch * batch_size` slots, the last of them padding, so that every
    batch has the same shape and none crosses the border of two epochs.

    Attributes:
      num_records: of the data set.
      batch_size: slots of a batch.
      seed: of the shuffle, another permutation for each epoch; None keeps the records in order.
      repeat_factors: mean number of times that each record is seen in an epoch; empty is once.
    """

    num_records: int
    batch_size: int
    seed: int | None
    repeat_factors: tuple[float, ...] = ()

    @functools.cached_property
    def images_per_epoch(self) -> int:
        """Images of an epoch, without padding."""
        return round(sum(self.repeat_factors)) if self.repeat_factors else self.num_records

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold all images of an epoch."""
        return -(-self.images_per_epoch // self.batch_size)

    @property
    def slots_per_epoch(self) -> int:
        """Images and padding of an epoch."""
        return self.steps_per_epoch * self.batch_size

    def position_after(self, step: int) -> int:
        """Images that the first `step` batches hold: the position in the data."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        in_epoch = min(batch * self.batch_size, self.images_per_epoch)
        return epoch * self.images_per_epoch + in_epoch

    def first_slot(self, position: int) -> int:
        """The slot to go on with after `position` images."""
        epoch, offset = divmod(position, self.images_per_epoch)
        return epoch * self.slots_per_epoch + offset

    def record_of(self, slot: int) -> int | None:
        """The record in a slot, None for padding."""
        epoch, offset = divmod(slot, self.slots_per_epoch)
        at_slot = self._records_at(epoch, range(offset, offset + 1))
        return at_slot[0] if at_slot else None

    def records_of_epoch(self, epoch: int) -> list[int]:
        """The records in the slots of an epoch, -1 for padding."""
        padding = [-1] * (self.slots_per_epoch - self.images_per_epoch)
        return self._records_at(epoch, range(self.images_per_epoch)) + padding

    def records_of_batch(self, step: int) -> list[int]:
        """The records of one batch, without padding; for messages."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size
        return self._records_at(epoch, range(start, start + self.batch_size))

    def _records_at(self, epoch: int, slots: range) -> list[int]:
        """The records in some slots of an epoch, without padding."""
        count = self.images_per_epoch
        places = [*range(slots.start, min(slots.stop, count))]
        if self.seed is not None:
            # One permutation over several epochs' indices: Grain reseeds it for each of them.
            shuffled = grain.MapDataset.range(count).shuffle(self.seed)
            places = [int(shuffled[epoch * count + place]) % count for place in places]
        if not self.repeat_factors:
            return places
        # Places are laid evenly over the sum of the factors, from another start in each epoch: a
        # record with the factor 2.5 gets two of them or three.
        start = np.random.default_rng((self.seed or 0, epoch)).random()
        at = (np.asarray(places) + start) / count * self._ends[-1]
        return np.searchsorted(self._ends[:-1], at, side="right").tolist()

    @functools.cached_property
    def _ends(self) -> Float[np.ndarray, " n"]:
        return np.cumsum(self.repeat_factors)


def repeat_factors(records: Records, threshold: float) -> tuple[float, ...]:
    """Repeat factor of each image: the largest of its classes', at least 1.

    A class that is in the share f of all images has the factor `sqrt(threshold / f)`.

    Args:
      records: the training images.
      threshold: share of images below which a class counts as rare.

    References:
      Gupta et al. 2019, LVIS, arXiv:1908.03195, section 4.1 (repeat factor sampling).
    """
    image_of_box = np.repeat(np.arange(len(records)), records.box_counts)
    contains = np.zeros((len(records), len(records.class_names)), bool)
    contains[image_of_box, records.class_ids] = True
    share = np.maximum(contains.mean(0), 1 / len(records))
    of_class = np.maximum(np.sqrt(threshold / share), 1.0)
    return tuple(np.where(contains, of_class, 1.0).max(1).tolist())


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that a process reads: of `count` equal parts the one at `index`."""

    index: int
    count: int


WHOLE = Share(0, 1)


class SlotSource:
    """Examples of a share by its own slots, for Grain's random access."""

    def __init__(self, source: RecordSource, order: EpochOrder, epochs: int, share: Share) -> None:
        self._source = source
        self._order = order
        self._own_size = order.batch_size // share.count
        self._offset = share.index * self._own_size
        self._length = epochs * order.slots_per_epoch // share.count

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, own_slot: int) -> Example:
        step, row = divmod(int(own_slot), self._own_size)
        record = self._order.record_of(step * self._order.batch_size + self._offset + row)
        return self._source.padding() if record is None else self._source[record]


@contextmanager
def open_batches(
    source: RecordSource,
    order: EpochOrder,
    *,
    epochs: int = 1,
    position: int = 0,
    workers: int = 0,
    share: Share = WHOLE,
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Batches of `Example` from `position` to the end of the last epoch, in order.

    Args:
      source: where examples come from.
      order: which of them, when.
      epochs: how many times over the records, counted from position 0.
      position: images already consumed, at the border of a batch.
      workers: processes that read ahead; 0 reads ahead in threads of this one.
      share: the part of every batch that is wanted; it has to divide the batch.

    Raises:
      UserError: an image cannot be read.
    """
    if not flags.FLAGS.is_parsed():
        # Grain hands absl's flags on to its workers and refuses to do so unparsed.
        flags.FLAGS.mark_as_parsed()
    slots = grain.MapDataset.source(SlotSource(source, order, epochs, share))
    remaining = slots[order.first_slot(position) // share.count :]
    batch_size = order.batch_size // share.count
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size)
    dataset = remaining.to_iter_dataset(ahead)
    if workers:
        per_worker = max(2 * batch_size // workers, 2)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=per_worker),
            worker_init_fn=leave_with_parent,
        )
        dataset = grain.experimental.WithOptionsIterDataset(dataset, options=_THROUGH_PIPES)
    # Batched only here: batches made inside the workers would lose their remainders.
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
    if workers:
        start_resource_tracker()
    with signals_held_back():
        iterator = iter(dataset)
        iterator.start_prefetch()
    try:
        yield iterator
    finally:
        iterator.close()


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Threads and processes that are started in here never get a signal to stop.

    They inherit that from this thread, so that there is no moment without protection; what arrives
    in the meantime is delivered to this thread afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_resource_tracker() -> None:
    """Starts Python's own process for what processes share; else the first worker would do it.

    A run that ends at once leaves semaphores behind, which that process takes away, silently.
    """
    option = "ignore:resource_tracker"
    sys.warnoptions.append(option)
    try:
        with signals_held_back():
            resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(option)


def leave_with_parent(*_: object) -> None:
    """In a worker process: ends it when the process that started it is gone, even if killed."""
    for each in _SIGNALS_TO_STOP:
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
