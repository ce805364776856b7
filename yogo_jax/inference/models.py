"""Models of all kinds behind one interface; checkpoints, which JAX runs.

JAX is imported for a checkpoint only: an `.xml` or `.onnx` (`exported.py`) runs without it.
"""

import abc
import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from yogo_jax.detector.detections import Detections, Thresholds
from yogo_jax.detector.postprocess import detections_of
from yogo_jax.errors import UserError
from yogo_jax.files import given_path
from yogo_jax.inference.frame_sources import FrameError, GivenImages, ImageLike
from yogo_jax.inference.pipeline import Frames, Loaded, Outputs, ServingSpec, run_frames
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    import jax


EXPORTED_SUFFIXES = (".xml", ".onnx")
# On a CPU larger batches are slower, and take memory (docs/inference.md).
BATCH_SIZE, BATCH_SIZE_ON_CPU = 64, 1
_IMAGE_TYPES = (str, os.PathLike, np.ndarray)
PRECISIONS = ("f32", "bf16", "f16", "half")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Wishes of the user for a model; None where there is none.

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


class Model(abc.ABC):
    """A detector that is ready to run, from `yogo_jax.load`.

    Attributes:
      path: where it was loaded from.
      serving: size of its input, crop and classes.
      digest: a hash of everything that its outputs depend on.
      precision: number format of the computation.

    Example:
      >>> model = yogo_jax.load("runs/first")
      >>> model.predict("frame.png").counts()
    """

    path: Path
    serving: ServingSpec
    digest: str
    precision: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their ids."""
        return self.serving.class_names

    @property
    def image_hw(self) -> tuple[int, int]:
        """Rows and columns of what the network sees; `predict` resizes and cuts images to it."""
        return self.serving.image_hw

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that the model asks for, the defaults of `predict`."""
        return self.serving.thresholds

    def __repr__(self) -> str:
        rows, columns = self.image_hw
        return (
            f"{type(self).__name__}({str(self.path)!r}: {rows}x{columns} px, "
            f"{'RGB' if self.serving.rgb else 'gray'}, {self.precision}, "
            f"classes {', '.join(self.class_names)})"
        )

    # A text is a sequence of texts, too: as the first case says, it is one path.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        objectness: float | None = None,
        iou: float | None = None,
        min_class_confidence: float | None = None,
        class_thresholds: Sequence[float] | None = None,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        objectness: float | None = None,
        iou: float | None = None,
        min_class_confidence: float | None = None,
        class_thresholds: Sequence[float] | None = None,
    ) -> list[Detections]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        objectness: float | None = None,
        iou: float | None = None,
        min_class_confidence: float | None = None,
        class_thresholds: Sequence[float] | None = None,
    ) -> Detections | list[Detections]:
        """Finds the objects in one image or in each of a list, as `yogo-jax infer` does.

        Args:
          images: an image or a list of them. An image is the path of a PNG, JPEG, TIFF or BMP file
            of 8 bits a channel, or a uint8 array [rows columns], [rows columns 1] or [rows columns
            3] (RGB) with values from 0 to 255. Gray and RGB become what the network takes. An image
            of another size than `image_hw` is resized, and of a model for a strip the middle rows
            are taken.
          objectness: a box must lie above it, in [0, 1]. None means the model's own threshold, here
            and below (see `thresholds`; usually 0.5, 0.5, 0, and the thresholds of its decision).
          iou: IoU above which the worse of two boxes is dropped, in [0, 1].
          min_class_confidence: probability that the class of a box must exceed, in [0, 1]; 0 is not
            asked.
          class_thresholds: least score (objectness times probability) of each class, in the order
            of `class_names`, by which classes are decided, see `Thresholds`; empty: the most
            probable class of each box, even if the model is decided otherwise.

        Returns:
          `Detections` of the image, best first, or a list of them for a list. Boxes are in pixels
          of the image that was given. The image is kept with them for `draw`.

        Raises:
          UserError: (a ValueError) an image cannot be read or is no image, the list is empty, a
            threshold is out of range, an objectness is given to a model that decides by class
            thresholds, or the network gives values that are no numbers.

        Example:
          >>> found = model.predict("frame.png", objectness=0.6)
          >>> found.boxes_xyxy_px[found.scores > 0.9]
        """
        given: Any = images
        is_one = isinstance(given, _IMAGE_TYPES) or not isinstance(given, Iterable)
        source = GivenImages(
            [given] if is_one else [*given],
            rgb=self.serving.rgb,
            apply_orientation=self.serving.apply_orientation,
        )
        thresholds = self.thresholds.changed(
            self.class_names,
            objectness=objectness,
            iou=iou,
            min_class_confidence=min_class_confidence,
            class_thresholds=class_thresholds,
        )

        def finish(loaded: Loaded, outputs: np.ndarray | None) -> Detections:
            if outputs is None or loaded.frame is None or loaded.view is None:
                raise FrameError(loaded.error)
            return detections_of(
                outputs,
                thresholds,
                class_names=self.class_names,
                image_hw=loaded.frame.shape[:2],
                window_xyxy=loaded.view.window_xyxy,
                image=source.picture(loaded.image_id, loaded.frame),
                name=loaded.name,
            )

        count = len(source)
        # JAX compiles for each size of a batch: lists of all lengths share a few.
        size = self.batch_size_for(1 << (count - 1).bit_length())
        workers = min(os.cpu_count() or 1, count)
        stream = self.stream
        found = list(
            run_frames(
                source, self.serving, stream, finish, start=0, batch_size=size, workers=workers
            )
        )
        return found[0] if is_one else found

    @abc.abstractmethod
    def export(self, folder: str | Path, **options: Any) -> Path:
        """Exports the model to ONNX and OpenVINO IR, and verifies what was written.

        Needs the extra `bridge`. Writes model.onnx, model.xml, model.bin and verification.json.

        Args:
          folder: where to; it is made if it is not there.
          options: see `bridge.to_openvino.export`: `crop_height` (default: as loaded), `image_hw`,
            `batch_size`, `precision`, `target`, `int8`, `max_map_loss`, `opset`, `definition`.

        Returns:
          The path of model.xml, which `yogo_jax.load` takes.

        Raises:
          UserError: an option is out of range, the folder cannot be written, the exported models do
            not compute what the checkpoint does, or the model is no checkpoint.

        Example:
          >>> ir = yogo_jax.load("runs/first").export("exported", crop_height=0.25)
          >>> yogo_jax.load(ir).predict("frame.png")
        """

    @abc.abstractmethod
    def batch_size_for(self, count: int | None) -> int:
        """Frames of one call, if there are so many in all."""

    @abc.abstractmethod
    def stream(self, batches: Iterable[Frames]) -> Iterator[Outputs]:
        """Outputs of batches of one size, in order; the model may be ahead of what was taken."""

    @abc.abstractmethod
    def describe(self) -> str:
        """One line that says what runs the model, where, and in which precision."""


def load(
    path: str | Path,
    crop_height: float | None = None,
    class_names: Sequence[str] = (),
    normalize_images: bool | None = None,
    precision: str = "f32",
    batch_size: int | None = None,
) -> Model:
    """Loads a detector: a network of the package, a run, a checkpoint, or an exported model.

    Exported models need the extra `runtime`, and no JAX. What JAX compiles for a checkpoint is kept
    in the user's cache folder, so that the next start is faster.

    Args:
      path: the name of a network of the package, a run's workdir (its best checkpoint), a
        checkpoint folder, an OpenVINO IR (`.xml`) or an ONNX file.
      crop_height: look at the middle strip only: up to 1 a fraction of the height, above that px.
      class_names: other names of the classes; of a model of another maker, its names.
      normalize_images: whether pixels must be divided by 255 first; only for models of other
        makers, others know it.
      precision: "f32", "bf16", "f16", or "half" (bf16 or f16, whichever the device computes in).
      batch_size: images that are with the network at a time; None is what suits the device.

    Returns:
      The model.

    Raises:
      UserError: (a ValueError) it cannot be read or run, or an option is out of range or does not
        fit it.

    Example:
      >>> model = yogo_jax.load("runs/first")
      >>> found = model.predict("frame.png")
    """
    if isinstance(class_names, str):
        raise UserError(f"class_names must be a list of names, got the text {class_names!r}")
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if crop_height is not None and not 0 < crop_height < float("inf"):
        raise UserError(f"crop_height must be more than 0, got {crop_height:g}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be 1 or more, got {batch_size}")
    options = ModelOptions(
        crop_height=crop_height,
        class_names=tuple(class_names),
        normalize_images=normalize_images,
        batch_size=batch_size,
        precision=precision,
    )
    return load_model(given_path(os.fspath(path)), options)


def load_model(path: Path, options: ModelOptions) -> Model:
    """The model of a path, see `load`.

    Raises:
      UserError: it cannot be read or run, or the options do not fit it.
    """
    if path.suffix.lower() in EXPORTED_SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: does not exist; expected a model")
        from yogo_jax.inference.exported import ExportedModel

        return ExportedModel(path, options)
    if path.is_file() and path.with_suffix(".xml").is_file():
        raise UserError(f"{path}: these are the weights of {path.with_suffix('.xml')}: give that")
    return CheckpointModel(path, options)


def normalization_is_fixed(path: Path) -> UserError:
    """The error on --normalize-images for a model that describes itself."""
    return UserError(
        f"{path}: says itself whether its pixels are divided by 255: leave out --normalize-images "
        "and --no-normalize-images"
    )


def renamed(path: Path, own: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """The model's own class names, or those given instead.

    Raises:
      UserError: they are not as many.
    """
    doubled = sorted({name for name in given if given.count(name) > 1})
    if doubled:
        raise UserError(f"--class-names has {', '.join(doubled)} twice: give each class its own")
    if given and len(given) != len(own):
        raise UserError(
            f"--class-names has {len(given)} names, {path} has {len(own)} classes: {', '.join(own)}"
        )
    return given or own


class CheckpointModel(Model):
    """A checkpoint, run by JAX on its default device."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        start_jax()
        import jax
        import jax.numpy as jnp

        from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
        from yogo_jax.detector.spec import served_spec

        if options.normalize_images is not None:
            raise normalization_is_fixed(path)
        folder = find_checkpoint(path)
        metadata = read_metadata(folder)
        trained = metadata.model
        spec = served_spec(trained, crop_height=options.crop_height)
        self.path = path
        self._folder = folder
        self._crop_height = options.crop_height
        self._variables = restore_variables(folder, trained)
        self._device = jax.devices()[0]
        on_cpu = self._device.platform == "cpu"
        self._batch_size = options.batch_size or (BATCH_SIZE_ON_CPU if on_cpu else BATCH_SIZE)
        self.precision = "bf16" if options.precision == "half" else options.precision
        dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}[self.precision]
        self.serving = ServingSpec(
            class_names=renamed(path, spec.class_names, options.class_names),
            image_hw=spec.image_hw,
            frame_hw=spec.frame_hw,
            rgb=spec.rgb,
            thresholds=metadata.thresholds,
            apply_orientation=spec.apply_orientation,
        )
        digest = hashlib.sha256(json.dumps(trained.to_dict(), sort_keys=True).encode())
        for leaf in jax.tree.leaves(self._variables):
            digest.update(np.asarray(leaf).tobytes())
        self.digest = digest.hexdigest()

        def outputs(variables: Any, images: "jax.Array") -> "jax.Array":
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

    def export(self, folder: str | Path, **options: Any) -> Path:
        """Exports the checkpoint, see `Model.export`."""
        # By name: the layers below do not depend on the bridge, which depends on them.
        exporter: Any = importlib.import_module("bridge.to_openvino")
        if "image_hw" not in options:
            options = {"crop_height": self._crop_height, **options}
        folder = given_path(os.fspath(folder))
        exporter.export(self._folder, folder, **options)
        return folder / "model.xml"

    def describe(self) -> str:
        """One line that says what runs the model, where, and in which precision."""
        device = f"{self._device.platform} ({self._device.device_kind})"
        return f"{self._folder} by JAX in {self.precision} on {device}"
