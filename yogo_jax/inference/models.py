"""Models of all kinds behind one interface: checkpoints here, exported ones by the bridge."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.detector.found import Thresholds
from yogo_jax.detector.spec import served_spec
from yogo_jax.errors import UserError
from yogo_jax.inference.exported import ExportedModel
from yogo_jax.inference.serving import Frames, ModelOptions, Outputs, Served, knows_itself, renamed


EXPORTED_SUFFIXES = (".xml", ".onnx")
# On a CPU larger batches are slower, and take memory (docs/inference.md).
BATCH_SIZE, BATCH_SIZE_ON_CPU = 64, 1
_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16, "half": jnp.bfloat16}


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
    if path.is_file() and path.with_suffix(".xml").is_file():
        raise UserError(f"{path}: these are the weights of {path.with_suffix('.xml')}: give that")
    return CheckpointModel(path, options)


class CheckpointModel:
    """A checkpoint, run by JAX on its default device."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        if options.normalize_images is not None:
            raise knows_itself(path)
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
            class_names=renamed(path, spec.class_names, options.class_names),
            image_hw=spec.image_hw,
            frame_hw=spec.frame_hw,
            rgb=spec.rgb,
            thresholds=Thresholds(),
            apply_orientation=spec.apply_orientation,
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


def _digest_of_weights(description: dict[str, Any], variables: Any) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
