"""Trains a detector: `python -m yogo_jax.train --config configs/base.py [--config.FIELD=VALUE]`.

Continues by itself what the workdir holds, see `train.resume` in configs/base.py. SIGTERM, SIGUSR1
and `train.max_hours` stop it: it saves, and exits with status 75.
"""

import difflib
import functools
import logging
import sys
import time
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from yogo_jax.config import Config, field_names, from_mapping
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.training.preemption import Stop, exit_when_stopped


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "The run, for example configs/base.py.", lock_config=True
    )
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and metrics go; else runs/CONFIG-TIME, printed."
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0 of a run in several, if SLURM does not say."
    )
    flags.DEFINE_integer("num-processes", None, "How many processes the run has, likewise.")
    flags.DEFINE_integer("process-id", None, "Which of them this is, from 0, likewise.")


def _parse(argv: list[str]) -> list[str]:
    """Absl's parser, with its errors and those of overrides as user errors."""
    names = [arg.lstrip("-").split("=")[0] for arg in argv[1:] if arg.startswith("-")]
    if not {"config", "help", "helpfull", "helpshort"} & set(names):
        raise UserError("no config given: add --config configs/base.py or another of configs/")
    for arg, value in zip(argv, [*argv[1:], ""], strict=True):
        name, _, attached = arg.lstrip("-").partition("=")
        file = (attached or value).split(":")[0]
        if arg.startswith("-") and name == "config" and not file.endswith(".py"):
            raise UserError(
                f"--config {file}: expected a Python file as configs/base.py; a data set "
                "definition goes to --config.data.definition"
            )
    known = field_names()
    for name in names:
        if name.startswith("config.") and name.removeprefix("config.") not in known:
            nearest = difflib.get_close_matches(name, [f"config.{field}" for field in known], n=1)
            hint = f"did you mean --{nearest[0]}?" if nearest else "see configs/base.py"
            raise UserError(f"--{name} is not a field of a config; {hint}")
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{error} (fields and their values: configs/base.py)") from error
    except Exception as error:
        # Parsing runs the config file, which may fail in any way.
        raise UserError(_not_a_config(error)) from error


def _not_a_config(error: Exception) -> str:
    return (
        "--config: expected a Python file whose get_config() returns a ConfigDict, as "
        f"configs/base.py; found {type(error).__name__}: {error}"
    )


def _config() -> tuple[Config, str]:
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    try:
        values = flags.FLAGS.config.to_dict()
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read; try configs/base.py") from error
    except Exception as error:
        raise UserError(_not_a_config(error)) from error
    return from_mapping(values), Path(path).stem


def _run(argv: list[str], stop: Stop) -> None:
    with exit_on_user_error():
        if len(argv) > 1:
            raise UserError(f"unknown arguments {argv[1:]}: fields are set by --config.FIELD=VALUE")
        config, name = _config()
        workdir = flags.FLAGS.workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        # Orbax and Grain report every file at these levels.
        absl_logging.set_verbosity(absl_logging.ERROR)
        logging.getLogger("jax").setLevel(logging.WARNING)
        # Imported late: a mistake in a flag is told without waiting for JAX.
        from yogo_jax.compilation import use_compilation_cache
        from yogo_jax.training.distributed import (
            Coordinates,
            join_processes,
            leave_at_once_on_error,
        )
        from yogo_jax.training.loop import train_and_evaluate

        use_compilation_cache()
        join_processes(
            Coordinates(
                coordinator=flags.FLAGS["coordinator"].value,
                num_processes=flags.FLAGS["num-processes"].value,
                process_id=flags.FLAGS["process-id"].value,
            )
        )
        # JAX's own handler came with the other processes; it only takes notes.
        stop.listen()
        with leave_at_once_on_error(), exit_on_user_error():
            train_and_evaluate(config, Path(workdir).expanduser(), stop)


def main() -> None:
    """The command."""
    with exit_when_stopped() as stop:
        app.define_help_flags()
        _define_flags()
        with exit_on_user_error():
            argv = _parse(sys.argv)
        app.run(functools.partial(_run, stop=stop), argv=argv, flags_parser=lambda args: args)


if __name__ == "__main__":
    main()
