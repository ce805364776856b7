"""Exported models as functions of uint8 frames: ONNX Runtime, and OpenVINO on this CPU.

`yogo_jax.infer` and the verification of exports run models by this code. The runtimes are imported
when a model is opened, so that either works without the other.
"""

import abc
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.errors import UserError


Frames = UInt8[np.ndarray, "n h w c"]
Outputs = Float[np.ndarray, "n outputs gh gw"]

# Where in an IR's own notes the model is described, see `to_ir.py`.
RT_INFO = "yogo"
# Calls in flight beyond those that OpenVINO computes at a time, so that it never waits for a frame.
_CALLS_IN_RESERVE = 2
_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Interface(NamedTuple):
    """The input and output of a model.

    Attributes:
      input_nchw: its images; a batch of any size is of 1.
      output_shape: (n, outputs, gh, gw).
      description: what our export wrote into it by name, empty for models of others.
    """

    input_nchw: tuple[int, int, int, int]
    output_shape: tuple[int, int, int, int]
    description: dict[str, str]


class _Model(abc.ABC):
    """The common part of both runtimes; `stream` takes batches of exactly `batch_size` frames."""

    interface: Interface
    precision: str

    @property
    def batch_size(self) -> int:
        """Images of one call."""
        return self.interface.input_nchw[0]

    @abc.abstractmethod
    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches, in their order; the model may be ahead of what was taken."""

    def run(self, frames: Frames) -> Outputs:
        """Outputs for frames, any number of them."""
        return np.concatenate(list(self.stream(_batches(frames, self.batch_size))))[: len(frames)]


class OnnxModel(_Model):
    """An ONNX model in ONNX Runtime, which computes in the precision of the file, mostly FP32.

    Args:
      path: the .onnx.
      divide_by_255: pixels before they go in.
      keep_memory: of a call for the next, which is faster and takes twice as much of it.

    Raises:
      UserError: ONNX Runtime is not there, or the file is no such model.
    """

    precision = "f32"

    def __init__(
        self, path: Path, *, divide_by_255: bool = False, keep_memory: bool = True
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise _missing("ONNX Runtime", path) from error
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = keep_memory
        if not keep_memory:  # nor the kernels in a second layout
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no class of their own that is public
            raise UserError(f"{path}: ONNX Runtime cannot load it ({_reason(error)})") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        _check_one_of_each(path, len(inputs), len(outputs))
        self._input = inputs[0]
        if self._input.type not in _ONNX_TYPES:
            expected = ", ".join(_ONNX_TYPES)
            raise UserError(f"{path}: its input is {self._input.type}; expected one of {expected}")
        self._dtype = np.dtype(_ONNX_TYPES[self._input.type])
        if divide_by_255 and self._dtype.kind != "f":
            raise UserError(
                f"{path}: takes whole numbers ({self._input.type}), which cannot be divided by "
                "255: leave out --normalize-images, or say --no-normalize-images"
            )
        self._divide = divide_by_255
        self.interface = _interface(
            path,
            [side if isinstance(side, int) else -1 for side in self._input.shape],
            [side if isinstance(side, int) else -1 for side in outputs[0].shape],
            dict(self._session.get_modelmeta().custom_metadata_map),
        )

    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches, in their order."""
        for batch in batches:
            images = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), self._dtype)
            if self._divide:
                images /= self._dtype.type(255)
            (output,) = self._session.run(None, {self._input.name: images})
            yield np.asarray(output, np.float32)


class OpenVinoModel(_Model):
    """An IR (.xml) in OpenVINO, by default computed in FP32 whatever the CPU would prefer.

    Args:
      path: the .xml, with its .bin beside it.
      precision: "f32", "bf16" or "f16".
      frames_in_flight: that the model may hold at a time; None is what OpenVINO asks for and two
        calls more.
      divide_by_255: pixels before they go in.

    Raises:
      UserError: OpenVINO is not there, the file is no such model, or this CPU does not compute in
        the precision.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "f32",
        frames_in_flight: int | None = None,
        divide_by_255: bool = False,
    ) -> None:
        try:
            from bridge.quiet_openvino import ov
        except ModuleNotFoundError as error:
            raise _missing("OpenVINO", path) from error
        core = ov.Core()
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            weights = path.with_suffix(".bin")
            if "weights" in str(error) and not weights.is_file():
                raise UserError(
                    f"{weights} is missing: an IR is two files, copy it beside {path.name}"
                ) from None
            raise UserError(f"{path}: OpenVINO cannot read it ({_reason(error)})") from None
        _check_one_of_each(path, len(model.inputs), len(model.outputs))
        self.interface = _interface(
            path, _sides(model.inputs[0]), _sides(model.outputs[0]), _rt_info(model)
        )
        if model.inputs[0].get_partial_shape().is_dynamic:
            model.reshape(list(self.interface.input_nchw))
        try:
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout("NCHW"))
            if divide_by_255:
                steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
            steps.output().tensor().set_element_type(ov.Type.f32)
            # Several calls at a time take the memory of several.
            alone = frames_in_flight is not None and frames_in_flight <= self.batch_size
            hint = "LATENCY" if alone else "THROUGHPUT"
            options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": precision}
            self._compiled = core.compile_model(steps.build(), "CPU", options)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot run it ({_reason(error)})") from None
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != precision:
            raise UserError(f"{path}: in {precision} this CPU computes in {used} instead")
        self.precision = precision
        if frames_in_flight is None:
            at_a_time = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._calls = at_a_time + _CALLS_IN_RESERVE
        else:
            self._calls = max(frames_in_flight // self.batch_size, 1)
        self._idle: list[Any] = []

    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches, in their order; several calls are in flight."""
        # Kept from one stream to the next. A stream that runs at the same time makes its own.
        free, self._idle = self._idle, []
        running: deque[Any] = deque()
        try:
            for batch in batches:
                if len(running) == self._calls:
                    free.append(running.popleft())
                    yield _result(free[-1])
                request = free.pop() if free else self._compiled.create_infer_request()
                request.start_async({0: batch})
                running.append(request)
            while running:
                free.append(running.popleft())
                yield _result(free[-1])
        finally:
            for request in running:
                request.wait()
            self._idle = [*free, *running]


def _result(request: Any) -> Outputs:
    """A copy of what a call gave, once it is there."""
    request.wait()
    return np.array(request.output_tensors[0].data)


def _missing(name: str, path: Path) -> UserError:
    return UserError(
        f"{path}: {name} is needed to run it and not installed: pip install 'yogo-jax[runtime]'"
    )


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _check_one_of_each(path: Path, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (1, 1):
        raise UserError(
            f"{path}: expected a model with one input and one output, found {inputs} and {outputs}"
        )


def _interface(
    path: Path, given: list[int], output: list[int], description: dict[str, str]
) -> Interface:
    """Checks shapes, in which -1 is any size."""
    if len(given) != 4 or given[1] not in (1, 3) or min(given[1:]) < 1:
        raise UserError(
            f"{path}: expected an input [n, 1 or 3, rows, columns] of one size, found {given}"
        )
    batch = given[0] if given[0] > 0 else 1
    if len(output) != 4 or min(output[1:]) < 1 or output[1] < 6:
        raise UserError(
            f"{path}: expected an output [n, 5 + classes, grid rows, grid columns], found {output}"
        )
    rows, columns = given[2:]
    return Interface((batch, given[1], rows, columns), (batch, *output[1:]), description)  # type: ignore[arg-type]


def _sides(port: Any) -> list[int]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [side.get_length() if side.is_static else -1 for side in shape]


def _rt_info(model: Any) -> dict[str, str]:
    if not model.has_rt_info([RT_INFO]):
        return {}
    notes = model.get_rt_info([RT_INFO]).value
    return {key: str(value) for key, value in notes.items()} if isinstance(notes, dict) else {}


def _batches(frames: Frames, size: int) -> Iterator[Frames]:
    """Batches of one size; the last is filled up with its last frame."""
    missing = -len(frames) % size
    filled = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    for start in range(0, len(filled), size):
        yield np.ascontiguousarray(filled[start : start + size])
