"""A config from the command line: `--config FILE.py`, and `--config.FIELD=VALUE` for its fields."""

import argparse
import ast
import functools
import importlib.util
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yogo_jax.config.fields import (
    RENAMED,
    Field,
    fields_of,
    flat,
    hint_for,
    with_current_names,
    with_fields,
)
from yogo_jax.config.schema import Config
from yogo_jax.errors import UserError
from yogo_jax.files import given_path


if TYPE_CHECKING:
    from ml_collections import ConfigDict


# The configs that come with the package lie beside it, in a checkout and where it is installed.
CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLE = "configs/base.py"


def known_configs() -> list[str]:
    """Names of the configs that come with the package, as `--config NAME` takes them."""
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))


def find_config(given: str, example: str = EXAMPLE) -> str:
    """The file that `--config` means, as text; behind a colon may stand an argument of it.

    A file of the user goes first. Where there is none, `base`, `base.py` and `configs/base.py` are
    the package's, from any folder; any other path, as `./base.py`, is the user's alone.

    Raises:
      UserError: there is no such file; the message lists the names that are known.
    """
    text, colon, argument = given.partition(":")
    path = given_path(text)
    if path.suffix == ".py" and path.is_file():
        return f"{path}{colon}{argument}"
    known = known_configs()
    # As it was written: a Path forgets ./ at its beginning.
    name = text.removeprefix("configs/").removesuffix(".py")
    if name in known:
        # Configs import one another by `configs`, which the user may have one of, too.
        if "configs" not in sys.modules:
            with_ours = importlib.util.spec_from_file_location("configs", CONFIGS / "__init__.py")
            assert with_ours is not None
            sys.modules["configs"] = importlib.util.module_from_spec(with_ours)
        return f"{CONFIGS / name}.py{colon}{argument}"
    if path.suffix != ".py":
        raise UserError(
            f"--config {text}: expected a Python file as {example}, or one of "
            f"{', '.join(known)}; a data set definition goes to --config.data.definition"
        )
    raise UserError(
        f"--config {text}: cannot be read; try {example}, or a name: {', '.join(known)} (there is "
        "no such file)"
    )


def read_values(
    given: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    more_fields: Mapping[str, Field] | None = None,
    say: Callable[[str], None] = print,
    example: str = EXAMPLE,
) -> dict[str, Any]:
    """Nested plain values of a config file, with some fields set to other values.

    Args:
      given: a path or a name, see `find_config`.
      overrides: values by dotted name.
      more_fields: fields that the file may have beside those of a run, by dotted name.
      say: takes a line for each field that is given by an old name.
      example: a file that can be read, for messages.

    Raises:
      UserError: the file cannot be read or is no config, or an override is of no field.
    """
    overrides = with_current_names(overrides or {}, say)
    known = {**fields_of(Config), **(more_fields or {})}
    for name in overrides:
        # Ranges of a search space are known by the file alone.
        if name not in known and not name.startswith("sweep.space."):
            raise UserError(f"config.{name} is not a field of a config; {hint_for(name, known)}")
    path, colon, argument = find_config(given, example).partition(":")
    config = _config_of(Path(path), [argument] if colon else [], example)
    present = flat(config.to_dict())
    with config.unlocked(), config.ignore_type():
        # References from field to field follow the overrides.
        config.update_from_flattened_dict(
            {name: value for name, value in overrides.items() if name in present}
        )
    return with_fields(with_current_names(config.to_dict(), say), overrides)


def _config_of(path: Path, arguments: list[str], example: str) -> "ConfigDict":
    """The result of `get_config` of a file; a `UserError` if it cannot be read or is none."""
    from ml_collections import ConfigDict

    spec = importlib.util.spec_from_file_location("yogo_jax_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    expected = f"expected a Python file whose get_config() returns a ConfigDict, as {example}"
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*arguments)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read; try {example}") from error
    except Exception as error:
        # The file may fail in any way.
        raise UserError(
            f"--config {path}: {expected}; found {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict | Mapping):
        raise UserError(f"--config {path}: {expected}; found {config!r}")
    return config if isinstance(config, ConfigDict) else ConfigDict(config)


def add_config_flags(
    parser: argparse.ArgumentParser, more_fields: Mapping[str, Field] | None = None
) -> None:
    """Adds `--config.FIELD=VALUE` for each field; `overrides_in` reads what was given."""
    group = parser.add_argument_group("fields of the config", "as --config.FIELD=VALUE")
    known = {**fields_of(Config), **(more_fields or {})}
    hidden = {old: known[new]._replace(meaning="") for old, new in RENAMED.items()}
    for name, field in {**known, **hidden}.items():
        options: dict[str, Any] = {"nargs": "?", "const": True} if field.kind is bool else {}
        group.add_argument(
            f"--config.{name}",
            type=functools.partial(_value_flag, field.kind),
            default=argparse.SUPPRESS,
            metavar=_metavar(field.kind),
            help=_help(field) if field.meaning else argparse.SUPPRESS,
            **options,
        )
        if field.kind is bool:
            group.add_argument(
                f"--noconfig.{name}",
                dest=f"config.{name}",
                action="store_false",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )


def overrides_in(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given by flags of `add_config_flags`, by dotted name."""
    return {
        name.removeprefix("config."): value
        for name, value in vars(args).items()
        if name.startswith("config.")
    }


def _help(field: Field) -> str:
    ranges = [f"Must be {rule.expected}." for rule in field.rules]
    return " ".join([field.meaning, *ranges]).replace("%", "%%")


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "A,B,…" if Ellipsis in typing.get_args(kind) else "A,B"
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    return {str: "TEXT", bool: "BOOL"}.get(kind, kind.__name__.upper())


def _value_flag(kind: Any, text: str) -> Any:
    """The value that a text means to a field; ranges are not checked."""
    try:
        return _parsed(kind, text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {_in_words(kind)}, got {text!r}") from None


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"{_in_words(typing.get_args(kind)[0])}, or several with commas between them"
    words = {int: "a whole number", float: "a number", bool: "True or False"}
    return words.get(kind, "text")


def _parsed(kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        # With or without brackets.
        parts = text.strip().strip("()[]").split(",")
        return tuple(_parsed(inner, part.strip(" \"'")) for part in parts if part.strip())
    if kind is bool:
        known = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    return kind(text) if kind in (int, float) else text


def literal(text: str) -> Any:
    """A Python value, or words with commas between them."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return tuple(part.strip() for part in text.split(","))
