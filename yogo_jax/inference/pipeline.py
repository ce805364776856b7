"""From a source to records: reading, network, detection and writing overlap, all bounded.

Threads read frames ahead, the network gets them in batches, threads finish what it gives. Speed
equals that of the slowest stage: the queues before it are full, and the others wait. So memory does
not grow with the frames, and records come in the order of the source.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.data.images import resize_image
from yogo_jax.detector.detections import Thresholds
from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import EndOfFramesError, FrameError, FrameSource


# Sides of two sizes are of one shape up to this; more would be squeezed visibly.
_SAME_SHAPE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """A model as its user sees it.

    Attributes:
      class_names: in the order of the class channels.
      image_hw: what the network takes, in px.
      frame_hw: the whole frame of which that is the middle; None if nobody has said so.
      rgb: three channels instead of one.
      thresholds: that the model asks for.
      apply_orientation: whether it was trained on images turned as their EXIF or TIFF tag says;
        True for models that do not say.
    """

    class_names: tuple[str, ...]
    image_hw: tuple[int, int]
    frame_hw: tuple[int, int] | None
    rgb: bool
    thresholds: Thresholds
    apply_orientation: bool = True


class View(NamedTuple):
    """The part of a frame that the network sees.

    Attributes:
      image: of the size that it takes.
      window_xyxy: where that lies, as fractions of the frame.
    """

    image: UInt8[np.ndarray, "h w c"]
    window_xyxy: tuple[float, float, float, float]


def view_of(frame: UInt8[np.ndarray, "h w c"], serving: ServingSpec) -> View:
    """The part of a frame that the network takes, at its scale.

    A frame of the size that the network takes goes in as it is. Any other is resized to the whole
    frame that the network was made for, as in training, and its middle rows and columns are cut
    out: of an odd rest one more lies above, as the instrument does it.

    Raises:
      UserError: how much of the frame is meant is not known, see `--crop-height`.
    """
    (rows, columns), whole = serving.image_hw, serving.frame_hw
    if frame.shape[:2] == serving.image_hw:
        return View(frame, (0.0, 0.0, 1.0, 1.0))
    if whole is None:
        height, width = frame.shape[:2]
        if abs(height * columns / (width * rows) - 1) > _SAME_SHAPE:
            middle = f"--crop-height {rows / height:.4g} for its middle rows at their own scale, "
            raise UserError(
                f"the network takes {rows}x{columns} px, the frame is {height}x{width}: say how "
                f"much of a frame it is for, {middle if rows < height else ''}--crop-height 1 for "
                "the whole frame squeezed"
            )
        whole = serving.image_hw
    height, width = whole
    top, left = (height - rows + 1) // 2, (width - columns + 1) // 2
    image = resize_image(frame, whole)[top : top + rows, left : left + columns]
    window = (left / width, top / height, (left + columns) / width, (top + rows) / height)
    return View(np.ascontiguousarray(image), window)


class Loaded(NamedTuple):
    """A frame that was read; `frame` and `view` are None where `error` says why not."""

    image_id: int
    name: str
    stem: str
    frame: UInt8[np.ndarray, "h w c"] | None
    view: View | None
    error: str | None


Frames = UInt8[np.ndarray, "b h w c"]
Outputs = Float[np.ndarray, "b outputs gh gw"]
Stream = Callable[[Iterable[Frames]], Iterator[Outputs]]
Result = TypeVar("Result")
Finish = Callable[[Loaded, Float[np.ndarray, "outputs gh gw"] | None], Result]


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
