"""Shows what runs have logged, also while they train.

    python -m yogo_jax.report RUN [RUN ...]

Writes one HTML page: training curves of all runs in the same figures, their metrics, and the fields
in which their configs differ.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yogo_jax.errors import UserError, exit_on_user_error


if TYPE_CHECKING:
    from yogo_jax.evaluation.history import History
    from yogo_jax.evaluation.pages import Section


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m yogo_jax.report",
        description="One HTML page of what runs have logged so far: curves, metrics, configs.",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="workdir of a run, finished or not")
    add(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page; default: report.html in the workdir, of several runs in this folder",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuses runs given twice, and a place for the page that is a folder.

    Raises:
      UserError: naming what is wrong.
    """
    places = [run.resolve() for run in args.runs]
    twice = [str(run) for run in args.runs if places.count(run.resolve()) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: give each run once")
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder: give the name of a file, as X.html")


@dataclass(frozen=True)
class Run:
    """What a workdir holds.

    Attributes:
      workdir: where.
      config: fields of the run.
      history: what it logged.
      test: its test metrics, None before its test.
    """

    workdir: Path
    config: Mapping[str, Any]
    history: "History"
    test: Mapping[str, Any] | None

    @property
    def state(self) -> str:
        """Whether it is finished, and how far it is."""
        epochs, done = self.config["train"]["epochs"], self.epochs_done
        if self.test is not None and self.history.of_kind("test"):
            return "finished"
        if done is None:
            return f"unfinished: step {self.history.last_step} of epoch 1 of {epochs}"
        return "trained" if done >= epochs else f"unfinished: epoch {done:.1f} of {epochs}"

    @property
    def epochs_done(self) -> float | None:
        """Epochs behind it; None while the first is not over."""
        steps = self.history.steps_per_epoch
        return self.history.last_step / steps if steps else None


def read_run(workdir: Path, name: str) -> Run:
    """What a run has left so far; a line that is just being written is left out.

    Args:
      workdir: of the run.
      name: under which it is shown.

    Raises:
      UserError: it is no workdir, has logged nothing yet, or one of its files is damaged.
    """
    from yogo_jax.evaluation.history import History
    from yogo_jax.training.tracking import read_metrics

    if not (workdir / "config.json").is_file():
        found = "no config.json in it" if workdir.is_dir() else "no such folder"
        raise UserError(f"{workdir}: expected the workdir of a run, found {found}")
    config = _read_json(workdir / "config.json", ("train", "data"))
    records = read_metrics(workdir / "metrics.jsonl")
    history = History(name, [each for each in records if _is_record(each)])
    if len(history.records) < len(records):
        raise UserError(
            f"{workdir / 'metrics.jsonl'}: expected objects with 'kind', 'step' and 'epoch', found "
            "others: is it of this version?"
        )
    if not history.of_kind("train"):
        raise UserError(
            f"{workdir}: nothing is logged yet in metrics.jsonl; ask again after the first steps"
        )
    test_file = workdir / "test" / "metrics.json"
    test = _read_json(test_file, ("mAP50", "test_loss")) if test_file.exists() else None
    return Run(workdir, config, history, test)


def _is_record(record: object) -> bool:
    if not isinstance(record, Mapping) or not {"kind", "step"} <= record.keys():
        return False
    return record["kind"] == "test" or {"epoch", "loss"} <= record.keys()


def _read_json(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict) or not set(fields) <= values.keys():
        raise UserError(f"{path}: expected an object with {', '.join(fields)}; is it of a run?")
    return values


def names_of(workdirs: Sequence[Path]) -> list[str]:
    """Names of the runs: of their folders, or their paths where two folders share a name."""
    names = [workdir.resolve().name for workdir in workdirs]
    shared = {name for name in names if names.count(name) > 1}
    return [
        str(workdir) if name in shared else name
        for name, workdir in zip(names, workdirs, strict=True)
    ]


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Fields in which configs differ, with the value of each config; None where it has none."""
    flat = [_flat(config) for config in configs]
    fields = list(dict.fromkeys(name for each in flat for name in each))
    rows = [(name, [each.get(name) for each in flat]) for name in fields]
    return [(name, values) for name, values in rows if any(each != values[0] for each in values)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def sections_of(runs: Sequence[Run], folder: Path) -> "list[Section]":
    """The page from top to bottom; links are relative to the folder that it lies in."""
    from yogo_jax.evaluation.history import history_figures
    from yogo_jax.evaluation.pages import Block, Code, Link, Section, Table

    links: list[Block] = []
    for run in runs:
        page = run.workdir / "test" / "report.html"
        if page.exists():
            address = Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
            links.append(Link(f"Report of the test of {run.history.name}", address))
    sections = [
        Section("runs", "Runs", [_metrics_table(runs), *links]),
        Section("training", "Training", history_figures([run.history for run in runs])),
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


def _metrics_table(runs: Sequence[Run]) -> Any:
    from yogo_jax.evaluation.pages import Table

    header = ["run", "state", "steps", "best loss", "at step", "its mAP50", "last loss"]
    header += ["last mAP50", "test mAP50"]
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
        "Losses and mAP50 of the validation images; best: of the lowest loss, which is tested."
    )
    return Table(header, rows, caption)


def _test_table(runs: Sequence[Run]) -> Any:
    """Test metrics, a column for each run that has some."""
    from yogo_jax.evaluation.pages import Table

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


def report(args: argparse.Namespace) -> Path:
    """Writes the page and returns where.

    Raises:
      UserError: a run cannot be read, or the page not be written.
    """
    # Imported late: a mistake in a flag is told without waiting for JAX.
    from yogo_jax.evaluation.pages import render_page
    from yogo_jax.output.files import write_atomically

    names = names_of(args.runs)
    runs = [read_run(workdir, name) for workdir, name in zip(args.runs, names, strict=True)]
    alone = len(runs) == 1
    output: Path = args.output or (runs[0].workdir if alone else Path()) / "report.html"
    title = f"Run {names[0]}" if alone else f"{len(runs)} runs"
    subtitle = runs[0].state if alone else ", ".join(names)
    html = render_page(title, subtitle, sections_of(runs, output.parent))
    try:
        write_atomically(output, html)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror})") from error
    for run in runs:
        print(f"{run.history.name}: {run.state}")
    print(f"written {output}")
    return output


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    with exit_on_user_error():
        check(args)
        report(args)


if __name__ == "__main__":
    main()
