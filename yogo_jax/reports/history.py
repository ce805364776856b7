"""The logs of runs, also while they train: read from their workdirs, drawn, and shown on a page.

First stand the log and the workdir of a run, then the training curves of one run or of several,
then the page of `yogo-jax report`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from yogo_jax.checkpoint.metrics_file import rank, read_metrics
from yogo_jax.config.fields import flat, with_current_names
from yogo_jax.errors import UserError
from yogo_jax.files import read_json
from yogo_jax.reports import plots
from yogo_jax.reports.pages import Block, Code, Figure, Section, Table, Text, link_to, render_page
from yogo_jax.reports.tables import note_on_earlier_versions


NOTHING_LOGGED = "nothing is logged yet"
# A line of steps has at most so many points; with more steps each point is a mean.
MAX_POINTS = 200
MAX_MARKED_POINTS = 30

Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class History:
    """The log of a run so far.

    Attributes:
      name: name of the run.
      records: objects of its `metrics.jsonl`, with "kind" and "step".
      keep_best: metric that chooses the best validation, `train.keep_best`.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    keep_best: str = "loss"

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Returns the records of one kind: "train", "validation" or "test"."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def last_step(self) -> int:
        """Number of updates so far."""
        return max((int(record["step"]) for record in self.of_kind("train")), default=0)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch; None during the first epoch."""
        for record in self.of_kind("validation"):
            if record["epoch"]:
                return int(record["step"]) // int(record["epoch"])
        first = [int(each["step"]) for each in self.of_kind("train") if each["epoch"] == 1]
        later = [int(each["step"]) for each in self.of_kind("train") if each["epoch"] > 1]
        return max(first) if first and later else None

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The validation whose checkpoint is tested; None without a validation."""
        return min(
            self.of_kind("validation"),
            key=lambda record: rank(record, self.keep_best, record["step"]),
            default=None,
        )


@dataclass(frozen=True)
class LoggedRun:
    """A run as its workdir records it.

    Attributes:
      workdir: the folder.
      config: fields of the config.
      history: the log.
      test: test metrics; None before the test, and while the run continues after a test.
    """

    workdir: Path
    config: Mapping[str, Any]
    history: History
    test: Mapping[str, Any] | None

    @property
    def state(self) -> str:
        """State as text: nothing logged, unfinished with its progress, trained, or finished."""
        epochs, steps = self.config["train"]["epochs"], self.history.steps_per_epoch
        if not self.history.last_step:
            return NOTHING_LOGGED
        if self.test is not None:
            return "finished"
        if not steps:
            return f"unfinished: step {self.history.last_step} of epoch 1 of {epochs}"
        done = self.history.last_step / steps
        return "trained" if done >= epochs else f"unfinished: epoch {done:.1f} of {epochs}"


def read_run(workdir: Path, name: str) -> LoggedRun:
    """Reads the workdir of a run; a line of the log that is just being written is left out.

    Args:
      workdir: workdir of the run.
      name: name under which the run is shown.

    Raises:
      UserError: the folder is no workdir, or one of its files is damaged.
    """
    if not (workdir / "config.json").is_file():
        found = "no config.json in it" if workdir.is_dir() else "no such folder"
        raise UserError(f"{workdir}: expected the workdir of a run, found {found}")
    config = _read_fields(workdir / "config.json", ("train",))
    if not isinstance(config["train"], dict) or "epochs" not in config["train"]:
        raise UserError(f"{workdir / 'config.json'}: expected train.epochs; is it of a run?")
    records = read_metrics(workdir / "metrics.jsonl")
    keep_best = config["train"].get("keep_best", "loss")
    history = History(name, [each for each in records if _is_record(each)], keep_best)
    if len(history.records) < len(records):
        raise UserError(
            f"{workdir / 'metrics.jsonl'}: expected objects with 'kind', 'step' and 'epoch', found "
            "others: is it of this version?"
        )
    test_file = workdir / "test" / "metrics.json"
    test = _read_fields(test_file, ("mAP50", "test_loss")) if test_file.exists() else None
    # A run that continues removes the test from its log: the file is of an earlier checkpoint.
    return LoggedRun(workdir, config, history, test if history.of_kind("test") else None)


def _is_record(record: object) -> bool:
    if not isinstance(record, Mapping) or not {"kind", "step"} <= record.keys():
        return False
    return record["kind"] in ("start", "test") or {"epoch", "loss"} <= record.keys()


def _read_fields(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict) or not set(fields) <= values.keys():
        raise UserError(f"{path}: expected an object with {', '.join(fields)}; is it of a run?")
    return values


def names_of(workdirs: Sequence[Path]) -> list[str]:
    """Returns names for runs: the names of their folders, or the paths if two names are equal."""
    names = [workdir.resolve().name for workdir in workdirs]
    shared = {name for name in names if names.count(name) > 1}
    return [
        str(workdir) if name in shared else name
        for name, workdir in zip(names, workdirs, strict=True)
    ]


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Returns the fields in which configs differ, with each value; None for a missing field."""
    all_fields = [flat(with_current_names(config)) for config in configs]
    names = list(dict.fromkeys(name for each in all_fields for name in each))
    rows = [(name, [each.get(name) for each in all_fields]) for name in names]
    return [(name, values) for name, values in rows if any(each != values[0] for each in values)]


class _Plot(NamedTuple):
    """A figure of the page; each line is a title, a history, and the kind and field of records."""

    name: str
    label: str
    caption: str
    lines: Sequence[tuple[str, History, str, str]]


def history_figures(histories: Sequence[History]) -> list[Figure]:
    """Draws loss, mean AP and learning rate; several runs have one line each.

    The axis counts epochs if every run has finished an epoch, else steps. Runs without a step and
    empty figures are left out.
    """
    histories = [history for history in histories if history.last_step]
    if not histories:
        return []
    in_epochs = all(history.steps_per_epoch for history in histories)
    figures = []
    for each in _plots_of_one(histories[0]) if len(histories) == 1 else _plots_of_runs(histories):
        lines = [
            (title, _points(history, kind, field, in_epochs))
            for title, history, kind, field in each.lines
        ]
        drawn = [(title, points) for title, points in lines if len(points[0])]
        if drawn:
            plot = _plot(drawn, "epoch" if in_epochs else "step", each.label)
            figures.append(Figure(plots.draw(f"history-{each.name}", plot), each.caption))
    return figures


def _plots_of_one(history: History) -> list[_Plot]:
    averaged = _averaged([history])
    validations = " and of the validation images" if history.of_kind("validation") else ""
    loss = f"Loss of the training images{averaged}{validations}.{_tested([history], 'loss')}"
    mean_ap = "Mean average precision of the validation images."
    mean_ap += _tested([history], "mAP50") + _tested([history], "mAP50_95")
    terms = f"Weighted terms of the training loss; the loss is their sum{averaged}."
    names = ("objectness", "box", "classification")
    losses = [("training", history, "train", "loss"), ("validation", history, "validation", "loss")]
    precisions = [
        ("mAP50", history, "validation", "mAP50"),
        ("mAP50-95", history, "validation", "mAP50_95"),
    ]
    rates = [("learning rate", history, "train", "learning_rate")]
    return [
        _Plot("loss", "loss", loss, losses),
        _Plot(
            "terms", "term of the loss", terms, [(name, history, "train", name) for name in names]
        ),
        _Plot("map", "mean AP", mean_ap, precisions),
        _Plot("rate", "learning rate", "Learning rate.", rates),
    ]


def _plots_of_runs(histories: Sequence[History]) -> list[_Plot]:
    def plot(name: str, label: str, caption: str, kind: str, field: str) -> _Plot:
        return _Plot(name, label, caption, [(each.name, each, kind, field) for each in histories])

    def validations(name: str, label: str, caption: str, field: str) -> _Plot:
        caption = f"{caption} of the validation images.{_tested(histories, field)}"
        return plot(name, label, caption, "validation", field)

    loss = f"Training loss{_averaged(histories)}."
    return [
        plot("train", "training loss", loss, "train", "loss"),
        validations("validation", "validation loss", "Loss", "loss"),
        validations("map", "mAP50", "mAP50", "mAP50"),
        validations("map-all", "mAP50-95", "mAP50-95", "mAP50_95"),
        plot("rate", "learning rate", "Learning rate.", "train", "learning_rate"),
    ]


def _averaged(histories: Sequence[History]) -> str:
    """Text for a caption: the number of steps that each point is the mean of."""
    windows = {each.name: _window(len(each.of_kind("train"))) for each in histories}
    sizes = set(windows.values())
    if sizes == {1}:
        return ""
    if len(sizes) == 1:
        return f" (each point is the mean of {sizes.pop()} steps)"
    each = ", ".join(f"{name} {size}" for name, size in windows.items())
    return f" (each point is the mean of several steps: {each})"


def _tested(histories: Sequence[History], keep_best: str) -> str:
    """Text for a caption: which checkpoint is tested, if the figure shows its metric."""
    those = [each for each in histories if each.keep_best == keep_best and each.best is not None]
    if not those:
        return ""
    which = "lowest loss" if keep_best == "loss" else f"highest {keep_best.replace('_', '-')}"
    names = ", ".join(each.name for each in those)
    whose = "" if len(those) == len(histories) else f" of {names}"
    return f" The checkpoint with the {which}{whose} is tested."


def _points(history: History, kind: str, field: str, in_epochs: bool) -> Points:
    """A line on the axis of the page: means over training steps, or values of validations."""
    points = _values(history, kind, field)
    if field == "learning_rate":
        # A mean would show rates that the run never had.
        points = points[:: -_window(len(points))][::-1]
    elif kind == "train":
        points = _means(points)
    unit = (history.steps_per_epoch or 1) if in_epochs else 1
    return points[:, 0] / unit, points[:, 1]


def _values(history: History, kind: str, field: str) -> Float[np.ndarray, "points 2"]:
    """Steps and finite values of a field, as two columns."""
    records = history.of_kind(kind)
    pairs = [(each["step"], each[field]) for each in records if each.get(field) is not None]
    points = np.array(pairs, np.float64).reshape(-1, 2)
    return points[np.isfinite(points).all(1)]


def _window(points: int) -> int:
    """Number of points that become one, so that no more than MAX_POINTS are left."""
    return max(1, math.ceil(points / MAX_POINTS))


def _means(points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "means 2"]:
    """Means over windows of equal length; the last window ends at the last point.

    It may share points with the window before it, because a shorter window would be noisier.
    """
    size = _window(len(points))
    if size == 1:
        return points
    starts = np.append(np.arange(0, len(points) - size, size), len(points) - size)
    return np.array([points[start : start + size].mean(0) for start in starts])


def _plot(lines: Sequence[tuple[str, Points]], axis: str, label: str) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        for index, (name, (x, y)) in enumerate(lines):
            marked = len(x) <= MAX_MARKED_POINTS
            axes.plot(
                x,
                y,
                label=plots.shortened(name) if len(lines) > 1 else None,
                marker=plots.MARKERS[index % len(plots.MARKERS)] if marked else "",
                markersize=4,
                **plots.series_style(index),
            )
        # A loss falls by orders of magnitude. A logarithmic axis has no 0.
        if "loss" in label and all((y > 0).all() for _, (_, y) in lines):
            plots.use_log_scale(axes, "y")
        plots.use_whole_numbers(axes, "x")
        axes.set(xlabel=axis, ylabel=label)

    return plot


def runs_page(runs: Sequence[LoggedRun], folder: Path) -> str:
    """Returns the page as HTML for a file in `folder`; its links are relative to this folder."""
    names = [run.history.name for run in runs]
    links: list[Block] = []
    for run in runs:
        page = run.workdir / "test" / "report.html"
        if run.test is not None and page.exists():
            links.append(link_to(f"Report of the test of {run.history.name}", page, folder))
    training: list[Block] = []
    silent = [run.history.name for run in runs if not run.history.last_step]
    if silent:
        training.append(Text(f"Nothing is logged yet, so no line is drawn: {', '.join(silent)}."))
    training += history_figures([run.history for run in runs])
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
        table = Table(["field", *names], different, caption)
        sections.append(Section("differences", "Differences", [table]))
    configs = [
        Code(f"Config of {run.history.name}", json.dumps(run.config, indent=2)) for run in runs
    ]
    sections.append(Section("config", "Config", configs))
    if len(runs) > 1:
        return render_page(f"{len(runs)} runs", ", ".join(names), sections)
    return render_page(f"Run {names[0]}", runs[0].state, sections)


def _metrics_table(runs: Sequence[LoggedRun]) -> Table:
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


def _test_table(runs: Sequence[LoggedRun]) -> Table | None:
    """Test metrics, a column for each run that has some."""
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
    # Earlier versions had this protocol only, under the plain name.
    originals = [test.get("mAP50_original", test["mAP50"]) for _, test in tested]
    rows.append(["mAP50 by the original's protocol", *originals])
    for title, key in (
        ("AP50", "AP50_by_class"),
        ("precision", "precision_by_class"),
        ("recall", "recall_by_class"),
    ):
        by_class = [test.get(key, {}) for _, test in tested]
        for name in dict.fromkeys(name for each in by_class for name in each):
            rows.append([f"{title} of {name}", *(each.get(name) for each in by_class)])
    header = ["metric", *(name for name, _ in tested)]
    caption = "Metrics of the best checkpoints on the test images."
    return Table(header, rows, caption + note_on_earlier_versions(dict(tested)))
