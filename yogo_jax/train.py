"""Trains a detector: `python -m yogo_jax.train --config configs/base.py [--config.FIELD=VALUE]`.

Continues by itself what the workdir holds, see `train.resume` in configs/base.py.
"""

import logging
import sys
import time
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from yogo_jax.config import field_names, from_mapping
from yogo_jax.config_file import config_values, define_config_flag, parse_config_flags
from yogo_jax.errors import UserError, exit_on_user_error


def _define_flags() -> None:
    define_config_flag(flags.FLAGS)
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and metrics go; else runs/CONFIG-TIME, printed."
    )


def _run(argv: list[str]) -> None:
    with exit_on_user_error():
        if len(argv) > 1:
            raise UserError(f"unknown arguments {argv[1:]}: fields are set by --config.FIELD=VALUE")
        values, name = config_values(flags.FLAGS)
        config = from_mapping(values)
        workdir = flags.FLAGS.workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        # Orbax and Grain report every file at these levels.
        absl_logging.set_verbosity(absl_logging.ERROR)
        logging.getLogger("jax").setLevel(logging.WARNING)
        # Imported late: a mistake in a flag is told without waiting for JAX.
        from yogo_jax.compilation import use_compilation_cache
        from yogo_jax.training.loop import train_and_evaluate

        use_compilation_cache()
        train_and_evaluate(config, Path(workdir).expanduser())


def main() -> None:
    """The command."""
    app.define_help_flags()
    _define_flags()
    with exit_on_user_error():
        argv = parse_config_flags(sys.argv, field_names(), flags.FLAGS)
    app.run(_run, argv=argv, flags_parser=lambda args: args)


if __name__ == "__main__":
    main()
