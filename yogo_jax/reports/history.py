"""Training curves of one run or of several, from the records of `metrics.jsonl`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from yogo_jax.checkpoint.metrics_file import rank
from yogo_jax.reports import plots
from yogo_jax.reports.pages import Figure


Records = Sequence[Mapping[str, Any]]
# A line of steps has at most so many points; with more steps each point is a mean.
MAX_POINTS = 200
MAX_MARKED_POINTS = 30


@dataclass(frozen=True)
class History:
    """The log of a run so far.

    Attributes:
      name: name of the run.
      records: objects of its `metrics.jsonl`, with "kind" and "step".
      keep_best: metric that chooses the best validation, `train.keep_best`.
    """

    name: str
    records: Records
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


Points = tuple[np.ndarray, np.ndarray]


class _Plot(NamedTuple):
    """A figure: its name, the label of its axis, its caption, and its lines by title."""

    name: str
    label: str
    caption: str
    lines: Sequence[tuple[str, Points]]
    logarithmic: bool = False


@dataclass(frozen=True)
class _Reader:
    """Reads lines from histories; the axis counts epochs, or steps."""

    in_epochs: bool

    def steps(self, history: History, field: str) -> Points:
        """Means over training steps."""
        return self._on_axis(history, _means(_values(history, "train", field)))

    def validations(self, history: History, field: str) -> Points:
        """Values of the validations."""
        return self._on_axis(history, _values(history, "validation", field))

    def rates(self, history: History) -> Points:
        """Learning rates of some steps: a mean would show rates that the run never had."""
        points = _values(history, "train", "learning_rate")
        return self._on_axis(history, points[:: -_window(len(points))][::-1])

    def _on_axis(self, history: History, points: Float[np.ndarray, "points 2"]) -> Points:
        unit = (history.steps_per_epoch or 1) if self.in_epochs else 1
        return points[:, 0] / unit, points[:, 1]


def history_figures(histories: Sequence[History]) -> list[Figure]:
    """Draws loss, mean AP and learning rate; several runs have one line each.

    The axis counts epochs if every run has finished an epoch, else steps. Runs without a step and
    empty figures are left out.
    """
    histories = [history for history in histories if history.last_step]
    if not histories:
        return []
    reader = _Reader(in_epochs=all(history.steps_per_epoch for history in histories))
    alone = len(histories) == 1
    all_plots = _plots_of_one(histories[0], reader) if alone else _plots_of_runs(histories, reader)
    figures = []
    for each in all_plots:
        drawn = [(title, points) for title, points in each.lines if len(points[0])]
        if drawn:
            axis = "epoch" if reader.in_epochs else "step"
            plot = _plot(drawn, axis, each.label, each.logarithmic)
            figures.append(Figure(plots.draw(f"history-{each.name}", plot), each.caption))
    return figures


def _plots_of_one(history: History, reader: _Reader) -> list[_Plot]:
    averaged = _averaged([history])
    loss = f"Loss of the training images{averaged}."
    if history.of_kind("validation"):
        loss = f"Loss of the training images{averaged} and of the validation images."
    loss += _tested([history], "loss")
    mean_ap = "Mean average precision of the validation images."
    mean_ap += _tested([history], "mAP50") + _tested([history], "mAP50_95")
    terms = f"Weighted terms of the training loss; the loss is their sum{averaged}."
    names = ("objectness", "box", "classification")
    losses = [
        ("training", reader.steps(history, "loss")),
        ("validation", reader.validations(history, "loss")),
    ]
    precisions = [
        ("mAP50", reader.validations(history, "mAP50")),
        ("mAP50-95", reader.validations(history, "mAP50_95")),
    ]
    rates = [("learning rate", reader.rates(history))]
    term_lines = [(name, reader.steps(history, name)) for name in names]
    return [
        _Plot("loss", "loss", loss, losses, logarithmic=True),
        _Plot("terms", "term of the loss", terms, term_lines, logarithmic=True),
        _Plot("map", "mean AP", mean_ap, precisions),
        _Plot("rate", "learning rate", "Learning rate.", rates),
    ]


def _plots_of_runs(histories: Sequence[History], reader: _Reader) -> list[_Plot]:
    def validations(name: str, label: str, caption: str, field: str) -> _Plot:
        lines = [(history.name, reader.validations(history, field)) for history in histories]
        caption = f"{caption} of the validation images.{_tested(histories, field)}"
        return _Plot(name, label, caption, lines, logarithmic=field == "loss")

    losses = [(history.name, reader.steps(history, "loss")) for history in histories]
    rates = [(history.name, reader.rates(history)) for history in histories]
    caption = f"Training loss{_averaged(histories)}."
    return [
        _Plot("train", "training loss", caption, losses, logarithmic=True),
        validations("validation", "validation loss", "Loss", "loss"),
        validations("map", "mAP50", "mAP50", "mAP50"),
        validations("map-all", "mAP50-95", "mAP50-95", "mAP50_95"),
        _Plot("rate", "learning rate", "Learning rate.", rates),
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


def _plot(
    lines: Sequence[tuple[str, Points]], axis: str, label: str, logarithmic: bool
) -> Callable[[Any], None]:
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
        if logarithmic and all((y > 0).all() for _, (_, y) in lines):
            plots.use_log_scale(axes, "y")
        plots.use_whole_numbers(axes, "x")
        axes.set_xlabel(axis)
        axes.set_ylabel(label)

    return plot
