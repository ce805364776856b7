"""From a source to records: reading, network, detection and writing overlap, all bounded.

Threads read frames ahead, the network gets them in batches, threads finish what it gives. Speed
equals that of the slowest stage: the queues before it are full, and the others wait. So memory does
not grow with the frames, and records come in the order of the source.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.detector.detections import Detections, Thresholds
from yogo_jax.detector.postprocess import detections_of
from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import EndOfFramesError, FrameError, FrameSource
from yogo_jax.inference.serving import ServingSpec, View, view_of


class Loaded(NamedTuple):
    """A frame that was read; `frame` and `view` are None where `error` says why not."""

    image_id: int
    name: str
    stem: str
    frame: UInt8[np.ndarray, "h w c"] | None
    view: View | None
    error: str | None


def detections_in(
    loaded: Loaded,
    outputs: Float[np.ndarray, "outputs gh gw"],
    serving: ServingSpec,
    thresholds: Thresholds,
    *,
    image: np.ndarray | None = None,
) -> Detections:
    """Detections of a frame that was read, from the outputs of the network for it.

    Args:
      loaded: the frame.
      outputs: for it.
      serving: of the network.
      thresholds: that boxes pass.
      image: kept with the detections, to draw on.

    Raises:
      NotNumbersError: cells where an object may be hold NaN or infinite values.
    """
    assert loaded.frame is not None
    assert loaded.view is not None
    return detections_of(
        outputs,
        thresholds,
        class_names=serving.class_names,
        image_hw=loaded.frame.shape[:2],
        window_xyxy=loaded.view.window_xyxy,
        image=image,
        name=loaded.name,
    )


Result = TypeVar("Result")
Finish = Callable[[Loaded, Float[np.ndarray, "outputs gh gw"] | None], Result]
Stream = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def run_frames(
    source: FrameSource,
    serving: ServingSpec,
    stream: Stream,
    finish: Finish[Result],
    *,
    start: int,
    batch_size: int,
    workers: int,
) -> Generator[Result, None, None]:
    """Yields the result of `finish` for each frame from `start` on, in order.

    Batches are of fixed places in the source, whatever `start` is and whatever cannot be read, so
    that the outputs of a frame do not depend on where a run was interrupted.

    Args:
      source: of the frames.
      serving: what the network takes of them.
      stream: the network, see `Model.stream`.
      finish: called in a thread with a frame and its outputs, None if it could not be read.
      start: the first frame to finish.
      batch_size: frames of one call of the network.
      workers: threads that read, and as many that finish.

    Raises:
      UserError: a frame does not fit the network; and what `finish` raises.
    """
    first = start - start % batch_size
    readers = ThreadPoolExecutor(1 if source.in_order else workers, "read")
    finishers = ThreadPoolExecutor(workers, "finish")
    with readers, finishers:
        try:
            loaded = _read_ahead(source, serving, first, readers, ahead=2 * workers + batch_size)
            pairs = _through_network(loaded, serving, stream, batch_size)
            running: deque[Future[Result]] = deque()
            for each, outputs in pairs:
                if each.image_id < start:
                    continue
                running.append(finishers.submit(finish, each, outputs))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            finishers.shutdown(wait=False, cancel_futures=True)


def _read_ahead(
    source: FrameSource,
    serving: ServingSpec,
    first: int,
    readers: ThreadPoolExecutor,
    *,
    ahead: int,
) -> Iterator[Loaded]:
    """Frames in order, read by threads, at most `ahead` of them waiting."""
    indices = itertools.count(first) if source.count is None else iter(range(first, source.count))
    waiting: deque[Future[Loaded | None]] = deque()
    while True:
        for index in itertools.islice(indices, ahead - len(waiting)):
            waiting.append(readers.submit(_load, source, serving, index))
        if not waiting:
            return
        loaded = waiting.popleft().result()
        if loaded is None:
            return
        yield loaded


def _load(source: FrameSource, serving: ServingSpec, index: int) -> Loaded | None:
    """One frame; None behind the last."""
    try:
        frame = source.read(index)
    except EndOfFramesError:
        return None
    except FrameError as error:
        return Loaded(index, source.name(index), source.stem(index), None, None, str(error))
    try:
        view = view_of(frame, serving)
    except UserError as error:
        # If the very first frame does not fit, none will: the user has to say more. A later one is
        # the odd one out.
        if index == 0:
            raise
        reason = f"{source.name(index)}: {error}"
        return Loaded(index, source.name(index), source.stem(index), None, None, reason)
    return Loaded(index, source.name(index), source.stem(index), frame, view, None)


def _through_network(
    loaded: Iterator[Loaded], serving: ServingSpec, stream: Stream, batch_size: int
) -> Iterator[tuple[Loaded, np.ndarray | None]]:
    """Every frame with its outputs."""
    sent: deque[list[Loaded]] = deque()

    def batches() -> Iterator[np.ndarray]:
        shape = (batch_size, *serving.image_hw, 3 if serving.rgb else 1)
        while group := list(itertools.islice(loaded, batch_size)):
            batch = np.zeros(shape, np.uint8)
            for place, each in enumerate(group):
                if each.view is not None:
                    batch[place] = each.view.image
            sent.append(group)
            yield batch

    for outputs in stream(batches()):
        for each, output in zip(sent.popleft(), outputs, strict=False):
            yield each, output if each.error is None else None
