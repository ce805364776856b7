"""The model of a run, from its config, and where its weights come from."""

import dataclasses
import hashlib

import jax
import numpy as np
import optax

from yogo_jax.checkpoint.run_data import RunData, Say
from yogo_jax.checkpoint.state import TrainState, create_state, start_from
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.config.schema import Config
from yogo_jax.data.records import Records, mean_anchor
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.network import Initialization
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import given_path
from yogo_jax.training.step import Teacher, TrainStep, make_train_step


def prepare_spec(config: Config, train: Records) -> ModelSpec:
    """The model of a run."""
    auto = config.model.anchor == "auto"
    return ModelSpec(
        architecture=config.model.name,
        class_names=train.class_names,
        image_hw=config.data.image_hw,
        anchor_wh=mean_anchor(train) if auto else config.model.anchor_wh(),
        rgb=config.data.rgb,
        normalize_images=config.data.normalize_images,
        apply_orientation=config.data.apply_orientation,
    )


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
        kept = {"head", "upsample"} & params.keys()
        params = {**params, **{name: state.params[name] for name in kept}}
        say(
            f"weights from {folder}; the head is made anew, its classes were "
            f"{', '.join(other.class_names)}"
        )
    if other.anchor_wh != spec.anchor_wh:
        say(f"note: the anchor was {other.anchor_wh}, this run's is {spec.anchor_wh}")
    return jax.device_put(start_from({**variables, "params": params}, tx, averages=averages))


def load_teacher(
    config: Config, spec: ModelSpec, place: jax.sharding.Sharding | None = None
) -> Teacher | None:
    """The network that `train.teacher` names, None if it names none.

    Args:
      config: of the run.
      spec: of the network in training.
      place: where its weights go; the first device of this process if None.

    Raises:
      UserError: it has another grid, other classes or other pixels.
    """
    if not config.train.teacher:
        return None
    folder = find_checkpoint(given_path(config.train.teacher))
    teacher = read_metadata(folder).model
    for field in ("class_names", "image_hw", "rgb", "grid_hw"):
        ours, theirs = getattr(spec, field), getattr(teacher, field)
        if ours != theirs:
            raise UserError(
                f"train.teacher: {folder} has {field} {theirs}, this run {ours}: they must be the "
                "same"
            )
    return Teacher(teacher, restore_variables(folder, teacher, place))


def taught_by(data: RunData, teacher: Teacher | None) -> RunData:
    """The data with a fingerprint that holds the teacher, too: a run goes on with the same one."""
    if teacher is None:
        return data
    both = f"{data.fingerprint}{teacher.fingerprint()}".encode()
    return dataclasses.replace(data, fingerprint=hashlib.sha256(both).hexdigest())


def prepare_loss(config: Config, train: Records) -> LossWeights:
    """The weights of a run's loss.

    Raises:
      UserError: they do not fit the classes of its data.
    """
    counts = np.bincount(train.class_ids, minlength=len(train.class_names))
    return config.loss.for_data(counts.tolist(), len(train))


def prepare_train_step(
    config: Config,
    spec: ModelSpec,
    data: RunData,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    loss: LossWeights,
    teacher: Teacher | None,
    composed_steps: int | None = None,
    rematerialize: bool = False,
) -> TrainStep:
    """The training step of a run, see `make_train_step`."""
    return make_train_step(
        spec,
        tx,
        schedule,
        loss=loss,
        augment=config.augment,
        seed=config.seed,
        compute_dtype=config.model.dtype,
        ema_decay=config.optim.ema_decay,
        composed_steps=composed_steps,
        teacher=teacher,
        imitation=config.loss.imitation,
        thumbnails=data.thumbnails,
        rematerialize=rematerialize,
    )


def lines_of(data: RunData, spec: ModelSpec) -> list[str]:
    """What a run says of its data and its model before it starts."""
    splits = data.splits
    counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "val", "test"))
    rows, columns = spec.grid_hw
    return [
        *data.lines,
        f"images: {counts}; {spec.architecture} on {spec.image_hw[0]}x{spec.image_hw[1]} px, grid "
        f"{rows}x{columns}, anchor {spec.anchor_wh[0]:.4f},{spec.anchor_wh[1]:.4f}, up to "
        f"{data.max_boxes} boxes an image",
    ]
