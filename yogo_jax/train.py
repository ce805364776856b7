"""Trains a detector: `python -m yogo_jax.train --config configs/strong.py [--config.FIELD=VALUE]`.

Continues by itself what the workdir holds (`train.resume`). Ctrl-C, SIGTERM, SIGUSR1 and
`train.max_hours` stop it: it saves, and exits with status 75.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import importlib
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from yogo_jax.command import Parser, add_quiet, as_command, quietly
from yogo_jax.config.overrides import (
    add_config_flags,
    find_config,
    known_configs,
    overrides_in,
    read_values,
)
from yogo_jax.config.schema import Config, from_mapping
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.files import given_path, path_flag
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


class Run(NamedTuple):
    """A run that is trained and tested.

    Attributes:
      workdir: its folder.
      metrics: of its best checkpoint on the test split, as in test/metrics.json; empty without a
        test split.
      checkpoint: folder of its best checkpoint.
    """

    workdir: Path
    metrics: dict[str, Any]
    checkpoint: Path

    @property
    def path(self) -> Path:
        """The workdir, as loaded models call the place they come from."""
        return self.workdir

    def load(self) -> Any:
        """The model of the best checkpoint, as `yogo_jax.load` gives it."""
        return importlib.import_module("yogo_jax").load(self.workdir)


def train(config: Config | str | Path, workdir: str | Path) -> Run:
    """Trains, or continues what the workdir holds, and tests the best checkpoint.

    If it is interrupted, the same call continues from the latest checkpoint.

    Args:
      config: the run, or the file or name of a config.
      workdir: folder for config.json, checkpoints/, metrics.jsonl, train.log and test/.

    Returns:
      The run.

    Raises:
      UserError: data or config cannot be used, the workdir holds another run or is in use, or the
        loss is no longer finite.

    Example:
      >>> config = yogo_jax.Config.from_file("strong", **{"data.definition": "FILE.yml"})
      >>> run = yogo_jax.train(config, "runs/first")
      >>> run.metrics["mAP50"]
    """
    checked = config if isinstance(config, Config) else Config.from_file(config)
    return _train_in(given_path(str(workdir)), checked, None)


def _train_in(folder: Path, config: Config, stop: Stop | None, *, is_new: bool = False) -> Run:
    """`train`; a folder that was made just now, `is_new`, is removed if it stays empty."""
    start_jax()
    import jax

    from yogo_jax.checkpoint.store import find_checkpoint
    from yogo_jax.training.trainer import train_and_evaluate

    # Of several processes the first one writes.
    first = jax.process_index() == 0
    with own_folder(folder, "--workdir", is_new=is_new) if first else nullcontext():
        metrics = train_and_evaluate(config, folder, stop=stop)
    return Run(folder, metrics, find_checkpoint(folder))


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.train",
        usage="%(prog)s --config FILE.py [--workdir DIR] [--config.FIELD=VALUE ...]",
        description="Trains a detector, and tests its best checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.py",
        help=f"a config file, or one of {', '.join(known_configs())}",
    )
    parser.add_argument(
        "--workdir", type=path_flag, metavar="DIR", help="folder of the run; else runs/CONFIG-TIME"
    )
    add_quiet(parser)
    processes = parser.add_argument_group(
        "a run in several processes", "where SLURM does not start them; all three, to each of them"
    )
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    processes.add_argument("--num-processes", metavar="N", type=int, help="number of processes")
    processes.add_argument(
        "--process-id", metavar="I", type=int, help="number of this process, from 0"
    )
    add_config_flags(parser)
    return parser


def train_as_process(
    config: Config,
    workdir: Path | None,
    name: str,
    *,
    coordinates: tuple[str | None, int | None, int | None],
    stop: Stop,
) -> Run:
    """Trains in this process, which may be one of several of the run.

    Args:
      config: the run.
      workdir: its folder; None makes one of the name and the time.
      name: of the config.
      coordinates: of `parallel.Coordinates`.
      stop: asks the run to stop early.

    Raises:
      UserError: see `train`.
      Stopped: it was asked to stop.
    """
    with stop.end_at_once():
        start_jax()
        # Imported late: a mistake in a flag is told without waiting for JAX.
        from yogo_jax.parallel import (
            Coordinates,
            Devices,
            are_several,
            join_processes,
            leave_at_once_on_error,
        )

    given = Coordinates(*coordinates)
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
        if workdir is not None:
            return _train_in(workdir, config, stop)
        # A new folder below runs/, the same in all processes of the run.
        devices = Devices()
        default = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        made = [make_new_folder(default)] if devices.first else []
        return _train_in(devices.gather(made)[0], config, stop, is_new=True)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        if args.config is None:
            others = [name for name in known_configs() if name not in ("strong", "sweep")]
            raise UserError(
                f"no config given: add --config strong, or another of {', '.join(others)}"
            )
    with exit_when_stopped() as stop:
        config = from_mapping(read_values(args.config, overrides_in(args)))
        name = Path(find_config(args.config).partition(":")[0]).stem
        with quietly(args.quiet):
            run = train_as_process(
                config,
                args.workdir,
                name,
                coordinates=(args.coordinator, args.num_processes, args.process_id),
                stop=stop,
            )
        if args.quiet and run.metrics:
            from yogo_jax.reports.tables import format_metrics

            print(format_metrics(run.metrics))
            print(f"workdir {run.workdir}")


if __name__ == "__main__":
    main()
