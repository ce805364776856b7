"""Shows the log of runs, also while they train.

    python -m yogo_jax.report RUN [RUN ...]

Writes one HTML page: the training curves of all runs in the same figures, their metrics, and the
fields in which their configs differ.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError
from yogo_jax.files import path_flag


if TYPE_CHECKING:
    from yogo_jax.reports.pages import Section, Table
    from yogo_jax.reports.runs import LoggedRun


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


def sections_of(runs: "Sequence[LoggedRun]", folder: Path) -> "list[Section]":
    """The page from top to bottom; links are relative to the folder that it lies in."""
    from yogo_jax.reports.history import history_figures
    from yogo_jax.reports.pages import Block, Code, Link, Section, Table, Text
    from yogo_jax.reports.runs import differing_fields

    links: list[Block] = []
    for run in runs:
        page = run.workdir / "test" / "report.html"
        if run.test is not None and page.exists():
            address = Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
            links.append(Link(f"Report of the test of {run.history.name}", address))
    figures = history_figures([run.history for run in runs])
    silent = [run.history.name for run in runs if not run.history.last_step]
    training: list[Block] = [*figures]
    if silent:
        training.insert(
            0, Text(f"Nothing is logged yet, so no line is drawn: {', '.join(silent)}.")
        )
    sections = [
        Section("runs", "Runs", [_metrics_table(runs), *links]),
        Section("training", "Training", training),
    ]
    tests = _test_table(runs)
    if tests is not None:
        sections.append(Section("test", "Test", [tests]))
    if len(runs) > 1:
        different = [
            [name, *(None if value is None else json.dumps(value) for value in values)]
            for name, values in differing_fields([run.config for run in runs])
        ]
        caption = "Fields of the configs that are not the same in all runs."
        if not different:
            caption = "The configs of these runs are the same."
        header = ["field", *(run.history.name for run in runs)]
        sections.append(Section("differences", "Differences", [Table(header, different, caption)]))
    configs = [
        Code(f"Config of {run.history.name}", json.dumps(run.config, indent=2)) for run in runs
    ]
    return [*sections, Section("config", "Config", configs)]


def _metrics_table(runs: "Sequence[LoggedRun]") -> "Table":
    from yogo_jax.reports.pages import Table

    header = ["run", "state", "steps", "loss of the best", "at step", "its mAP50"]
    header += ["last loss", "last mAP50", "test mAP50"]
    rows: list[list[object]] = []
    for run in runs:
        best = run.history.best or {}
        last = (run.history.of_kind("validation") or [{}])[-1]
        rows.append(
            [
                run.history.name,
                run.state,
                run.history.last_step,
                *(best.get(key) for key in ("loss", "step", "mAP50")),
                *(last.get(key) for key in ("loss", "mAP50")),
                None if run.test is None else run.test["mAP50"],
            ]
        )
    caption = (
        "Losses and mAP50 of the validation images; best: by train.keep_best, which is tested."
    )
    return Table(header, rows, caption)


def _test_table(runs: "Sequence[LoggedRun]") -> "Table | None":
    """Test metrics, a column for each run that has some."""
    from yogo_jax.reports.pages import Table

    tested = [(run.history.name, run.test) for run in runs if run.test is not None]
    if not tested:
        return None
    rows: list[list[object]] = []
    totals = (
        ("mAP50", "mAP50"),
        ("mAP50-95", "mAP50_95"),
        ("test loss", "test_loss"),
        ("calibration error", "calibration_error"),
        ("images", "images"),
        ("true boxes", "objects"),
    )
    for title, key in totals:
        rows.append([title, *(test.get(key) for _, test in tested)])
    for title, key in (
        ("AP50", "AP50_by_class"),
        ("precision", "precision_by_class"),
        ("recall", "recall_by_class"),
    ):
        by_class = [test.get(key, {}) for _, test in tested]
        for name in dict.fromkeys(name for each in by_class for name in each):
            rows.append([f"{title} of {name}", *(each.get(name) for each in by_class)])
    header = ["metric", *(name for name, _ in tested)]
    return Table(header, rows, "Metrics of the best checkpoints on the test images.")


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
    from yogo_jax.reports.pages import render_page
    from yogo_jax.reports.runs import NOTHING_LOGGED, names_of, read_run

    names = names_of(workdirs)
    runs = [read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]
    if not any(run.history.last_step for run in runs):
        raise UserError(
            f"{', '.join(map(str, workdirs))}: {NOTHING_LOGGED} in metrics.jsonl; ask again after "
            "the first steps"
        )
    alone = len(runs) == 1
    path = output or (runs[0].workdir if alone else Path()) / "report.html"
    title = f"Run {names[0]}" if alone else f"{len(runs)} runs"
    subtitle = runs[0].state if alone else ", ".join(names)
    html = render_page(title, subtitle, sections_of(runs, path.parent))
    try:
        write_atomically(path, html)
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
