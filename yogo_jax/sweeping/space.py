"""What a sweep varies, and how a trial's config follows from what was drawn."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from yogo_jax.config import Config, from_mapping
from yogo_jax.errors import UserError


Kind = Literal["uniform", "log", "int", "choice"]
KINDS = typing.get_args(Kind)

# Objectives among the metrics of a validation, and whether more of it is better.
OBJECTIVES = {"mAP50": True, "mAP50_95": True, "loss": False}


def _require(ok: bool, field: str, expected: str, found: object) -> None:
    if not ok:
        raise UserError(f"config.sweep.{field} must be {expected}, got {found!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunerConfig:
    """When a trial is given up early, see `configs/sweep.py`."""

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
    """What `config.sweep` holds beside the space, see `configs/sweep.py`."""

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
        """Whether more of the objective is better."""
        return OBJECTIVES[self.objective]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field that trials choose.

    Attributes:
      field: dotted name of a config's field.
      kind: how it is drawn: from a range (evenly, by its logarithm, whole numbers) or from a list.
      values: the ends of the range, or the list.
    """

    field: str
    kind: Kind
    values: tuple[Any, ...]

    @property
    def texts(self) -> dict[str, Any]:
        """The list of a choice under names, as they are stored and shown."""
        return {as_text(value): value for value in self.values}


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A checked sweep.

    Attributes:
      settings: of the search.
      parameters: in the order of the config.
      base: nested values of the fields that all trials share.
    """

    settings: SweepConfig
    parameters: tuple[Parameter, ...]
    base: Mapping[str, Any]

    def config_of(self, chosen: Mapping[str, Any]) -> Config:
        """The config of a trial.

        Args:
          chosen: a value for each parameter's field; for a choice, its text.
        """
        fields = {
            each.field: each.texts[chosen[each.field]]
            if each.kind == "choice"
            else chosen[each.field]
            for each in self.parameters
        }
        return from_mapping(with_fields(self.base, fields))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that say all of it, for JSON; `load_study` reads them."""
        space = {each.field: {each.kind: list(each.values)} for each in self.parameters}
        return {"config": self.base, "settings": dataclasses.asdict(self.settings), "space": space}


def as_text(value: Any) -> str:
    """A value as it is written in `--config.FIELD=VALUE`, exact."""
    if isinstance(value, tuple | list):
        return ",".join(map(as_text, value))
    return str(value)


def with_fields(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some fields, by dotted name, set to others."""
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
    """Where a drawn value lies between the ends of its range, in [0, 1]; choices by their order."""
    if parameter.kind == "choice":
        return list(parameter.texts).index(value) / (len(parameter.values) - 1)
    low, high = parameter.values
    if parameter.kind == "log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)
