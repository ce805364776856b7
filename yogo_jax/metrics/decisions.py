"""Thresholds of classes, chosen on labelled frames for what a user asks of a network.

The thresholds of all classes decide together (see `detector.detections.Thresholds`): a box counts
as class c from threshold t on if t is at most its score of c, divided by the largest ratio of score
and threshold among the other classes where that is above 1. So, the others given, each class is
one ranking, and the classes take turns.

References:
  van Rijsbergen 1979, Information Retrieval, chapter 7 (F measure).
  Egan, Greenberg and Schulman 1961, Operating characteristics determined by the free-response
  method, JASA 33:993-1007 (false positives per amount of material looked at).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from yogo_jax.detector.boxes import iou
from yogo_jax.detector.detections import Thresholds, decide, passes
from yogo_jax.metrics.calibration import at_temperature
from yogo_jax.metrics.evaluator import MEAN_AP_OBJECTNESS, ImageResult


MIN_IOU = 0.5
# Scores below it are not all known: evaluations keep no box under this objectness.
_LEAST = MEAN_AP_OBJECTNESS
# No score reaches it.
_ABOVE_ALL = 1.01
# Turns of all classes; most choices stay the same after a few.
_ROUNDS = 20


class Goal(NamedTuple):
    """The goal that thresholds of classes are chosen for.

    Attributes:
      name: "count": as many boxes of each class as there are true ones. "f1": the largest sum of
        the classes' F1. "screening": the least thresholds at which no class but the most frequent
        (the red cells, at their best F1) has more false positives than allowed. "precision": the
        least thresholds with a precision, where a class reaches it, else its best F1.
      false_positives: allowed by screening per 1,000,000 red cells, rounded down to those there.
      precision: of the goal of that name, in (0, 1].
    """

    name: Literal["count", "f1", "screening", "precision"]
    false_positives: float = 1000.0
    precision: float = 0.95

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that belong to the goal, by name."""
        fields = {"screening": "false_positives", "precision": "precision"}
        return {fields[self.name]: getattr(self, fields[self.name])} if self.name in fields else {}

    def allowed_false_positives(self, red_cells: int) -> int:
        """False positives of a class among so many red cells."""
        return math.floor(self.false_positives * red_cells / 1e6)


class Candidates(NamedTuple):
    """The n boxes of an evaluation that may count, and what they are in truth.

    Attributes:
      objectness: of each.
      class_probs: probability of each of the k classes.
      true_ids: class of the true box that each finds; -1 if it finds none.
      objects: true boxes of each class.
    """

    objectness: Float[np.ndarray, " n"]
    class_probs: Float[np.ndarray, "n k"]
    true_ids: Int[np.ndarray, " n"]
    objects: Int[np.ndarray, " k"]

    @property
    def red_cells(self) -> int:
        """True boxes of the most frequent class."""
        return int(self.objects.max())


class Tally(NamedTuple):
    """Boxes of each of k classes that count, and how many of them find a true box of it."""

    predicted: Int[np.ndarray, " k"]
    right: Int[np.ndarray, " k"]


def candidates_of(
    images: Sequence[ImageResult], classes: int, temperature: float = 1.0
) -> Candidates:
    """The candidates of all images.

    Args:
      images: of an evaluation.
      classes: how many there are.
      temperature: by which class logits are divided anew; 1 leaves the probabilities as they are.
    """
    ranked = [image.ranked for image in images]
    probs = np.concatenate(
        [np.zeros((0, classes), np.float32), *(each.class_probs for each in ranked)]
    )
    if temperature != 1:
        probs = at_temperature(probs, temperature).astype(np.float32)
    labels = np.concatenate([np.zeros(0, np.int64), *(each.label_class_ids for each in images)])
    return Candidates(
        np.concatenate([np.zeros(0, np.float32), *(each.objectness for each in ranked)]),
        probs,
        np.concatenate([np.zeros(0, np.int64), *map(_true_ids, images)]),
        np.bincount(labels.astype(np.int64), minlength=classes),
    )


def _true_ids(image: ImageResult) -> Int[np.ndarray, " n"]:
    """The class of the true box that each ranked box finds: the surest chooses first."""
    boxes, labels = image.ranked.boxes_xyxy, image.label_boxes_xyxy
    true_ids = np.full(len(boxes), -1)
    if not len(labels):
        return true_ids
    overlap = iou(boxes.astype(np.float64)[:, None], labels.astype(np.float64)[None])
    for row in np.argsort(-image.ranked.class_scores.max(1), kind="stable"):
        column = overlap[row].argmax()
        if overlap[row, column] >= MIN_IOU:
            true_ids[row] = image.label_class_ids[column]
            overlap[:, column] = 0  # which is taken
    return true_ids


def tally(candidates: Candidates, class_thresholds: Sequence[float]) -> Tally:
    """Counts the candidates by the rule of the thresholds."""
    at = Thresholds.of_classes(class_thresholds)
    boxes = candidates.objectness, candidates.class_probs
    class_ids, counts = decide(*boxes, at.class_thresholds), passes(*boxes, at)
    right = counts & (class_ids == candidates.true_ids)
    classes = len(candidates.objects)
    return Tally(*(np.bincount(class_ids[each], minlength=classes) for each in (counts, right)))


def choose_thresholds(candidates: Candidates, goal: Goal) -> tuple[float, ...]:
    """The threshold of each class for a goal.

    They lie halfway between neighbouring scores, so that small rounding changes no choice. A class
    without a true box has the threshold of the most frequent class.

    Args:
      candidates: of labelled frames that the network was not trained on.
      goal: what they are chosen for.

    Raises:
      ValueError: there is no true box.
    """
    objects = candidates.objects
    if not objects.any():
        raise ValueError("thresholds of classes take a true box")
    allowed = goal.allowed_false_positives(candidates.red_cells)
    ask = _Ask(goal.name, allowed, goal.precision)
    scores = (candidates.objectness[:, None] * candidates.class_probs).astype(np.float64)
    most, present = int(objects.argmax()), np.flatnonzero(objects).tolist()

    def chosen(class_id: int, own_scores: np.ndarray) -> float:
        cuts = _cuts(own_scores, candidates.true_ids == class_id)
        is_red_cell = goal.name == "screening" and class_id == most
        asked = ask._replace(goal="f1") if is_red_cell else ask
        return float(cuts.thresholds[asked.cut(cuts, int(objects[class_id]))])

    def with_absent(thresholds: np.ndarray) -> np.ndarray:
        return np.where(objects > 0, thresholds, thresholds[most])

    # Each class as if it were alone; a threshold can only be too high then.
    start = {class_id: chosen(class_id, scores[:, class_id]) for class_id in present}
    thresholds = with_absent(np.asarray([start.get(i, 1.0) for i in range(len(objects))]))
    best, best_worth = thresholds, ask.worth(tally(candidates, thresholds.tolist()), objects)
    # Were that of the red cells lowered and raised, others would no longer keep to theirs.
    turns = [i for i in present if goal.name != "screening" or i != most]
    for _ in range(_ROUNDS):
        before = thresholds.copy()
        for class_id in turns:
            thresholds = thresholds.copy()
            thresholds[class_id] = chosen(class_id, _alone(scores, thresholds, class_id))
            thresholds = with_absent(thresholds)
        worth = ask.worth(tally(candidates, thresholds.tolist()), objects)
        if worth >= best_worth:
            best, best_worth = thresholds, worth
        if (thresholds == before).all():
            break
    return tuple(best.tolist())


def _alone(
    scores: Float[np.ndarray, "n k"], thresholds: Float[np.ndarray, " k"], class_id: int
) -> Float[np.ndarray, " n"]:
    """The highest threshold of a class at which each box counts as it, the others given."""
    ratios = scores / thresholds
    ratios[:, class_id] = 1
    return scores[:, class_id] / np.maximum(ratios.max(1), 1)


class _Cuts(NamedTuple):
    """Every way to cut a ranking, from nothing to all of it: threshold, boxes kept and right."""

    thresholds: Float[np.ndarray, " c"]
    predicted: Int[np.ndarray, " c"]
    right: Int[np.ndarray, " c"]


def _cuts(scores: Float[np.ndarray, " n"], is_right: Bool[np.ndarray, " n"]) -> _Cuts:
    known = scores > _LEAST
    values, place = np.unique(-scores[known], return_inverse=True)
    edges = np.asarray([_ABOVE_ALL, *-values, _LEAST])
    # Equal scores are in together or out together.
    each = np.bincount(place, minlength=len(values))
    right = np.bincount(place[is_right[known]], minlength=len(values))
    counts = (np.concatenate([[0], np.cumsum(numbers)]) for numbers in (each, right))
    return _Cuts((edges[1:] + edges[:-1]) / 2, *counts)


class _Ask(NamedTuple):
    """A goal with its numbers, applied to one class (`cut`) and to all of them (`worth`)."""

    goal: str
    allowed: int
    precision: float

    def cut(self, cuts: _Cuts, objects: int) -> int:
        """Which cut of a class with so many true boxes; of equally good ones the first."""
        if self.goal == "count":
            return int(np.abs(cuts.predicted - objects).argmin())
        reached = np.zeros(0, np.int64)
        if self.goal == "screening":
            reached = np.flatnonzero(cuts.predicted - cuts.right <= self.allowed)
        elif self.goal == "precision":
            reached = np.flatnonzero(self._is_precise(cuts.predicted, cuts.right))
        if len(reached):
            return int(reached[-1])
        return int((cuts.right / (cuts.predicted + objects)).argmax())

    def _is_precise(
        self, predicted: Int[np.ndarray, " n"], right: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        return (right / np.maximum(predicted, 1) >= self.precision) & (predicted > 0)

    def worth(self, at: Tally, objects: Int[np.ndarray, " k"]) -> tuple[float, float]:
        """The larger, the better: thresholds of all classes that have a true box."""
        present = objects > 0
        predicted, right, true = (each[present] for each in (*at, objects))
        recall = float((right / true).sum())
        if self.goal == "count":
            return -float(np.abs(predicted - true).sum()), recall
        if self.goal == "f1":
            return float((2 * right / (predicted + true)).sum()), recall
        if self.goal == "precision":
            return float(self._is_precise(predicted, right).sum()), recall
        others = np.arange(len(true)) != true.argmax()
        return float((predicted - right <= self.allowed)[others].sum()), recall


def by_class(
    candidates: Candidates, class_thresholds: Sequence[float], class_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Each class at its threshold, by name: score, precision, recall, predicted and true boxes.

    Precision is None where nothing was predicted, recall where there is no true box.
    """
    predicted, right = tally(candidates, class_thresholds)
    return {
        name: {
            "score": float(class_thresholds[i]),
            "precision": float(right[i] / predicted[i]) if predicted[i] else None,
            "recall": float(right[i] / candidates.objects[i]) if candidates.objects[i] else None,
            "predicted": int(predicted[i]),
            "true": int(candidates.objects[i]),
        }
        for i, name in enumerate(class_names)
    }


def caveats(
    candidates: Candidates,
    class_thresholds: Sequence[float],
    class_names: Sequence[str],
    goal: Goal,
) -> list[str]:
    """Sentences on what the data could not say; arguments as of `choose_thresholds`."""
    objects, said = candidates.objects, []
    most = int(objects.argmax())
    if absent := [name for name, count in zip(class_names, objects, strict=True) if not count]:
        said.append(
            f"no true box of {', '.join(absent)}: the threshold is that of {class_names[most]}"
        )
    red_cells = candidates.red_cells
    if goal.name == "screening" and not goal.allowed_false_positives(red_cells):
        needed = math.ceil(1e6 / goal.false_positives)
        said.append(
            f"{red_cells} red cells are too few for {goal.false_positives:g} false positives per "
            f"1,000,000: none is allowed ({needed} cells would allow one)"
        )
    if goal.name == "precision":
        rows = by_class(candidates, class_thresholds, class_names).items()
        imprecise = [
            name
            for name, row in rows
            if row["true"] and (row["precision"] is None or row["precision"] < goal.precision)
        ]
        if imprecise:
            said.append(
                f"no threshold of {', '.join(imprecise)} gives precision {goal.precision:g}: it "
                "is that of the best F1"
            )
    return said
