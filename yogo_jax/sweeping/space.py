"""The search space of a sweep: the fields that trials choose, read from a config and checked."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from yogo_jax.config.schema import SYNTHETIC, Config, from_mapping
from yogo_jax.config.validation import build, checked, hint_for
from yogo_jax.errors import UserError


Kind = Literal["uniform", "log", "int", "choice"]
KINDS = typing.get_args(Kind)
# Metrics of a validation that can be the objective, and whether a higher value is better.
OBJECTIVES = {"mAP50": True, "mAP50_95": True, "loss": False}
_OTHER_IMAGES = "its trials would be judged on different images or boxes"
_SAME_RESULT = "it does not change what is learned"
# Fields that no trial may choose, and the reason.
FIXED = {
    "data.definition": _OTHER_IMAGES,
    "data.split_override": _OTHER_IMAGES,
    "data.min_box_area": _OTHER_IMAGES,
    "data.on_bad_label": _OTHER_IMAGES,
    "data.workers": _SAME_RESULT,
    "train.checkpoint_every_minutes": _SAME_RESULT,
    "train.resume": "a trial continues what its own workdir holds",
    "track": _SAME_RESULT,
}


def _require(ok: bool, field: str, expected: str, found: object) -> None:
    if not ok:
        raise UserError(f"config.sweep.{field} must be {expected}, got {found!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunerConfig:
    """Settings of the pruner, which ends bad trials early; `configs/sweep.py` explains them."""

    name: str
    startup_trials: int
    warmup_epochs: int

    def __post_init__(self) -> None:
        _require(self.name in ("median", "none"), "pruner.name", "'median' or 'none'", self.name)
        _require(
            self.startup_trials >= 1, "pruner.startup_trials", "1 or more", self.startup_trials
        )
        _require(self.warmup_epochs >= 0, "pruner.warmup_epochs", "0 or more", self.warmup_epochs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of the search beside its space; `configs/sweep.py` explains them."""

    trials: int
    objective: str
    random_trials: int
    seed: int
    pruner: PrunerConfig

    def __post_init__(self) -> None:
        _require(self.trials >= 1, "trials", "1 or more", self.trials)
        names = ", ".join(OBJECTIVES)
        _require(self.objective in OBJECTIVES, "objective", f"one of {names}", self.objective)
        _require(self.random_trials >= 1, "random_trials", "1 or more", self.random_trials)
        _require(0 <= self.seed < 2**32, "seed", "in [0, 2^32)", self.seed)

    @property
    def maximize(self) -> bool:
        """True if a higher objective is better."""
        return OBJECTIVES[self.objective]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field that trials choose.

    Attributes:
      field: dotted name of a field of the config.
      kind: kind of the range: fractions (uniform), by the logarithm (log), whole numbers (int), or
        a list (choice).
      values: the two ends of the range, or the list.
    """

    field: str
    kind: Kind
    values: tuple[Any, ...]

    @property
    def texts(self) -> dict[str, Any]:
        """Values of a choice by the text under which they are stored and shown."""
        return {as_text(value): value for value in self.values}


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A checked search.

    Attributes:
      settings: settings of the search.
      parameters: fields that trials choose, in the order of the config.
      base: nested values of a config; all trials share the fields that are no parameters.
    """

    settings: SweepConfig
    parameters: tuple[Parameter, ...]
    base: Mapping[str, Any]

    def config_of(self, chosen: Mapping[str, Any]) -> Config:
        """Returns the config of a trial.

        Args:
          chosen: a value for the field of each parameter; for a choice, its text.
        """
        fields = {
            each.field: each.texts[chosen[each.field]]
            if each.kind == "choice"
            else chosen[each.field]
            for each in self.parameters
        }
        return from_mapping(with_fields(self.base, fields))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values of the whole search for JSON; `study.read_study` reads them."""
        space = {each.field: {each.kind: list(each.values)} for each in self.parameters}
        return {"config": self.base, "settings": dataclasses.asdict(self.settings), "space": space}


def as_text(value: Any) -> str:
    """Writes a value exactly, as in `--config.FIELD=VALUE`."""
    if isinstance(value, tuple | list):
        return ",".join(map(as_text, value))
    return str(value)


def with_fields(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested values in which some fields, by dotted name, have new values."""
    values: dict[str, Any] = {
        name: dict(group) if isinstance(group, Mapping) else group for name, group in base.items()
    }
    for field, value in fields.items():
        group, _, name = field.rpartition(".")
        if group:
            values[group][name] = value
        else:
            values[name] = value
    return values


def position(parameter: Parameter, value: Any) -> float:
    """Returns the place of a value between the ends of its range, in [0, 1]; choices by order."""
    if parameter.kind == "choice":
        return list(parameter.texts).index(value) / (len(parameter.values) - 1)
    low, high = parameter.values
    if parameter.kind == "log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def read_space(values: Mapping[str, Any]) -> SearchSpace:
    """Reads and checks the search that a config describes.

    Args:
      values: nested plain values of the config, with the group `sweep`.

    Raises:
      UserError: a field is unknown, cannot be swept, or may take a value that no run accepts; it is
        named.
    """
    base = {name: group for name, group in values.items() if name != "sweep"}
    config = from_mapping(base)
    group = values.get("sweep")
    if not isinstance(group, Mapping) or not isinstance(group.get("space"), Mapping):
        raise UserError(
            "this config has no search space: expected config.sweep.space as in configs/sweep.py"
        )
    settings: SweepConfig = build(
        SweepConfig, {name: each for name, each in group.items() if name != "space"}, "config.sweep"
    )
    parameters = tuple(
        _parameter(field, spec) for field, spec in _leaves(group["space"], "config.sweep.space")
    )
    if not parameters:
        raise UserError("config.sweep.space is empty: name at least one field to vary")
    space = SearchSpace(settings, parameters, config.to_dict())
    _check_rules(space, config)
    _check_extremes(space)
    return space


def _leaves(group: Mapping[str, Any], path: str, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names of the fields below a group, each with its range."""
    known = kinds_of_fields()
    groups = {name.rpartition(".")[0] for name in known if "." in name}
    found = []
    for name, value in group.items():
        field = prefix + name
        if field in known:
            found.append((field, value))
        elif field not in groups:
            hint = hint_for(field, sorted(known.keys() if prefix else known.keys() | groups))
            raise UserError(f"{path}.{field} is not a field of a config; {hint}")
        elif isinstance(value, Mapping):
            found += _leaves(value, path, f"{field}.")
        else:
            raise UserError(f"{path}.{field} must be a group of fields, got {value!r}")
    return found


def kinds_of_fields(kind: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Types of the fields of a config by dotted name, without groups."""
    types: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        if dataclasses.is_dataclass(field.type):
            types |= kinds_of_fields(field.type, f"{name}.")
        else:
            types[name] = field.type
    return types


def _parameter(field: str, spec: Any) -> Parameter:
    path = f"config.sweep.space.{field}"
    reason = FIXED.get(field) or FIXED.get(field.split(".")[0])
    if reason:
        raise UserError(f"{path}: this field cannot be swept, {reason}")
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise UserError(f"{path} must be one of {{{' or '.join(KINDS)}: (…)}}, got {spec!r}")
    ((kind, values),) = spec.items()
    if kind not in KINDS:
        hint = hint_for(str(kind), KINDS)
        raise UserError(f"{path}: {kind!r} is no kind of range; {hint}")
    if not isinstance(values, tuple | list):
        raise UserError(f"{path}.{kind} must be values in parentheses, got {values!r}")
    kind_of_field = kinds_of_fields()[field]
    options = tuple(checked(each, kind_of_field, f"{path}.{kind}") for each in values)
    if kind == "choice":
        if len(set(options)) < len(options) or len(options) < 2:
            raise UserError(f"{path}.choice must be two different values or more, got {values!r}")
    else:
        _check_range(path, kind, options, kind_of_field)
    return Parameter(field, kind, options)


def _check_range(path: str, kind: str, ends: tuple[Any, ...], kind_of_field: Any) -> None:
    fitting = {float: ("uniform", "log"), int: ("int", "log")}.get(kind_of_field, ())
    if kind not in fitting:
        better = " or ".join(map(repr, (*fitting, "choice")))
        raise UserError(f"{path}: {kind!r} does not fit this field; use {better}")
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise UserError(f"{path}.{kind} must be (LOW, HIGH) with LOW below HIGH, got {ends!r}")
    if kind == "log" and ends[0] <= 0:
        raise UserError(f"{path}.log must begin above 0, got {ends[0]}: use 'uniform' or 'int'")


def _check_rules(space: SearchSpace, config: Config) -> None:
    """Checks rules on several fields together."""
    swept = {each.field for each in space.parameters}
    weights = sorted(field for field in swept if field.startswith("loss."))
    if space.settings.objective == "loss" and weights:
        raise UserError(
            f"config.sweep.objective='loss' cannot be compared between trials that differ in "
            f"{', '.join(weights)}, because these weights are part of the loss: use mAP50 or "
            "mAP50_95"
        )
    if config.data.definition == SYNTHETIC and "data.image_hw" in swept:
        raise UserError(
            "config.sweep.space: synthetic frames are generated for one size, so trials that "
            "differ in data.image_hw would be judged on different images: set "
            "--config.data.definition=FILE.yml, or take data.image_hw out of the space"
        )
    if config.train.resume != "auto":
        raise UserError(
            f"config.train.resume must be 'auto' in a sweep, got {config.train.resume!r}: a trial "
            "continues what its own workdir holds"
        )
    if config.train.from_pretrained and "model.name" in swept:
        raise UserError(
            "config.train.from_pretrained holds weights of one architecture: take model.name out "
            "of config.sweep.space, or leave config.train.from_pretrained empty"
        )


def _check_extremes(space: SearchSpace) -> None:
    """Builds a config for every pair of ends and choices, so that no trial fails at its start."""
    options = [[(each.field, value) for value in each.values] for each in space.parameters]
    singles = [(single,) for each in options for single in each]
    pairs = [
        pair for a, b in itertools.combinations(options, 2) for pair in itertools.product(a, b)
    ]
    for chosen in [*singles, *pairs]:
        try:
            from_mapping(with_fields(space.base, dict(chosen)))
        except UserError as error:
            what = " and ".join(f"{field}={as_text(value)}" for field, value in chosen)
            raise UserError(f"config.sweep.space allows {what}, but {error}") from error
