"""The order of the data, and batches of it from threads or worker processes.

The order is a function of the seed and of one number, the position: the count of images that the
run has consumed. A run continues from it with any number of workers.

Workers are protected: signals to stop do not reach them, and they end with the process that started
them.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

import grain
import numpy as np
from absl import flags

from yogo_jax.data.source import Example, RecordSource


# Schedulers send the first two to every process of a job, a terminal the third. Only the one that
# trains is to act on them, and it still needs its workers while it does.
_SIGNALS_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Images reach this process through pipes. In shared memory, Grain's default, what a run leaves
# behind when it ends fills a file system that containers keep small; and it is no faster.
_THROUGH_PIPES = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The record in each slot of each batch, epoch after epoch.

    An epoch has `steps_per_epoch * batch_size` slots, the last of them padding, so that every
    batch has the same shape and none crosses the border of two epochs.

    Attributes:
      num_records: images of an epoch.
      batch_size: slots of a batch.
      seed: of the shuffle, another permutation for each epoch; None keeps the records in order.
    """

    num_records: int
    batch_size: int
    seed: int | None

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold all records once."""
        return -(-self.num_records // self.batch_size)

    @property
    def slots_per_epoch(self) -> int:
        """Records and padding of an epoch."""
        return self.steps_per_epoch * self.batch_size

    def position_after(self, step: int) -> int:
        """Images that the first `step` batches hold: the position in the data."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.num_records + min(batch * self.batch_size, self.num_records)

    def first_slot(self, position: int) -> int:
        """The slot to go on with after `position` images."""
        epoch, offset = divmod(position, self.num_records)
        return epoch * self.slots_per_epoch + offset

    def record_of(self, slot: int) -> int | None:
        """The record in a slot, None for padding."""
        epoch, offset = divmod(slot, self.slots_per_epoch)
        if offset >= self.num_records:
            return None
        if self.seed is None:
            return offset
        # One permutation over several epochs' indices: Grain reseeds it for each of them.
        shuffled = grain.MapDataset.range(self.num_records).shuffle(self.seed)
        return int(shuffled[epoch * self.num_records + offset]) % self.num_records

    def records_of_epoch(self, epoch: int) -> list[int]:
        """The records in the slots of an epoch, -1 for padding."""
        if self.seed is None:
            records = list(range(self.num_records))
        else:
            shuffled = grain.MapDataset.range(self.num_records).shuffle(self.seed)
            first = epoch * self.num_records
            slots = range(first, first + self.num_records)
            records = [int(shuffled[slot]) % self.num_records for slot in slots]
        return records + [-1] * (self.slots_per_epoch - self.num_records)

    def records_of_batch(self, step: int) -> list[int]:
        """The records of one batch, without padding; for messages."""
        slots = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [record for slot in slots if (record := self.record_of(slot)) is not None]


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
