"""Trains a detector: `python -m yogo_jax.train --config configs/strong.py [--config.FIELD=VALUE]`.

Continues by itself what the workdir holds, see `train.resume` in configs/base.py. Ctrl-C, SIGTERM,
SIGUSR1 and `train.max_hours` stop it: it saves, and exits with status 75.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import functools
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from absl import app, flags

from yogo_jax.command import as_command
from yogo_jax.config.overrides import config_values, define_config_flag, parse_config_flags
from yogo_jax.config.schema import field_names, field_types, from_mapping
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.files import given_path
from yogo_jax.ownership import make_new_folder, own_folder
from yogo_jax.startup import start_jax
from yogo_jax.training.stopping import Stop, Stopped, exit_when_stopped


EXAMPLES = """\
examples:
  python -m yogo_jax.train --config configs/demo.py --workdir runs/demo
  python -m yogo_jax.train --config configs/strong.py --config.data.definition=FILE.yml \\
      --config.data.image_hw=240,320 --config.optim.learning_rate=1e-3

The same command with the same --workdir continues a run that was stopped.
"""


# In the order of `parallel.Coordinates`.
PROCESS_FLAGS = ("coordinator", "num-processes", "process-id")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command, for its help and for completion; they are parsed by absl."""
    parser = argparse.ArgumentParser(
        prog="python -m yogo_jax.train",
        usage="%(prog)s --config FILE.py [--workdir DIR] [--config.FIELD=VALUE ...]",
        description="Trains a detector, and tests its best checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE.py", help="the run: configs/strong.py, base.py or a variant"
    )
    parser.add_argument("--workdir", metavar="DIR", help="where it goes; else runs/CONFIG-TIME")
    processes = parser.add_argument_group(
        "a run in several processes", "where SLURM does not start them; all three, to each of them"
    )
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    processes.add_argument("--num-processes", metavar="N", type=int, help="how many there are")
    processes.add_argument("--process-id", metavar="I", type=int, help="which this is, from 0")
    fields = parser.add_argument_group(
        "fields of the config", "as --config.FIELD=VALUE; configs/base.py explains each"
    )
    for name, kind in field_types().items():
        fields.add_argument(f"--config.{name}", metavar=kind.upper())
    return parser


def _define_flags(argv: list[str]) -> None:
    define_config_flag(argv, flags.FLAGS)
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and metrics go; else runs/CONFIG-TIME, printed."
    )
    coordinator, *numbers = PROCESS_FLAGS
    flags.DEFINE_string(coordinator, None, "HOST:PORT of process 0.")
    for name in numbers:
        flags.DEFINE_integer(name, None, "See --help.")


def _run(argv: list[str], stop: Stop) -> None:
    with exit_on_user_error():
        if len(argv) > 1:
            raise UserError(f"unknown arguments {argv[1:]}: fields are set by --config.FIELD=VALUE")
        values, name = config_values(flags.FLAGS)
        config = from_mapping(values)
        with stop.end_at_once():
            start_jax()
            # Imported late: a mistake in a flag is told without waiting for JAX.
            import jax

            from yogo_jax.parallel import (
                Coordinates,
                are_several,
                join_processes,
                leave_at_once_on_error,
            )
            from yogo_jax.training.trainer import train_and_evaluate

        given = Coordinates(*(flags.FLAGS[name].value for name in PROCESS_FLAGS))
        several = are_several(given)
        # SLURM sends signals to all processes of a run; by hand one of them may get it alone.
        stop.with_others = several
        stop.may_end_at_once = not several or given == Coordinates(None, None, None)
        if several:
            with stop.end_at_once():
                join_processes(given)
        # JAX has taken SIGTERM for itself, which only takes notes of it.
        stop.listen()
        # One of several processes must not leave by itself: the others would wait for it.
        deferred = stop.defer_stop() if several else nullcontext()
        with deferred, leave_at_once_on_error(Stopped), exit_on_user_error():
            workdir, is_new = _find_workdir(name)
            # Of several processes the first one writes.
            first = jax.process_index() == 0
            owned = own_folder(workdir, "--workdir", is_new=is_new) if first else nullcontext()
            with owned:
                train_and_evaluate(config, workdir, stop=stop)


def _find_workdir(name: str) -> tuple[Path, bool]:
    """The workdir, the same in all processes of a run, and whether it was made just now."""
    if flags.FLAGS.workdir:
        return given_path(flags.FLAGS.workdir), False
    from yogo_jax.parallel import Devices

    devices = Devices()
    default = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    made = [make_new_folder(default)] if devices.first else []
    return devices.gather(made)[0], True


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        with as_command():
            make_parser().parse_args(["--help"])
    with exit_when_stopped() as stop:
        command = [sys.argv[0], *arguments]
        _define_flags(command)
        rest = parse_config_flags(command, field_names(), flags.FLAGS)
        app.run(functools.partial(_run, stop=stop), argv=rest, flags_parser=lambda args: args)


if __name__ == "__main__":
    main()
