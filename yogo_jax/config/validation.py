"""Dataclasses from nested plain values, with every name and type checked."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from yogo_jax.errors import UserError


def require(ok: bool, field: str, expected: str, found: object) -> None:
    """Refuses the value of a field of a config.

    Raises:
      UserError: it is not `ok`.
    """
    if not ok:
        raise UserError(f"config.{field} must be {expected}, got {found!r}: set --config.{field}=…")


def checked(value: Any, kind: Any, path: str) -> Any:
    """`value` as a `kind`, with whole numbers accepted for floats and lists for tuples.

    Raises:
      UserError: it is of another type, or not finite; the message begins with `path`.
    """
    if typing.get_origin(kind) is typing.Literal:
        words = typing.get_args(kind)
        if value not in words:
            raise UserError(f"{path} must be one of {', '.join(words)}, got {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner, *rest = typing.get_args(kind)
        length = None if rest == [Ellipsis] else 1 + len(rest)
        if length is not None and len(value) != length:
            raise UserError(f"{path} must be {length} values A,B, got {value!r}")
        items = [checked(item, inner, f"{path}[{index}]") for index, item in enumerate(value)]
        return tuple(items)
    if isinstance(kind, types.GenericAlias) or type(value) is not kind:
        name = (
            getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)
        )
        raise UserError(
            f"{path} must be of type {name}, got {value!r} of type {type(value).__name__}"
        )
    if kind is float and not math.isfinite(value):
        raise UserError(f"{path} must be a finite number, got {value}")
    return value


def build(kind: Any, values: Any, path: str) -> Any:
    """A dataclass of a group of fields, with all of its types checked; fields may have defaults.

    Args:
      kind: the dataclass; its fields may be dataclasses, too.
      values: nested plain values.
      path: name of the group, for messages.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range; it is named.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of fields, got {values!r}")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for name in sorted(values.keys() - fields.keys()):
        raise UserError(f"{path}.{name} is not a field of a config; {hint_for(str(name), fields)}")
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - values.keys()):
        raise UserError(f"{path} lacks {', '.join(missing)}: add them as in configs/base.py")
    built = {}
    for name, field_kind in fields.items():
        here = f"{path}.{name}"
        if name not in values:
            continue
        if dataclasses.is_dataclass(field_kind):
            built[name] = build(field_kind, values[name], here)
        else:
            built[name] = checked(values[name], field_kind, here)
    return kind(**built)


def hint_for(name: str, known: Iterable[str]) -> str:
    """What a message says about a name that is not among the known ones."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
