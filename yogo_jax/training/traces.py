"""The traced training step, kept between processes.

Python takes longer to trace and to lower the step than JAX to find it compiled before. What comes
out of it follows from sources, libraries, settings and shapes alone, so that the next start with
the same of each can read it (docs/performance.md).
"""

import hashlib
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
from jax import export

from yogo_jax.cache import cache_folder
from yogo_jax.detector.losses import LossTerms
from yogo_jax.output.files import write_atomically
from yogo_jax.sources import source_digest
from yogo_jax.training.feed import Steps
from yogo_jax.training.run_data import Say
from yogo_jax.training.state import TrainState
from yogo_jax.training.step import StepMetrics


# Whose functions a trace goes through, besides our own.
_LIBRARIES = (jax, jaxlib, flax, optax, np)
# Settings of JAX for those who look for a mistake operation by operation.
_DEBUGGING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
_DIGEST_BYTES = hashlib.sha256().digest_size

for _tuple in (StepMetrics, LossTerms):
    export.register_namedtuple_serialization(_tuple, serialized_name=f"yogo_jax.{_tuple.__name__}")


def keep_trace(function: Steps, sources: str, made_of: object, say: Say) -> Steps:
    """The same function, traced only where its trace does not lie in the user's cache folder.

    A file that is not whole is made anew. Nothing is read or kept if the sources have changed since
    they were imported, or where JAX is set to look for a mistake.

    Args:
      function: pure, for one device.
      sources: `source_digest` before they were imported.
      made_of: all that the function takes from around it; its `repr` tells functions apart.
      say: told if nothing can be kept.
    """

    def kept(state: TrainState, inputs: Any) -> tuple[TrainState, StepMetrics]:
        if any(getattr(jax.config, name) for name in _DEBUGGING):
            return function(state, inputs)
        if source_digest() != sources:
            say("note: sources changed since this start: its traced step is not kept")
            return function(state, inputs)
        leaves, structure = jax.tree.flatten(state)

        # The classes of an optimizer's state cannot be written.
        def of_leaves(leaves: list[Any], inputs: Any) -> tuple[list[Any], StepMetrics]:
            state, metrics = function(jax.tree.unflatten(structure, leaves), inputs)
            return jax.tree.leaves(state), metrics

        shapes = jax.tree.map(_shape, (leaves, inputs))
        try:
            path = cache_folder() / "traces" / _key(sources, made_of, structure, shapes)
            exported = _read(path)
            if exported is None:
                exported = export.export(jax.jit(of_leaves))(*shapes)
                _write(path, exported, say)
        # No home for a cache, no module to write with, an operation that JAX does not write.
        except (RuntimeError, ImportError, ValueError) as error:
            say(f"note: the traced step is not kept: {error}")
            return function(state, inputs)
        leaves, metrics = exported.call(leaves, inputs)
        return jax.tree.unflatten(structure, leaves), metrics

    return kept


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _key(*made_of: object) -> str:
    """SHA-256 (hex) of all that a trace follows from."""
    versions = [each.__version__ for each in _LIBRARIES]
    options = [name for name in dir(flax.config) if name.startswith("flax_")]
    about = (
        platform.python_version(),
        versions,
        sorted(jax.config.values.items()),
        [(name, getattr(flax.config, name)) for name in options],
        export.default_export_platform(),
        *made_of,
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()


def _read(path: Path) -> export.Exported | None:
    """What was written; None if there is nothing, or not all of it."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, trace = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(trace).digest() != digest:
        return None
    return export.deserialize(bytearray(trace))


def _write(path: Path, exported: export.Exported, say: Say) -> None:
    trace = bytes(exported.serialize())
    try:
        write_atomically(path, hashlib.sha256(trace).digest() + trace)
    except OSError as error:
        say(
            f"note: the traced step cannot be kept in {path.parent} ({error.strerror}); the next "
            "start traces it again. YOGO_JAX_CACHE moves the folder"
        )
