"""Shows the log of runs, also while they train.

    yogo-jax report RUN [RUN ...]

Writes one HTML page: the training curves of all runs in the same figures, their metrics, and the
fields in which their configs differ.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
from collections.abc import Sequence
from pathlib import Path

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.report",
        description="One HTML page of what runs have logged so far: curves, metrics, configs.",
    )
    add = parser.add_argument
    add("runs", type=path_flag, nargs="+", metavar="RUN", help="workdir of a run, finished or not")
    add(
        "--output",
        type=path_flag,
        metavar="FILE.html",
        help="the page; default: report.html in the workdir, of several runs in this folder",
    )
    return parser


def report(workdirs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page and returns its path.

    Args:
      workdirs: of runs, finished or not.
      output: the page; None: report.html in the workdir, of several runs in the current folder.

    Raises:
      UserError: a run is given twice or cannot be read, none has logged anything, or the page
        cannot be written.
    """
    places = [run.resolve() for run in workdirs]
    twice = [str(run) for run in workdirs if places.count(run.resolve()) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: give each run once")
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder: give the name of a file, as X.html")
    # Imported late: a mistake in a flag is told at once.
    from yogo_jax.files import write_atomically
    from yogo_jax.reports.history import NOTHING_LOGGED, names_of, read_run, runs_page

    names = names_of(workdirs)
    runs = [read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]
    if not any(run.history.last_step for run in runs):
        raise UserError(
            f"{', '.join(map(str, workdirs))}: {NOTHING_LOGGED} in metrics.jsonl; ask again after "
            "the first steps"
        )
    path = output or (runs[0].workdir if len(runs) == 1 else Path()) / "report.html"
    try:
        write_atomically(path, runs_page(runs, path.parent))
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from error
    for run in runs:
        print(f"{run.history.name}: {run.state}")
    print(f"written {path}")
    return path


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        report(args.runs, args.output)


if __name__ == "__main__":
    main()
