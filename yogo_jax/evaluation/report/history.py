"""Training curves of one run or of several, from the records of `metrics.jsonl`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yogo_jax.evaluation import plots
from yogo_jax.evaluation.best import rank
from yogo_jax.evaluation.pages import Figure


Records = Sequence[Mapping[str, Any]]
# Points of a line; the loss of more steps is averaged over neighbours.
MAX_POINTS = 200
MAX_MARKED_POINTS = 30


@dataclass(frozen=True)
class History:
    """What a run has logged so far.

    Attributes:
      name: of the run.
      records: objects of its `metrics.jsonl`, with "kind" and "step".
      keep_best: the metric of its best validation, `train.keep_best`.
    """

    name: str
    records: Records
    keep_best: str = "loss"

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The records of "train", "validation" or "test"."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def last_step(self) -> int:
        """Updates made so far."""
        return max((int(record["step"]) for record in self.of_kind("train")), default=0)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch, None while the first is not over."""
        for record in self.of_kind("validation"):
            if record["epoch"]:
                return int(record["step"]) // int(record["epoch"])
        first = [int(each["step"]) for each in self.of_kind("train") if each["epoch"] == 1]
        later = [int(each["step"]) for each in self.of_kind("train") if each["epoch"] > 1]
        return max(first) if first and later else None

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The validation whose checkpoint is tested."""
        return min(
            self.of_kind("validation"),
            key=lambda record: rank(record, self.keep_best, record["step"]),
            default=None,
        )


Points = tuple[np.ndarray, np.ndarray]


def history_figures(histories: Sequence[History]) -> list[Figure]:
    """Figures of loss, mean AP and learning rate; of several runs, one line each.

    The axis counts epochs if an epoch of every run is over, else steps. A figure that would be
    empty is left out.
    """
    in_epochs = all(history.steps_per_epoch for history in histories)
    axis = "epoch" if in_epochs else "step"

    def series(history: History, kind: str, field: str) -> Points:
        scale = (history.steps_per_epoch or 1) if in_epochs else 1
        return _points(history.of_kind(kind), field, scale)

    if len(histories) == 1:
        lines = _lines_of_one(histories[0], series)
    else:
        lines = _lines_of_several(histories, series)
    figures = []
    for name, label, logarithmic, caption, named in lines:
        drawn = [(title, points) for title, points in named if len(points[0])]
        if drawn:
            plot = _plot(drawn, axis, label, logarithmic)
            figures.append(Figure(plots.draw(f"history-{name}", plot), caption))
    return figures


# Name of a figure, label of its axis, whether that is logarithmic, caption, and its lines.
_Lines = list[tuple[str, str, bool, str, list[tuple[str, Points]]]]
_Series = Callable[[History, str, str], Points]


def _lines_of_one(history: History, series: _Series) -> _Lines:
    terms = ("objectness", "box", "classification")
    return [
        (
            "loss",
            "loss",
            True,
            "Loss: of the training images, averaged over neighbouring steps, and of the validation "
            "images.",
            [
                ("training", series(history, "train", "loss")),
                ("validation", series(history, "validation", "loss")),
            ],
        ),
        (
            "terms",
            "term of the loss",
            True,
            "The weighted terms of the training loss, whose sum it is.",
            [(term, series(history, "train", term)) for term in terms],
        ),
        (
            "map",
            "mean AP",
            False,
            "Mean average precision of the validation images.",
            [
                ("mAP50", series(history, "validation", "mAP50")),
                ("mAP50-95", series(history, "validation", "mAP50_95")),
            ],
        ),
        (
            "rate",
            "learning rate",
            False,
            "Learning rate.",
            [("learning rate", series(history, "train", "learning_rate"))],
        ),
    ]


def _lines_of_several(histories: Sequence[History], series: _Series) -> _Lines:
    def each(kind: str, field: str) -> list[tuple[str, Points]]:
        return [(history.name, series(history, kind, field)) for history in histories]

    return [
        (
            "train",
            "training loss",
            True,
            "Training loss, averaged over neighbouring steps.",
            each("train", "loss"),
        ),
        (
            "validation",
            "validation loss",
            True,
            "Loss of the validation images; the checkpoint of the lowest is tested.",
            each("validation", "loss"),
        ),
        ("map", "mAP50", False, "mAP50 of the validation images.", each("validation", "mAP50")),
        (
            "map-all",
            "mAP50-95",
            False,
            "mAP50-95 of the validation images.",
            each("validation", "mAP50_95"),
        ),
        ("rate", "learning rate", False, "Learning rate.", each("train", "learning_rate")),
    ]


def _points(records: Records, field: str, scale: int) -> Points:
    """Steps divided by the scale, and values; means of neighbours if there are very many."""
    pairs = [(each["step"], each[field]) for each in records if each.get(field) is not None]
    finite = np.array(pairs, np.float64).reshape(-1, 2)
    finite = finite[np.isfinite(finite).all(1)]
    groups = np.array_split(finite, min(len(finite), MAX_POINTS)) if len(finite) else []
    means = np.array([group.mean(0) for group in groups]).reshape(-1, 2)
    return means[:, 0] / scale, means[:, 1]


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
        # A loss falls by orders of magnitude; zero has no place on such an axis.
        if logarithmic and all((y > 0).all() for _, (_, y) in lines):
            plots.use_log_scale(axes, "y")
        axes.set_xlabel(axis)
        axes.set_ylabel(label)

    return plot
