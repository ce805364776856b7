"""The state of a run, and its checkpoints, which Orbax writes in the background.

Only what is committed is read. A run keeps the latest checkpoint and the best by validation
(`train.keep_best`). A checkpoint is a folder with the items `model` (params and batch_stats: their
averages, if the run keeps any), `optimizer` (its state, the step, and what the averages are made
of) and `metadata`. A network of the package is one file instead (`ready.py`), which is read as a
checkpoint, but never written.
"""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.metrics_file import lower_is_better, rank
from yogo_jax.checkpoint.ready import (
    is_packed,
    ready_network,
    ready_networks,
    unpack_network,
)
from yogo_jax.detector.network import ORIGINAL_INITIALIZATION, Initialization, init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import write_json


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. No key is in it: randomness is a function of (seed, step).

    `step` is a whole number. `averaged` holds moving averages of `params` and `batch_stats`, or
    None where none are kept. While JAX traces and lowers, the leaves are no arrays.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    averaged: Any = None

    @property
    def trained(self) -> dict[str, Any]:
        """The variables that the steps go on from."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that are evaluated and exported: the averages if there are any."""
        return self.trained if self.averaged is None else self.averaged


def moving_average(averaged: Any, latest: Any, step: jax.Array, *, decay: float) -> Any:
    """The averages after one more step; while they are young they forget faster.

    Of the old, `min(decay, (1 + step) / (10 + step))` remains; the first step is number 0.

    References:
      Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, averaged, latest)


def create_state(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    initialization: Initialization = ORIGINAL_INITIALIZATION,
    averages: bool = False,
) -> TrainState:
    """A fresh state at step 0; the seed alone decides its weights.

    Args:
      initialization: how weights are drawn.
      averages: whether moving averages are kept.
    """

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        variables = init_variables(
            spec.network(initialization=initialization),
            key,
            image_hw=spec.image_hw,
            channels=spec.channels,
        )
        return start_from(variables, tx, averages=averages)

    return create(jax.random.key(seed))


def start_from(
    variables: Any, tx: optax.GradientTransformation, *, averages: bool = False
) -> TrainState:
    """The state at step 0 with given `params` and `batch_stats`."""
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=tx.init(variables["params"]),
        # A copy: the step that takes the state may write into either.
        averaged=jax.tree.map(jnp.array, variables) if averages else None,
    )


# ---- writing ----

# Orbax renames a superseded checkpoint into this folder, which is then emptied: a kill in the
# middle of a deletion must not leave half a checkpoint under a name that counts as committed.
_SUPERSEDED = ".superseded"


class CheckpointStore:
    """The `checkpoints/` folder of a run that is being written.

    Use as a context manager: leaving it waits until what was saved is committed.

    Args:
      keep_best: the metric by which one of them is kept, see `metrics_file.py`.
    """

    def __init__(self, folder: Path, keep_best: str = "loss") -> None:
        self._folder = folder.absolute()
        self._keep_best = keep_best
        self._empty_superseded()
        best = checkpoint_managers.BestN(
            # Orbax ranks ascending and keeps the end of the list: reversed, the least rank.
            get_metric_fn=_recorded_rank,
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(1), best])
        options = ocp.CheckpointManagerOptions(
            best_fn=_recorded_rank,
            best_mode="min",
            preservation_policy=keep,
            todelete_subdir=_SUPERSEDED,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        if failed and jax.process_count() > 1:
            # A commit takes all processes, and this one leaves: the others would wait for nothing.
            return
        self.wait()
        self._manager.close()

    def save(self, state: TrainState, metadata: Metadata) -> None:
        """Starts to write a checkpoint; returns once the arrays are safe from later changes."""
        self.wait()
        validation = metadata.validation
        metrics = validation and _ranked_by(validation, self._keep_best, metadata.step)
        self._manager.save(
            metadata.step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(state.variables),
                optimizer=ocp.args.StandardSave(_beside_the_model(state)),
                metadata=ocp.args.JsonSave(metadata.to_dict()),
            ),
            metrics=metrics,
        )

    @property
    def best_step(self) -> int | None:
        """The step of the best validated checkpoint, None if there is none."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Returns when everything saved is committed."""
        self._manager.wait_until_finished()
        self._empty_superseded()

    def _empty_superseded(self) -> None:
        if jax.process_index() > 0:
            return
        shutil.rmtree(self._folder / _SUPERSEDED, ignore_errors=True)


def _ranked_by(validation: Mapping[str, Any], keep_best: str, step: int) -> dict[str, float]:
    """The numbers beside a checkpoint by which Orbax ranks it; the names belong to the format."""
    demerit = lower_is_better(validation, keep_best)
    return {"loss": validation["loss"], "demerit": demerit, "step": step}


def _recorded_rank(recorded: Mapping[str, float]) -> tuple[float, float]:
    """The rank from what `_ranked_by` gave."""
    # Checkpoints from before there was a choice have the loss alone.
    return recorded.get("demerit", recorded["loss"]), recorded.get("step", 0)


def record_validation(folder: Path, metadata: Metadata) -> None:
    """Adds the validation to a checkpoint that was saved before it was over.

    A kill in the middle leaves a checkpoint without validation, for which this is done again. All
    processes of a run call it, and the first one writes.

    Args:
      folder: of the checkpoint, in a `checkpoints/` folder that no store has open.
      metadata: its own, with the validation.
    """
    assert metadata.validation is not None
    item = folder.absolute() / ocp.checkpoint_manager.METRIC_ITEM_NAME
    # For the choice of the best, in the form in which a store writes it.
    handler = ocp.JsonCheckpointHandler(filename=item.name)
    with ocp.Checkpointer(handler) as checkpointer:
        ranked = _ranked_by(metadata.validation, metadata.keep_best, metadata.step)
        checkpointer.save(item, args=ocp.args.JsonSave(ranked), force=True)
    if jax.process_index() == 0:
        rewrite_metadata(folder, metadata)


def rewrite_metadata(folder: Path, metadata: Metadata) -> None:
    """Says other things of the same weights.

    Raises:
      UserError: the place is not writable.
    """
    try:
        write_json(folder / "metadata" / "metadata", metadata.to_dict())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _beside_the_model(state: TrainState) -> dict[str, Any]:
    """The parts of a state beside the variables that are evaluated."""
    parts = {"opt_state": state.opt_state, "step": state.step}
    return parts if state.averaged is None else {**parts, "trained": state.trained}


def write_weights(folder: Path, variables: Mapping[str, Any], metadata: Metadata) -> None:
    """One checkpoint without the state of an optimizer, for weights that come from elsewhere.

    Raises:
      UserError: the place is not writable.
    """
    args = ocp.args.Composite(
        model=ocp.args.StandardSave(dict(variables)),
        metadata=ocp.args.JsonSave(metadata.to_dict()),
    )
    try:
        # Orbax writes beside the folder and renames when it is whole.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute(), args=args)
    except (OSError, ValueError) as error:  # a full disk is a ValueError of its storage library
        for unfinished in folder.absolute().parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"{folder}: cannot be written ({error})") from error


# ---- reading ----


def committed_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the `checkpoints/` folder of a run, in order of their steps."""
    if not folder.is_dir():
        return []
    steps = ocp.utils.checkpoint_steps(folder.absolute())
    return [folder / str(step) for step in sorted(steps)]


def read_metadata(folder: Path) -> Metadata:
    """The metadata of one checkpoint.

    Raises:
      UserError: the folder is no checkpoint, or of another format version.
    """
    if is_packed(folder):
        return unpack_network(folder)[1]
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    return Metadata.from_dict(_restore(folder, args)["metadata"], folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: a folder itself, or the best one of a run's workdir.

    The best is that of the run's `train.keep_best`, by validation; a run that never validated has
    its latest instead. The name of a network of the package means its file.

    Raises:
      UserError: neither a checkpoint nor a workdir that holds one, nor such a name.
    """
    if (network := ready_network(str(path))) is not None:
        return network
    if (path / "metadata").is_dir():
        return path
    candidates = committed_checkpoints(path / "checkpoints")
    if not candidates:
        found = "neither" if path.is_dir() else "a file" if path.exists() else "no such folder"
        raise UserError(
            f"{path}: expected a run's workdir with checkpoints/, one checkpoint folder, or a "
            f"network of the package ({', '.join(ready_networks())}), found {found}"
        )
    validated = [
        (rank(metadata.validation, metadata.keep_best, metadata.step), folder)
        for folder in candidates
        if (metadata := read_metadata(folder)).validation is not None
    ]
    return min(validated)[1] if validated else candidates[-1]


def restore_variables(
    folder: Path, spec: ModelSpec, place: jax.sharding.Sharding | None = None
) -> dict[str, Any]:
    """`params` and `batch_stats` of one checkpoint, from whatever devices it was written.

    Args:
      place: where to; the first device of this process if None.

    Raises:
      UserError: it cannot be read, or its weights do not fit its description.
    """
    abstract = _placed(_abstract_variables(spec), place)
    if is_packed(folder):
        weights = unpack_network(folder)[0]
        return jax.tree.map(lambda at, leaf: jax.device_put(leaf, at.sharding), abstract, weights)
    return _restore(folder, ocp.args.Composite(model=ocp.args.StandardRestore(abstract)))["model"]


def restore_state(
    folder: Path,
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    place: jax.sharding.Sharding | None = None,
    *,
    averages: bool = False,
) -> TrainState:
    """The whole state of a run from one of its checkpoints, bit for bit.

    Args:
      place: where to; the first device of this process if None.
      averages: whether the run keeps moving averages of its weights.

    Raises:
      UserError: it cannot be read, or does not fit the model or the optimizer.
    """
    variables = _abstract_variables(spec)
    optimizer = jax.eval_shape(
        lambda given: _beside_the_model(start_from(given, tx, averages=averages)), variables
    )
    args = ocp.args.Composite(
        model=ocp.args.StandardRestore(_placed(variables, place)),
        optimizer=ocp.args.StandardRestore(_placed(optimizer, place)),
    )
    restored = _restore(folder, args)
    beside, model = restored["optimizer"], restored["model"]
    trained = beside["trained"] if averages else model
    return TrainState(
        step=beside["step"],
        params=trained["params"],
        batch_stats=trained["batch_stats"],
        opt_state=beside["opt_state"],
        averaged=model if averages else None,
    )


def _abstract_variables(spec: ModelSpec) -> dict[str, Any]:
    draw = functools.partial(
        init_variables, spec.network(), image_hw=spec.image_hw, channels=spec.channels
    )
    return jax.eval_shape(draw, jax.random.key(0))


def _placed(abstract: Any, place: jax.sharding.Sharding | None) -> Any:
    """Shapes with a place, so that nothing hangs on the devices of the writer."""
    if place is None:
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )


def _restore(folder: Path, args: ocp.args.Composite) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(folder.absolute(), args=args)
        except Exception as error:
            # Damaged files come as errors of many kinds, from three libraries.
            raise UserError(f"{folder}: cannot be read as a checkpoint ({error})") from error
