"""Looks for a learning rate: one step at each of many, from very small to too large.

    python -m yogo_jax.learning_rate --config configs/base.py --config.data.definition=FILE.yml

Nothing is kept of the training. What it prints is for `--config.optim.learning_rate`; the fields of
the config are those of `yogo_jax.train`, and the answer is for these.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from yogo_jax.command import as_command
from yogo_jax.config import field_names, from_mapping
from yogo_jax.config_file import config_values, define_config_flag, parse_config_flags
from yogo_jax.errors import UserError
from yogo_jax.given import given_path
from yogo_jax.output.files import write_json
from yogo_jax.startup import start_jax


if TYPE_CHECKING:
    from yogo_jax.training.rate_search import Tried


# Lines of the table that is printed.
_LINES = 16


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command, for its help and for completion; they are parsed by absl."""
    parser = argparse.ArgumentParser(
        prog="python -m yogo_jax.learning_rate",
        usage="%(prog)s --config FILE.py [--config.FIELD=VALUE ...] [--steps N]",
        description="Trains with a learning rate that rises from step to step, and says at which "
        "the loss falls fastest.",
        epilog="Fields of the config as for yogo_jax.train.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE.py", help="the run: configs/base.py or a variant")
    add("--steps", type=int, default=200, help="learning rates to try; default: %(default)s")
    add("--lowest", type=float, default=1e-6, help="the first of them; default: %(default)s")
    add("--highest", type=float, default=1.0, help="the last of them; default: %(default)s")
    add("--output", metavar="FILE.json", help="where to write all of them and their losses as well")
    return parser


def _define_flags(argv: list[str]) -> None:
    define_config_flag(argv, flags.FLAGS)
    default = make_parser().get_default
    flags.DEFINE_integer("steps", default("steps"), "See --help.")
    flags.DEFINE_float("lowest", default("lowest"), "See --help.")
    flags.DEFINE_float("highest", default("highest"), "See --help.")
    flags.DEFINE_string("output", None, "See --help.")


def check(steps: int, lowest: float, highest: float, output: Path | None) -> None:
    """Refuses values out of range.

    Raises:
      UserError: naming the flag, its range and what was given.
    """
    from yogo_jax.training.rate_search import FEWEST_STEPS

    if steps < FEWEST_STEPS:
        raise UserError(f"--steps must be {FEWEST_STEPS} or more, got {steps}")
    if not 0 < lowest < highest:
        raise UserError(
            f"--lowest must be above 0 and below --highest, got {lowest:g} and {highest:g}"
        )
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: {output.parent} is no folder")


def format_rates(tried: "Sequence[Tried]", best: "Tried", tries: int) -> str:
    """The losses at some of the learning rates, and what to take."""
    from yogo_jax.evaluation.tables import align

    every = max(len(tried) // _LINES, 1)
    rows: list[list[object]] = [
        [f"{each.learning_rate:.2e}", f"{each.loss:.4f}"] for each in tried[::every]
    ]
    least = min(tried, key=lambda each: each.loss)
    ended = "" if len(tried) == tries else f"; diverged after {len(tried)} of {tries} steps"
    return "\n".join(
        [
            *align(["learning rate", "loss"], rows),
            "",
            f"least loss at {least.learning_rate:.2e}{ended}",
            f"falls fastest at {best.learning_rate:.2e}: "
            f"--config.optim.learning_rate={best.learning_rate:.1e}",
        ]
    )


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unknown arguments {argv[1:]}: fields are set by --config.FIELD=VALUE")
    values, _ = config_values(flags.FLAGS)
    config = from_mapping(values)
    given = flags.FLAGS
    steps, lowest, highest = given.steps, given.lowest, given.highest
    output = None if given.output is None else given_path(given.output)
    check(steps, lowest, highest, output)
    start_jax()
    from yogo_jax.training.rate_search import fastest, rates_between, try_rates

    tried = try_rates(config, rates_between(lowest, highest, steps), print)
    best = fastest(tried)
    print(format_rates(tried, best, steps))
    if output is not None:
        found = {"fastest": best._asdict(), "tried": [each._asdict() for each in tried]}
        try:
            write_json(output, found)
        except OSError as error:
            raise UserError(f"--output {output}: {error.strerror or error}") from error


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    with as_command():
        if {"-h", "--help"} & set(arguments):
            make_parser().parse_args(["--help"])
        command = [sys.argv[0], *arguments]
        _define_flags(command)
        rest = parse_config_flags(command, field_names(), flags.FLAGS)
        app.run(_run, argv=rest, flags_parser=lambda args: args)


if __name__ == "__main__":
    main()
