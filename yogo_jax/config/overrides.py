"""A config from the command line: a Python file with `get_config()`, and overrides of its fields.

`--config FILE.py --config.FIELD=VALUE …`, read by absl and ml_collections, whose errors come out as
user errors that name the flag.
"""

import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from yogo_jax.errors import UserError
from yogo_jax.files import given_path


# The configs that come with the package lie beside it, in a checkout and where it is installed.
CONFIGS = Path(__file__).parents[1] / "configs"
EXAMPLE = "configs/base.py"


def known_configs() -> list[str]:
    """Names of the configs that come with the package, as `--config NAME` takes them."""
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))


def find_config(given: str, example: str = EXAMPLE) -> str:
    """The file that `--config` means, as text.

    A file of the user goes first. Where there is none, `base`, `base.py` and `configs/base.py` are
    the package's, from any folder; any other path, as `./base.py`, is the user's alone.

    Args:
      given: a path, or a name; behind a colon may stand an argument of its `get_config`.
      example: a file that can be read, for messages.

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


def _with_found_config(argv: Sequence[str], example: str) -> list[str]:
    """The arguments, with the path of the config file in place of a name."""
    found = list(argv)
    for index, argument in enumerate(argv):
        name, is_attached, value = argument.partition("=")
        if name not in ("-config", "--config") or index == 0:
            continue
        if is_attached:
            found[index] = f"{name}={find_config(value, example)}"
        elif index + 1 < len(argv):
            found[index + 1] = find_config(argv[index + 1], example)
    return found


def define_config_flag(argv: list[str], flag_values: flags.FlagValues) -> None:
    """Adds `--config`, and with it the overrides of its fields that are among the arguments."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The run, for example configs/base.py.",
        lock_config=True,
        flag_values=flag_values,
        sys_argv=argv,
    )


def parse_config_flags(
    argv: list[str],
    known_fields: Sequence[str],
    flag_values: flags.FlagValues,
    *,
    extra_group: str | None = None,
    example: str = EXAMPLE,
) -> list[str]:
    """Parses the flags; returns what is none, the name of the command first.

    Args:
      argv: the name of the command, then its arguments.
      known_fields: dotted names that `--config.` may be followed by.
      flag_values: with the config flag and whatever else the command has.
      extra_group: a group of the file beside those of a run, whose fields only the file knows.
      example: a file that explains the fields, for messages.

    Raises:
      UserError: a flag is unknown or its value unfit, or the config file fails.
    """
    names = [arg.lstrip("-").split("=")[0] for arg in argv[1:] if arg.startswith("-")]
    if "config" not in names:
        raise UserError(
            f"no config given: add --config {example}, or another of {', '.join(known_configs())}"
        )
    argv = _with_found_config(argv, example)
    for name in names:
        field = name.removeprefix("config.")
        if field == name or field.split(".")[0] == extra_group:
            continue
        if field not in known_fields:
            known = [*known_fields, *([] if extra_group is None else [extra_group])]
            nearest = difflib.get_close_matches(name, [f"config.{each}" for each in known], n=1)
            hint = f"did you mean --{nearest[0]}?" if nearest else f"see {example}"
            raise UserError(f"--{name} is not a field of a config; {hint}")
    try:
        return flag_values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{error} (fields and their values: {example})") from error
    except Exception as error:
        # Parsing runs the config file, which may fail in any way.
        raise UserError(_not_a_config(error, example)) from error


def _not_a_config(error: Exception, example: str) -> str:
    return (
        "--config: expected a Python file whose get_config() returns a ConfigDict, as "
        f"{example}; found {type(error).__name__}: {error}"
    )


def config_values(
    flag_values: flags.FlagValues, *, example: str = EXAMPLE
) -> tuple[dict[str, Any], str]:
    """Nested plain values of the parsed config, and the name of its file without `.py`.

    Args:
      flag_values: parsed by `parse_config_flags`.
      example: a file that can be read, for messages.

    Raises:
      UserError: the file cannot be read, or is no config.
    """
    path = config_flags.get_config_filename(flag_values["config"])
    try:
        values = flag_values.config.to_dict()
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read; try {example}") from error
    except Exception as error:
        raise UserError(_not_a_config(error, example)) from error
    return values, Path(path).stem
