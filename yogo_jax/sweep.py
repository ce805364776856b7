"""Searches for good settings, with any number of tasks side by side, and shows what was found.

    yogo-jax sweep --config configs/sweep.py --study DIR [--config.FIELD=VALUE ...]
    yogo-jax sweep report DIR

Each task of the first command trains one trial after the other until the sweep has as many as
planned, and takes up those whose task has died. The second writes DIR/report.html at any time.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yogo_jax.command import Parser, as_command
from yogo_jax.config.fields import Field, fields_of, with_current_names
from yogo_jax.config.overrides import add_config_flags, literal, overrides_in, read_values
from yogo_jax.config.schema import Config
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag
from yogo_jax.ownership import STALE_AFTER_S
from yogo_jax.startup import start_jax
from yogo_jax.sweeping.space import KINDS, SearchSpace, SweepConfig, as_text, read_space
from yogo_jax.training.stopping import Stop, exit_when_stopped


EXAMPLE = "configs/sweep.py"
EPILOG = """\
--config.FIELD=VALUE sets a field for all trials, --config.sweep.FIELD=VALUE a field of the search,
--config.sweep.space.FIELD.KIND=VALUES a range of the search space. docs/sweeps.md has the rest.
"""


def make_parser() -> argparse.ArgumentParser:
    """The flags of a task."""
    parser = Parser(
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
        help="a trial without a sign of life for this time is taken up again; default: %(default)s",
    )
    add_config_flags(parser, sweep_fields())
    for name in (
        f"config.sweep.space.{field}.{kind}" for field in fields_of(Config) for kind in KINDS
    ):
        parser.add_argument(
            f"--{name}", type=literal, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def sweep_fields() -> dict[str, Field]:
    """The fields of the group `sweep`, by dotted name."""
    return fields_of(SweepConfig, "sweep.")


def make_report_parser() -> argparse.ArgumentParser:
    """The flags of the report."""
    parser = Parser(
        prog="python -m yogo_jax.sweep report",
        description="What a sweep has found so far: a table here, and a page.",
    )
    parser.add_argument("study", type=path_flag, metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--output", type=path_flag, metavar="FILE.html", help="the page; default: DIR/report.html"
    )
    return parser


def check_overrides(overrides: Mapping[str, Any], space: SearchSpace) -> None:
    """Refuses a flag for a field that every trial chooses anew: it would change nothing.

    Raises:
      UserError: naming the field and the range that it is chosen from.
    """
    for parameter in space.parameters:
        field = parameter.field
        if field in with_current_names(overrides):
            values = " or ".join(map(as_text, parameter.values))
            if parameter.kind != "choice":
                values = f"{as_text(parameter.values[0])} to {as_text(parameter.values[1])}"
            raise UserError(
                f"--config.{field} would change nothing: each trial chooses this field from "
                f"config.sweep.space ({values}). Drop the flag; or, for one value in all trials, "
                f"take {field} out of the space, in your copy of the config file"
            )


def sweep(
    space: SearchSpace, study: Path, stop: Stop, *, stale_after: float, one: bool = False
) -> None:
    """Works on trials until the sweep is complete, or on one.

    Args:
      space: the sweep.
      study: its folder, the same for all tasks.
      stop: asks the task to stop.
      stale_after: seconds without a sign of life after which a trial is taken up again.
      one: work on one trial.

    Raises:
      UserError: study or data cannot be used.
    """
    with stop.end_at_once():
        start_jax()
        # Imported late: a mistake in a flag is told without waiting for JAX.
        from yogo_jax.sweeping.study import open_study
        from yogo_jax.sweeping.trial import check_data, run_task

    check_data(space)
    opened = open_study(study, space, stale_after=stale_after)
    run_task(opened, one=one, say=functools.partial(print, flush=True), stop=stop)


def report(study: Path, output: Path | None = None) -> Path:
    """Prints a table of the trials, writes the page, and returns its path.

    Args:
      study: folder of the sweep.
      output: the page; None writes report.html into the study.

    Raises:
      UserError: the folder holds no sweep, or the page cannot be written.
    """
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder: give the name of a file, as X.html")
    from yogo_jax.files import write_atomically
    from yogo_jax.sweeping.page import sweep_page
    from yogo_jax.sweeping.results import format_trials, read_results
    from yogo_jax.sweeping.study import load_study

    results = read_results(load_study(study, stale_after=STALE_AFTER_S))
    page = output or study / "report.html"
    try:
        write_atomically(page, sweep_page(results, page.parent))
    except OSError as error:
        raise UserError(f"--output {page}: cannot be written ({error.strerror})") from error
    print(format_trials(results))
    print(f"written {page}")
    return page


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["report"]:
        with as_command():
            args = make_report_parser().parse_args(arguments[1:])
            report(args.study, args.output)
        return
    with as_command():
        args = make_parser().parse_args(arguments)
        if args.study is None:
            raise UserError("no study given: add --study DIR, a folder for the sweep")
        if args.config is None:
            raise UserError(f"no config given: add --config {EXAMPLE}")
        if args.trials is not None and args.trials < 1:
            raise UserError(f"--trials must be 1 or more, got {args.trials}")
        if args.stale_after < 1:
            raise UserError(f"--stale-after must be 1 second or more, got {args.stale_after:g}")
    with exit_when_stopped() as stop:
        overrides = overrides_in(args)
        values = read_values(args.config, overrides, more_fields=sweep_fields(), example=EXAMPLE)
        if args.trials is not None and "sweep" in values:
            values["sweep"]["trials"] = args.trials
        space = read_space(values)
        check_overrides(overrides, space)
        sweep(space, args.study, stop, stale_after=args.stale_after, one=args.one)


if __name__ == "__main__":
    main()
