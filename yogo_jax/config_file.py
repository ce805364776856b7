"""A config from the command line: a Python file with `get_config()`, and overrides of its fields.

`--config FILE.py --config.FIELD=VALUE …`, read by absl and ml_collections, whose errors come out as
user errors that name the flag.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from yogo_jax.errors import UserError


EXAMPLE = "configs/base.py"


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
        raise UserError(f"no config given: add --config {example} or another of configs/")
    for arg, value in zip(argv, [*argv[1:], ""], strict=True):
        name, _, attached = arg.lstrip("-").partition("=")
        file = (attached or value).split(":")[0]
        if arg.startswith("-") and name == "config" and not file.endswith(".py"):
            raise UserError(
                f"--config {file}: expected a Python file as {example}; a data set "
                "definition goes to --config.data.definition"
            )
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
