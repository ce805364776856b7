"""Models of all kinds behind one interface: checkpoints here, exported ones by the bridge."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from yogo_jax.detector.found import Thresholds
from yogo_jax.detector.spec import served_spec, whole_frame_hw
from yogo_jax.errors import UserError
from yogo_jax.inference.served import Served
from yogo_jax.training.checkpoints import find_checkpoint, read_metadata, restore_variables


EXPORTED_SUFFIXES = (".xml", ".onnx")
# On a CPU larger batches gain nothing and take memory.
BATCH_SIZE, BATCH_SIZE_ON_CPU = 64, 4
_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16, "half": jnp.bfloat16}

Frames = UInt8[np.ndarray, "b h w c"]
Outputs = Float[np.ndarray, "b outputs gh gw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What flags say of a model; None where they say nothing.

    Attributes:
      crop_height: rows to look at, up to 1 a fraction of the frame, above that px.
      class_names: instead of the model's own; those of a model of another maker.
      normalize_images: divide pixels by 255 before they go into a model of another maker.
      batch_size: frames that are with the network at a time.
      precision: "f32", "bf16", "f16", or "half": the one of the latter two that there is.
    """

    crop_height: float | None = None
    class_names: tuple[str, ...] = ()
    normalize_images: bool | None = None
    batch_size: int | None = None
    precision: str = "f32"


@runtime_checkable
class Model(Protocol):
    """A network that is ready to run.

    Attributes:
      served: what it takes.
      digest: of everything that its outputs follow from.
      precision: that it computes in.
    """

    served: Served
    digest: str
    precision: str

    def batch_size_for(self, count: int | None) -> int:
        """Frames of one call, if there are so many in all."""
        ...

    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches of one size, in order; the model may be ahead of what was taken."""
        ...

    def describe(self) -> str:
        """What runs it, where, and how, in one line."""
        ...


def load_model(path: Path, options: ModelOptions) -> Model:
    """The model that MODEL means: a run, a checkpoint, an `.xml` or an `.onnx`.

    Raises:
      UserError: it cannot be read or run, or the options do not fit it.
    """
    if path.suffix.lower() in EXPORTED_SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: does not exist; expected a model")
        return ExportedModel(path, options)
    return CheckpointModel(path, options)


class CheckpointModel:
    """A checkpoint, run by JAX on its default device."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        if options.normalize_images is not None:
            raise _knows_itself(path)
        folder = find_checkpoint(path)
        trained = read_metadata(folder).model
        spec = served_spec(trained, crop_height=options.crop_height)
        self._variables = restore_variables(folder, trained)
        self._device = jax.devices()[0]
        on_cpu = self._device.platform == "cpu"
        self._batch_size = options.batch_size or (BATCH_SIZE_ON_CPU if on_cpu else BATCH_SIZE)
        dtype = _DTYPES[options.precision]
        self.precision = {jnp.float32: "f32", jnp.bfloat16: "bf16"}.get(dtype, "f16")
        self.served = Served(
            class_names=_renamed(path, spec.class_names, options.class_names),
            image_hw=spec.image_hw,
            frame_hw=spec.frame_hw,
            rgb=spec.rgb,
            thresholds=Thresholds(),
        )
        self.digest = _digest_of_weights(trained.to_dict(), self._variables)
        self._folder = folder

        def outputs(variables: Any, images: jax.Array) -> jax.Array:
            return spec.outputs(variables, images, compute_dtype=dtype)

        self._outputs = jax.jit(outputs)

    def batch_size_for(self, count: int | None) -> int:
        """Frames of one call, if there are so many in all."""
        return max(min(self._batch_size, count or self._batch_size), 1)

    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches of one size, in order; one is computed ahead."""
        ahead = None
        for batch in batches:
            started = self._outputs(self._variables, batch)
            if ahead is not None:
                yield np.asarray(ahead)
            ahead = started
        if ahead is not None:
            yield np.asarray(ahead)

    def describe(self) -> str:
        """What runs it, where, and how, in one line."""
        device = f"{self._device.platform} ({self._device.device_kind})"
        return f"{self._folder} by JAX in {self.precision} on {device}"


class ExportedModel:
    """An `.xml` or `.onnx`, ours or of another maker, run by the bridge."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        if path.suffix.lower() == ".onnx" and options.precision != "f32":
            raise UserError(
                f"{path}: ONNX Runtime computes in the precision of the file: for half precision "
                "give the IR (.xml) or the checkpoint"
            )
        # By name: the layers below do not depend on the bridge, which depends on them.
        runtime: Any = importlib.import_module("bridge.runtime")
        self._model = _open_in_precision(runtime, path, options)
        interface = self._model.interface
        _, channels, rows, columns = interface.input_nchw
        said = interface.description
        is_ours = "class_names" in said
        if is_ours and options.normalize_images is not None:
            raise _knows_itself(path)
        if not is_ours:
            _check_told(path, options, interface.output_shape[1] - 5)
        names = tuple(_said(path, said, "class_names")) if is_ours else options.class_names
        whole = None
        if is_ours:
            multiplier = tuple(_said(path, said, "size_multiplier_wh"))
            whole = whole_frame_hw((rows, columns), multiplier)
        self.served = Served(
            class_names=_renamed(path, names, options.class_names),
            image_hw=(rows, columns),
            frame_hw=_frame_of_crop(path, (rows, columns), whole, options.crop_height),
            rgb=channels == 3,
            thresholds=Thresholds(**_said(path, said, "thresholds")) if is_ours else Thresholds(),
        )
        if len(self.served.class_names) != interface.output_shape[1] - 5:
            raise UserError(
                f"{path}: its output has {interface.output_shape[1]} channels, so "
                f"{interface.output_shape[1] - 5} classes, but it names {len(names)}"
            )
        self.precision = self._model.precision
        self.digest = _digest_of_files(path)
        self._path = path

    def batch_size_for(self, count: int | None) -> int:
        """Frames of one call, which is fixed in the file."""
        return self._model.batch_size

    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches of one size, in order."""
        return self._model.stream(batches)

    def describe(self) -> str:
        """What runs it, where, and how, in one line."""
        by = "ONNX Runtime" if self._path.suffix.lower() == ".onnx" else "OpenVINO"
        return f"{self._path} by {by} in {self.precision} on the CPU"


def _open_in_precision(runtime: Any, path: Path, options: ModelOptions) -> Any:
    candidates = ("bf16", "f16") if options.precision == "half" else (options.precision,)
    for precision in candidates:
        try:
            return runtime.open_model(
                path,
                precision=precision,
                frames_in_flight=options.batch_size,
                divide_by_255=bool(options.normalize_images),
            )
        except UserError:
            if precision == candidates[-1]:
                raise
    raise AssertionError("unreachable")


def _knows_itself(path: Path) -> UserError:
    return UserError(
        f"{path}: says itself whether its pixels are divided by 255: leave out --normalize-images "
        "and --no-normalize-images"
    )


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


def _renamed(path: Path, own: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    if given and len(given) != len(own):
        raise UserError(
            f"--class-names has {len(given)} names, {path} has {len(own)} classes: {', '.join(own)}"
        )
    return given or own


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


def _digest_of_weights(description: dict[str, Any], variables: Any) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _digest_of_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in (path, path.with_suffix(".bin")):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
