"""Exported models, ours or of another maker, as `Model`s; the bridge runs them, without JAX."""

import hashlib
import importlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.grid import whole_frame_hw
from yogo_jax.errors import UserError
from yogo_jax.inference.models import Model, ModelOptions, normalization_is_fixed, renamed
from yogo_jax.inference.pipeline import Frames, Outputs, ServingSpec


# By so much half precision may leave [0, 1].
_ROUNDING = 0.01


class ExportedModel(Model):
    """An `.xml` or `.onnx`, ours or of another maker, run by the bridge."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        self.path = path
        self._model = _opened(path, options)
        interface = self._model.interface
        _, channels, rows, columns = interface.input_nchw
        said = interface.description
        is_ours = "class_names" in said
        if is_ours and options.normalize_images is not None:
            raise normalization_is_fixed(path)
        if not is_ours:
            _check_told(path, options, interface.output_shape[1] - 5)
        names = tuple(_said(path, said, "class_names")) if is_ours else options.class_names
        whole = None
        if is_ours:
            multiplier = tuple(_said(path, said, "size_multiplier_wh"))
            whole = whole_frame_hw((rows, columns), multiplier)
        self.serving = ServingSpec(
            class_names=renamed(path, names, options.class_names),
            image_hw=(rows, columns),
            frame_hw=_frame_of_crop(path, (rows, columns), whole, options.crop_height),
            rgb=channels == 3,
            thresholds=_thresholds(path, said, len(names)) if is_ours else Thresholds(),
            # Exports of earlier versions do not say.
            apply_orientation="apply_orientation" not in said
            or bool(_said(path, said, "apply_orientation")),
        )
        if len(self.serving.class_names) != interface.output_shape[1] - 5:
            raise UserError(
                f"{path}: its output has {interface.output_shape[1]} channels, so "
                f"{interface.output_shape[1] - 5} classes, but it names {len(names)}"
            )
        self.precision = self._model.precision
        self.digest = _digest_of_files(path, divided=bool(options.normalize_images))

    def batch_size_for(self, count: int | None) -> int:
        """Frames of one call, which is fixed in the file."""
        return self._model.batch_size

    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches of one size, in order.

        Raises:
          UserError: objectness or class probabilities are no probabilities.
        """
        outputs = self._model.stream(batches)
        for first in itertools.islice(outputs, 1):
            self._check_probabilities(first)
            yield first
        yield from outputs

    def _check_probabilities(self, outputs: Outputs) -> None:
        """Refuses a network that ends without its sigmoid or softmax."""
        values = outputs[:, 4:]
        # Of NaN and infinity a detection tells, where an object may be.
        values = values[np.isfinite(values)]
        lowest, highest = values.min(initial=0), values.max(initial=1)
        if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
            raise UserError(
                f"{self.path}: its objectness and class probabilities go from {lowest:g} to "
                f"{highest:g}, expected 0 to 1: export it with a sigmoid of the objectness and a "
                "softmax of the classes at its end"
            )

    def export(self, folder: str | Path, **options: Any) -> Path:
        """Refuses: only a checkpoint can be exported."""
        raise UserError(
            f"{self.path}: is exported already; load the checkpoint that it was exported from to "
            "export it in another form"
        )

    def describe(self) -> str:
        """One line that says what runs the model, where, and in which precision."""
        by = "ONNX Runtime" if self.path.suffix.lower() == ".onnx" else "OpenVINO"
        return f"{self.path} by {by} in {self.precision} on the CPU"


def _opened(path: Path, options: ModelOptions) -> Any:
    """The model, run by the bridge."""
    # By name: the layers below do not depend on the bridge, which depends on them.
    runtime: Any = importlib.import_module("bridge.runtime")
    divide = bool(options.normalize_images)
    if path.suffix.lower() == ".onnx":
        if options.precision != "f32":
            raise UserError(
                f"{path}: ONNX Runtime computes in the precision of the file: for half precision "
                "give the IR (.xml) or the checkpoint"
            )
        return runtime.OnnxModel(path, divide_by_255=divide)
    given = {"frames_in_flight": options.batch_size, "divide_by_255": divide}
    if options.precision != "half":
        return runtime.OpenVinoModel(path, precision=options.precision, **given)
    try:
        return runtime.OpenVinoModel(path, precision="bf16", **given)
    except UserError:
        return runtime.OpenVinoModel(path, precision="f16", **given)


def _check_told(path: Path, options: ModelOptions, classes: int) -> None:
    """Asks for what a model of another maker does not say."""
    names = len(options.class_names)
    if names != classes:
        found = f"--class-names has {names}" if names else "it does not name them"
        raise UserError(
            f"{path}: gives {classes} classes, {found}: add --class-names A,B,… with {classes} "
            "names in the order of its outputs"
        )
    if options.normalize_images is None:
        raise UserError(
            f"{path}: does not say what pixels it takes: add --normalize-images if they must be "
            "divided by 255 first, --no-normalize-images if it takes 0 to 255 (or divides itself)"
        )


def _said(path: Path, description: dict[str, str], key: str) -> Any:
    try:
        return json.loads(description[key])
    except (KeyError, ValueError):
        raise UserError(
            f"{path}: its description of itself has no usable {key}: export it again"
        ) from None


def _thresholds(path: Path, said: dict[str, str], classes: int) -> Thresholds:
    """The thresholds that an export of ours says, those of its decision among them."""
    values = _said(path, said, "thresholds")
    class_thresholds = tuple(values.get("class_thresholds", ()))
    if len(class_thresholds) not in (0, classes):
        raise UserError(
            f"{path}: has {len(class_thresholds)} class thresholds, but {classes} classes: export "
            "it again"
        )
    return Thresholds(**{**values, "class_thresholds": class_thresholds})


def _frame_of_crop(
    path: Path,
    image_hw: tuple[int, int],
    whole: tuple[int, int] | None,
    crop_height: float | None,
) -> tuple[int, int] | None:
    """The whole frame of an exported model, of which `--crop-height` may say what it is."""
    rows, columns = image_hw
    if crop_height is None:
        return whole
    if whole is None:
        if crop_height > 1:
            raise UserError(
                f"--crop-height {crop_height:g}: {path} takes {rows} rows; say what fraction of a "
                "frame that is, up to 1"
            )
        return max(rows, round(rows / crop_height)), columns
    wanted = round(crop_height * whole[0]) if crop_height <= 1 else round(crop_height)
    if wanted != rows:
        raise UserError(
            f"--crop-height {crop_height:g}: {path} was exported for {rows} rows of {whole[0]}: "
            f"leave it out, or export with --crop-height {crop_height:g}"
        )
    return whole


def _digest_of_files(path: Path, *, divided: bool) -> str:
    digest = hashlib.sha256(b"divided by 255" if divided else b"")
    for file in (path, path.with_suffix(".bin")):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
