"""Groups of config fields: dataclasses whose fields carry their type, range and meaning.

A field is written `name: Annotated[float, at_least(0), "One sentence."]`. A group checks the ranges
of its fields when it is made, whoever makes it. Fields that were once called otherwise (`RENAMED`)
are read under their old names, too.
"""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from yogo_jax.errors import UserError


# New dotted names by old ones, of files and checkpoints; a field stays in its group.
RENAMED = {
    "loss.usual_objects": "loss.reference_count",
    "loss.by_fullness": "loss.reference_count_from_data",
    "augment.closed_epochs": "augment.epochs_without_paste",
}


class Rule(NamedTuple):
    """Values that a field accepts: the rule in words, to follow "must be", and as a function."""

    expected: str
    holds: Callable[[Any], bool]


def at_least(low: float, note: str = "") -> Rule:
    """Numbers from `low` on; the note says what a special value means."""
    return Rule(f"{low} or more{note and ', ' + note}", lambda value: value >= low)


def between(low: float, high: float, ends: str = "[]", *, what: str = "", note: str = "") -> Rule:
    """Numbers of an interval.

    Args:
      low: lower end.
      high: upper end.
      ends: brackets of the two ends; a round one leaves that end out.
      what: what the number is, as "a probability".
      note: what a special value means.
    """
    outside = [end for end, bracket in zip((low, high), ends, strict=True) if bracket in "()"]
    return Rule(
        f"{what and what + ' '}in {ends[0]}{low}, {high}{ends[1]}{note and ', ' + note}",
        lambda value: low <= value <= high and value not in outside,
    )


class Field(NamedTuple):
    """One field of a config.

    Attributes:
      kind: its type.
      rules: on its values.
      meaning: a sentence or two.
      default: value of configs that were written before there was this field; `dataclasses.MISSING`
        for a field that every config has.
    """

    kind: Any
    rules: tuple[Rule, ...]
    meaning: str
    default: Any

    @classmethod
    def of(cls, field: "dataclasses.Field[Any]") -> "Field":
        """The field that a line of a dataclass declares."""
        extras = getattr(field.type, "__metadata__", ())
        kind = typing.get_args(field.type)[0] if extras else field.type
        rules = tuple(each for each in extras if isinstance(each, Rule))
        meaning = " ".join(each for each in extras if isinstance(each, str))
        return cls(kind, rules, meaning, field.default)


def fields_of(kind: Any, prefix: str = "") -> dict[str, Field]:
    """All fields that hold a value, by dotted name, those of inner groups included."""
    found: dict[str, Field] = {}
    for line in dataclasses.fields(kind):
        if dataclasses.is_dataclass(line.type):
            found |= fields_of(line.type, f"{prefix}{line.name}.")
        else:
            found[prefix + line.name] = Field.of(line)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A group of fields, which checks their ranges when it is made; `checked` checks types as well.

    Raises:
      UserError: a value is out of range; the field is named.
    """

    # The group in messages, as "config.optim".
    path: ClassVar[str]

    def __init_subclass__(cls, *, path: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.path = path

    def __post_init__(self) -> None:
        for line in dataclasses.fields(self):
            for rule in Field.of(line).rules:
                self.require(rule.holds(getattr(self, line.name)), line.name, rule.expected)

    def require(self, ok: bool, name: str, expected: str) -> None:
        """Refuses the value of the field of this dotted name if it is not `ok`.

        Raises:
          UserError: the field must be what is `expected`.
        """
        if not ok:
            # Fields of a config are flags; those of a checkpoint are not.
            field, found = f"{self.path}.{name}", operator.attrgetter(name)(self)
            flag = f": set --{field}=…" if field.startswith("config.") else ""
            raise UserError(f"{field} must be {expected}, got {found!r}{flag}")


def checked(value: Any, kind: Any, path: str = "") -> Any:
    """`value` as a `kind`: whole numbers are taken for floats, lists for tuples.

    Mappings are taken for dataclasses, whose fields are checked in turn.

    Raises:
      UserError: it is of another type or not finite, or a field is unknown, missing or out of
        range; the message begins with `path`, that of a `Section` if it is left out.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _group(value, kind, path)
    if origin is types.UnionType:  # with None
        return None if value is None else checked(value, inner[0], path)
    if origin is dict:
        kind = dict
    if origin is Literal:
        if value not in inner:
            raise UserError(f"{path} must be one of {', '.join(inner)}, got {value!r}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if origin is tuple and isinstance(value, list | tuple):
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise UserError(f"{path} must be {len(inner)} values A,B, got {value!r}")
        return tuple(checked(each, inner[0], f"{path}[{at}]") for at, each in enumerate(value))
    if type(value) is not kind:
        name = str(kind) if isinstance(kind, types.GenericAlias) else kind.__name__
        raise UserError(
            f"{path} must be of type {name}, got {value!r} of type {type(value).__name__}"
        )
    if kind is float and not math.isfinite(value):
        raise UserError(f"{path} must be a finite number, got {value}")
    return value


def _group(values: Any, kind: Any, path: str) -> Any:
    """A dataclass of checked values; those with a default may be left out."""
    path = path or kind.path
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of fields, got {values!r}")
    lines = {line.name: line for line in dataclasses.fields(kind)}
    what, remedy = "a config", ": add them as in configs/base.py"
    if path.split(".")[0] != "config":
        what, remedy = path, ""
    for name in sorted(values.keys() - lines.keys()):
        raise UserError(f"{path}.{name} is not a field of {what}; {hint_for(str(name), lines)}")
    needed = {name for name, line in lines.items() if line.default is dataclasses.MISSING}
    if missing := sorted(needed - values.keys()):
        raise UserError(f"{path} lacks {', '.join(missing)}{remedy}")
    return kind(
        **{
            name: checked(each, Field.of(lines[name]).kind, f"{path}.{name}")
            for name, each in values.items()
        }
    )


def hint_for(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known ones."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def with_fields(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values in which some fields, by dotted name, have other values."""
    values: dict[str, Any] = {
        name: with_fields(group, {}) if isinstance(group, Mapping) else group
        for name, group in base.items()
    }
    for field, value in fields.items():
        group, *path = values, *field.split(".")
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = value
    return values


def with_defaults(kind: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config as a run recorded them, with the fields that came later.

    Nothing is checked: fields that are unknown or lack a default stay as they are.
    """
    known = flat(recorded)
    later = {
        # As JSON gives it back.
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in fields_of(kind).items()
        if field.default is not dataclasses.MISSING
        and name not in known
        and isinstance(recorded.get(name.partition(".")[0]), Mapping)
    }
    return with_fields(recorded, later)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "config") -> list[str]:
    """Fields in which two nested configs differ, as `path: a != b`."""
    left, right = flat(a, f"{path}."), flat(b, f"{path}.")
    return [
        f"{name}: {left.get(name)!r} != {right.get(name)!r}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]


def with_current_names(
    values: Mapping[str, Any], say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """A copy of the values of a config, with today's names of fields.

    Args:
      values: nested, or by dotted name. A value under an old name goes before one under the new.
      say: takes one line for each old name that is used.
    """
    result = with_fields(values, {})
    for old, new in RENAMED.items():
        group, _, old_name = old.rpartition(".")
        inner = result.get(group), old_name, new.rpartition(".")[2]
        for place, old_key, new_key in ((result, old, new), inner):
            if isinstance(place, dict) and old_key in place:
                place[new_key] = place.pop(old_key)
                if say is not None:
                    say(f"config.{old} is now called config.{new}; the old name is still read")
    return result
