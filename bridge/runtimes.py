"""Exported models as functions of frames: ONNX Runtime, and OpenVINO on this CPU."""

from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float, UInt8

from bridge.quiet_openvino import ov


Frames = UInt8[np.ndarray, "n h w c"]
Outputs = Float[np.ndarray, "n outputs gh gw"]


class OnnxModel:
    """An ONNX model in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (self._input,) = self._session.get_inputs()
        self.batch_size: int = self._input.shape[0]

    def run(self, frames: Frames) -> Outputs:
        """Outputs for frames, any number of them."""
        parts = [
            self._session.run(None, {self._input.name: batch})[0]
            for batch in _batches(frames, self.batch_size)
        ]
        return np.concatenate(parts)[: len(frames)]


class OpenVinoModel:
    """An IR (.xml) in OpenVINO, computed in FP32 whatever the CPU would prefer."""

    def __init__(self, path: Path) -> None:
        core = ov.Core()
        self._model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.batch_size: int = self._model.input(0).shape[0]

    def run(self, frames: Frames) -> Outputs:
        """Outputs for frames, any number of them."""
        parts = [
            np.array(self._model(batch)[self._model.output(0)])
            for batch in _batches(frames, self.batch_size)
        ]
        return np.concatenate(parts)[: len(frames)]


def _batches(frames: Frames, size: int) -> list[Float[np.ndarray, "b c h w"]]:
    """Float batches of one size in NCHW; the last is filled up with its last frame."""
    images = np.ascontiguousarray(frames.transpose(0, 3, 1, 2), np.float32)
    missing = -len(images) % size
    images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    return list(images.reshape(-1, size, *images.shape[1:]))
