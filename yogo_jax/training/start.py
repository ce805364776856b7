"""The start of a run: its model, and its state.

A run starts from nothing, from what its workdir holds, or from a given checkpoint.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.run_data import RunData, Say, same_path, with_paths_of
from yogo_jax.checkpoint.store import (
    TrainState,
    committed_checkpoints,
    create_state,
    find_checkpoint,
    read_metadata,
    restore_variables,
    start_from,
)
from yogo_jax.config.fields import differences, flat, with_current_names, with_defaults
from yogo_jax.config.schema import Config
from yogo_jax.data.pipeline import EpochOrder, repeat_factors
from yogo_jax.data.records import Records, mean_anchor
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.network import OUTPUT_LAYERS, Initialization
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import given_path, write_atomically, write_json
from yogo_jax.training.step import Teacher


def prepare_spec(config: Config, train: Records) -> ModelSpec:
    """The model of a run."""
    return ModelSpec(
        architecture=config.model.name,
        class_names=train.class_names,
        image_hw=config.data.image_hw,
        anchor_wh=config.model.anchor_wh() or mean_anchor(train),
        rgb=config.data.rgb,
        normalize_images=config.data.normalize_images,
        apply_orientation=config.data.apply_orientation,
    )


def prepare_loss(config: Config, train: Records) -> LossWeights:
    """The weights of a run's loss.

    Raises:
      UserError: they do not fit the classes of its data.
    """
    counts = np.bincount(train.class_ids, minlength=len(train.class_names))
    return config.loss.for_data(counts.tolist(), len(train))


def training_order(config: Config, train: Records) -> EpochOrder:
    """The order of a run's training images, with those of rare classes more often if asked."""
    threshold = config.data.repeat_threshold
    return EpochOrder(
        num_records=len(train),
        batch_size=config.train.batch_size,
        seed=config.seed,
        repeat_factors=repeat_factors(train, threshold) if threshold else (),
    )


def load_teacher(
    config: Config, spec: ModelSpec, data: RunData, place: jax.sharding.Sharding
) -> tuple[Teacher | None, RunData]:
    """The network that `train.teacher` names, None if it names none.

    Returns:
      The teacher, with its weights at a place, and the data with a fingerprint that holds it, too:
      a run goes on with the same one.

    Raises:
      UserError: it has another grid, other classes or other pixels.
    """
    if not config.train.teacher:
        return None, data
    folder = find_checkpoint(given_path(config.train.teacher))
    described = read_metadata(folder).model
    for field in ("class_names", "image_hw", "rgb", "grid_hw"):
        ours, theirs = getattr(spec, field), getattr(described, field)
        if ours != theirs:
            raise UserError(
                f"train.teacher: {folder} has {field} {theirs}, this run {ours}: they must be the "
                "same"
            )
    teacher = Teacher(described, restore_variables(folder, described, place))
    # All that its predictions follow from.
    digest = hashlib.sha256(repr(described).encode())
    for leaf in jax.tree.leaves(teacher.variables):
        digest.update(np.asarray(leaf).tobytes())
    both = f"{data.fingerprint}{digest.hexdigest()}".encode()
    return teacher, dataclasses.replace(data, fingerprint=hashlib.sha256(both).hexdigest())


def run_summary(data: RunData, spec: ModelSpec) -> list[str]:
    """Lines on the data and the model of a run, before it starts."""
    splits = data.splits
    counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "val", "test"))
    rows, columns = spec.grid_hw
    return [
        *data.lines,
        f"images: {counts}; {spec.architecture} on {spec.image_hw[0]}x{spec.image_hw[1]} px, grid "
        f"{rows}x{columns}, anchor {spec.anchor_wh[0]:.4f},{spec.anchor_wh[1]:.4f}, up to "
        f"{data.max_boxes} boxes an image",
    ]


# ---- where to start ----

# What may change when a run goes on: it alters where work is done or how often it is saved, not
# what is computed. All of `track` may, too.
MAY_CHANGE = {
    *("data.workers", "data.cache", "train.resume", "train.checkpoint_every_minutes"),
    *("train.eval_every_epochs", "train.max_hours", "train.patience", "train.decision"),
    # The fingerprint holds the data, wherever it lies, and how it is turned.
    *("data.definition", "data.apply_orientation"),
}


def result_relevant_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config, by their dotted names, that what is computed follows from."""
    return {
        name: value
        for name, value in flat(values).items()
        if name not in MAY_CHANGE and name.split(".")[0] != "track"
    }


class Start(NamedTuple):
    """The checkpoint that a run goes on from; `own` if it lies in the run's workdir already."""

    folder: Path
    metadata: Metadata
    own: bool


def find_start(
    config: Config, workdir: Path, data_fingerprint: str, hint_if_changed: str = ""
) -> Start | None:
    """The checkpoint to go on from, None for a run that starts from nothing.

    Args:
      hint_if_changed: ends the message on other data.

    Raises:
      UserError: the workdir is in use and `train.resume` does not allow that, or what it would
        continue has another config or other data.
    """
    resume = config.train.resume
    own = committed_checkpoints(workdir / "checkpoints")
    if resume == "never":
        if own or (workdir / "config.json").exists():
            raise UserError(
                f"{workdir} holds a run already and train.resume is 'never': choose another "
                "--workdir, or continue it with --config.train.resume=auto"
            )
        return None
    if own:
        try:
            recorded = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
            began_from = recorded["train"]["resume"]
        except (OSError, ValueError, KeyError):
            began_from = ""
        if resume != "auto" and not same_path(began_from, resume):
            raise UserError(
                f"{workdir} holds checkpoints of its own, so train.resume={resume} would pass "
                "them over: choose another --workdir, or --config.train.resume=auto"
            )
        folder = own[-1]
    elif resume == "auto":
        _check_unsaved_run(config, workdir)
        return None
    else:
        given = given_path(resume)
        # A run is continued where it stopped, not where it was best.
        runs = committed_checkpoints(given / "checkpoints")
        folder = runs[-1] if runs else find_checkpoint(given)
    metadata = read_metadata(folder)
    _check_same(config, metadata, data_fingerprint, folder, hint_if_changed)
    return Start(folder, metadata, own=bool(own))


def adopt(start: Start, workdir: Path) -> None:
    """Takes another run's progress over into the workdir, which then stands on its own.

    Where the checkpoint lies in a run's workdir, its best goes along, and its metrics.
    """
    folders = [start.folder]
    if start.folder.parent.name == "checkpoints":
        other = start.folder.parent.parent
        best = find_checkpoint(other)
        if read_metadata(best).step < start.metadata.step:
            folders.append(best)
        metrics = other / "metrics.jsonl"
        if metrics.exists():
            write_atomically(workdir / "metrics.jsonl", metrics.read_text(encoding="utf-8"))
    for folder in folders:
        place = workdir / "checkpoints" / str(read_metadata(folder).step)
        # Renamed when complete: a kill must not leave half a checkpoint under a valid name.
        unfinished = place.with_name(f".{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        unfinished.rename(place)


def initial_state(
    config: Config, spec: ModelSpec, tx: optax.GradientTransformation, say: Say
) -> TrainState:
    """The state at step 0: drawn, or with the weights of `train.from_pretrained`.

    If the classes differ the head is made anew and the rest is taken over.

    Raises:
      UserError: the other model has another architecture or other pixels.
    """
    averages = config.optim.ema_decay > 0
    state = create_state(
        spec,
        tx,
        seed=config.seed,
        initialization=Initialization(
            kernel_init=config.model.kernel_init, objectness_prior=config.model.objectness_prior
        ),
        averages=averages,
    )
    if not config.train.from_pretrained:
        return state
    folder = find_checkpoint(given_path(config.train.from_pretrained))
    other = read_metadata(folder).model
    for field in ("architecture", "rgb", "normalize_images"):
        ours, theirs = getattr(spec, field), getattr(other, field)
        if ours != theirs:
            name = {"architecture": "model.name"}.get(field, f"data.{field}")
            raise UserError(
                f"train.from_pretrained: {folder} has {field} {theirs!r}, this run {ours!r}: set "
                f"--config.{name}={theirs}"
            )
    variables = restore_variables(folder, other)
    params = variables["params"]
    if other.class_names == spec.class_names:
        say(f"weights from {folder}")
    else:
        kept = OUTPUT_LAYERS & params.keys()
        params = {**params, **{name: state.params[name] for name in kept}}
        say(
            f"weights from {folder}; the head is made anew, its classes were "
            f"{', '.join(other.class_names)}"
        )
    if other.anchor_wh != spec.anchor_wh:
        say(f"note: the anchor was {other.anchor_wh}, this run's is {spec.anchor_wh}")
    return jax.device_put(start_from({**variables, "params": params}, tx, averages=averages))


def _check_unsaved_run(config: Config, workdir: Path) -> None:
    """Refuses to start over a run that has logged steps but saved none yet."""
    path = workdir / "config.json"
    steps = (each for each in read_metrics(workdir / "metrics.jsonl") if each["kind"] == "train")
    if not path.exists() or next(steps, None) is None:
        # Refused or stopped before its first step, as by too little memory: nothing is lost.
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); choose another --workdir") from error
    different = _different(recorded, config)
    if different:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(different)}) that has no "
            "checkpoint yet: delete it, or choose another --workdir"
        )


def _different(recorded: Mapping[str, Any], config: Config) -> list[str]:
    """Fields that must agree and do not; none if a run only becomes longer that may."""
    now = config.to_dict()
    theirs = result_relevant_fields(
        with_paths_of(now, with_defaults(Config, with_current_names(recorded)))
    )
    ours = result_relevant_fields(now)
    different, before = differences(theirs, ours), theirs["train.epochs"]
    longer = _is_length_alone(different) and config.train.epochs > before
    return [] if longer and not why_length_counts(config, before) else different


def _is_length_alone(different: list[str]) -> bool:
    return len(different) == 1 and different[0].startswith("config.train.epochs:")


def why_length_counts(config: Config, epochs: int) -> list[str]:
    """Reasons why so many epochs are others in a longer run; none if they are the same."""
    optim, augment = config.optim, config.augment
    reasons = []
    if optim.lr_decay_factor != 1:
        reasons.append(
            "the learning rate falls along a cosine over all epochs (optim.lr_decay_factor is "
            f"{optim.lr_decay_factor:g}, not 1)"
        )
    # It ends a step before the end at the latest.
    if optim.warmup_epochs > epochs - 1:
        reasons.append(f"the warm-up takes {optim.warmup_epochs:g} epochs (optim.warmup_epochs)")
    pastes = augment.cutout or augment.thumbnails or augment.rare_cells
    if augment.epochs_without_paste and pastes:
        reasons.append(
            f"the last {augment.epochs_without_paste} epochs have other images "
            "(augment.epochs_without_paste)"
        )
    return reasons


def _other_length(config: Config, before: int, folder: Path) -> str:
    """A refusal for somebody who wants another number of epochs."""
    alone = folder.parent.name != "checkpoints"
    workdir = folder if alone else folder.parent.parent
    reasons = why_length_counts(config, before)
    if config.train.epochs < before:
        reasons = ["a run can become longer, and no shorter"]
    return (
        f"{folder} is of a run with train.epochs={before} and does not go on with "
        f"{config.train.epochs}: {'; '.join(reasons)}. Give --config.train.epochs={before} to "
        f"continue it. {_train_further(workdir)}. For one run with "
        f"train.epochs={config.train.epochs} choose another --workdir"
    )


def _train_further(workdir: Path) -> str:
    """The way to train longer that every run has."""
    return (
        "To train further from its weights, start another run: "
        f"--config.train.from_pretrained={workdir} --workdir NEW"
    )


def complete_run_summary(config: Config, workdir: Path, epochs: int, *, tested: bool) -> list[str]:
    """Lines for a run in which nothing is left to do.

    Args:
      epochs: that it has made; fewer than its config says if its patience was at its end.
      tested: whether it has a test split.
    """
    made = f"{epochs} epoch{'' if epochs == 1 else 's'}"
    longer = []
    if epochs < config.train.epochs:
        made = f"stopped early after {made} of {config.train.epochs}"
        longer = [f"a --config.train.patience above {config.train.patience} continues this one"]
    elif not why_length_counts(config, epochs):
        longer = [f"a --config.train.epochs above {epochs} continues this one"]
    test = f"tested; report: {workdir / 'test' / 'report.html'}" if tested else "no test split"
    return [
        f"{workdir} is complete: {made}, {test}",
        "; or ".join([_train_further(workdir), *longer]),
    ]


def record_config(config: Config, workdir: Path) -> None:
    """Writes `config.json`."""
    write_json(workdir / "config.json", config.to_dict())


def _check_same(
    config: Config, metadata: Metadata, data_fingerprint: str, folder: Path, hint_if_changed: str
) -> None:
    if not metadata.config:
        raise UserError(
            f"{folder} holds weights only, there is no run to continue: use "
            f"--config.train.from_pretrained={folder}"
        )
    different = _different(metadata.config, config)
    if _is_length_alone(different):
        raise UserError(_other_length(config, metadata.config["train"]["epochs"], folder))
    if different:
        raise UserError(
            f"{folder} was trained with another config ({'; '.join(different)}): give the same "
            "values to continue it, or choose another --workdir"
        )
    if metadata.data_fingerprint != data_fingerprint:
        raise UserError(
            f"{folder} was trained on other data: images, labels or thumbnails of "
            f"{config.data.definition}, or train.teacher, have changed since, or images with an "
            "orientation are turned (data.apply_orientation), which runs of earlier versions did "
            f"not do. Restore them to continue it, or choose another --workdir{hint_if_changed}"
        )
