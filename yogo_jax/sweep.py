"""Searches for good settings, with any number of tasks side by side, and shows what was found.

    python -m yogo_jax.sweep --config configs/sweep.py --study DIR [--config.FIELD=VALUE ...]
    python -m yogo_jax.sweep report DIR

Each task of the first command trains one trial after the other until the sweep has as many as
planned, and takes up those whose task has died. The second writes DIR/report.html at any time.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yogo_jax.command import as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag
from yogo_jax.ownership import STALE_AFTER_S
from yogo_jax.startup import start_jax
from yogo_jax.training.stopping import Stop, exit_when_stopped


if TYPE_CHECKING:
    from yogo_jax.sweeping.space import SearchSpace

EXAMPLE = "configs/sweep.py"
EPILOG = """\
--config.FIELD=VALUE sets what all trials share (configs/base.py), and --config.sweep.FIELD=VALUE
the search itself (configs/sweep.py). docs/sweeps.md has the rest.
"""


def make_parser() -> argparse.ArgumentParser:
    """The flags of a task."""
    parser = argparse.ArgumentParser(
        prog="python -m yogo_jax.sweep",
        usage="%(prog)s --config FILE.py --study DIR [FLAGS] [--config.FIELD=VALUE ...]\n"
        "       %(prog)s report DIR",
        description="One task of a sweep: trains trials until the sweep is complete.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE.py", help="a config with a search space: configs/sweep.py")
    add(
        "--study",
        type=path_flag,
        metavar="DIR",
        help="folder of the sweep, the same for all its tasks",
    )
    add("--trials", type=int, metavar="N", help="trials of the sweep; default: config.sweep.trials")
    add("--one", action="store_true", help="work on one trial, then end")
    add(
        "--stale-after",
        type=float,
        default=STALE_AFTER_S,
        metavar="SECONDS",
        help="a trial without a sign of life for so long is taken up again; default: %(default)s",
    )
    return parser


def make_report_parser() -> argparse.ArgumentParser:
    """The flags of the report."""
    parser = argparse.ArgumentParser(
        prog="python -m yogo_jax.sweep report",
        description="What a sweep has found so far: a table here, and a page.",
    )
    parser.add_argument("study", type=path_flag, metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--output", type=path_flag, metavar="FILE.html", help="the page; default: DIR/report.html"
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuses what is missing or out of range.

    Raises:
      UserError: naming the flag.
    """
    if args.study is None:
        raise UserError("no study given: add --study DIR, a folder for the sweep")
    if args.config is None:
        raise UserError(f"no config given: add --config {EXAMPLE}")
    if args.trials is not None and args.trials < 1:
        raise UserError(f"--trials must be 1 or more, got {args.trials}")
    if args.stale_after < 1:
        raise UserError(f"--stale-after must be 1 second or more, got {args.stale_after:g}")


def check_overrides(overrides: Sequence[str], space: "SearchSpace") -> None:
    """Refuses a flag for a field that every trial chooses anew: it would change nothing.

    Raises:
      UserError: naming the field and the range that it is chosen from.
    """
    from yogo_jax.sweeping.space import as_text

    given = {each.lstrip("-").partition("=")[0] for each in overrides}
    for parameter in space.parameters:
        field = parameter.field
        if {f"config.{field}", f"noconfig.{field}"} & given:
            values = " or ".join(map(as_text, parameter.values))
            if parameter.kind != "choice":
                values = f"{as_text(parameter.values[0])} to {as_text(parameter.values[1])}"
            raise UserError(
                f"--config.{field} would change nothing: each trial chooses this field from "
                f"config.sweep.space ({values}). Drop the flag; or, for one value in all trials, "
                f"take {field} out of the space, in your copy of the config file"
            )


def sweep(args: argparse.Namespace, overrides: list[str], stop: Stop) -> None:
    """Works on trials until the sweep is complete, or on one.

    Args:
      args: from `make_parser`.
      overrides: flags `--config.FIELD=VALUE`.

    Raises:
      UserError: config, study or data cannot be used.
    """
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from absl import flags

    from yogo_jax.config.overrides import config_values, define_config_flag, parse_config_flags
    from yogo_jax.config.schema import field_names
    from yogo_jax.sweeping.space import read_space

    flag_values = flags.FlagValues()
    argv = ["sweep", f"--config={args.config}", *overrides]
    define_config_flag(argv, flag_values)
    unknown = parse_config_flags(
        argv, field_names(), flag_values, extra_group="sweep", example=EXAMPLE
    )[1:]
    if unknown:
        raise UserError(f"unknown arguments {unknown}: fields are set by --config.FIELD=VALUE")
    values, _ = config_values(flag_values, example=EXAMPLE)
    if args.trials is not None and "sweep" in values:
        values["sweep"]["trials"] = args.trials
    space = read_space(values)
    check_overrides(overrides, space)

    with stop.end_at_once():
        start_jax()
        from yogo_jax.sweeping.study import open_study
        from yogo_jax.sweeping.trial import check_data, run_task

    # Grain's worker processes take over absl's flags, which must have been parsed for it.
    flags.FLAGS.mark_as_parsed()
    check_data(space)
    study = open_study(args.study, space, stale_after=args.stale_after)
    run_task(study, one=args.one, say=functools.partial(print, flush=True), stop=stop)


def report(args: argparse.Namespace) -> Path:
    """Prints a table of the trials, writes the page, and returns where.

    Raises:
      UserError: the folder holds no sweep, or the page cannot be written.
    """
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder: give the name of a file, as X.html")
    from yogo_jax.files import write_atomically
    from yogo_jax.sweeping.page import sweep_page
    from yogo_jax.sweeping.results import format_trials, read_results
    from yogo_jax.sweeping.study import load_study

    results = read_results(load_study(args.study, stale_after=STALE_AFTER_S))
    output: Path = args.output or args.study / "report.html"
    try:
        write_atomically(output, sweep_page(results, output.parent))
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror})") from error
    print(format_trials(results))
    print(f"written {output}")
    return output


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["report"]:
        with as_command():
            report(make_report_parser().parse_args(arguments[1:]))
        return
    with as_command():
        # The fields of the config are left to absl.
        args, overrides = make_parser().parse_known_args(arguments)
        check(args)
    with exit_when_stopped() as stop:
        sweep(args, overrides, stop)


if __name__ == "__main__":
    main()
