"""Doubts: the places where the labels of an image and a detector say different things."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import cxcywh_to_xyxy, iou
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import Detections
from yogo_jax.detector.grid import cells_of_boxes
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import LossTerms, box_loss, class_loss, objectness_loss
from yogo_jax.detector.nms import PaddedDetections, detect
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.detector.targets import winners_by_cell
from yogo_jax.metrics.matching import match_boxes


MAX_DETECTIONS = 2000
# A detection that overlaps a label by this IoU is of the same object, even if badly placed.
NEAR_A_LABEL = 0.3


class LabelScores(NamedTuple):
    """Loss and predictions at the cells of the labels of one image.

    Attributes:
      terms: the weighted loss of each label's cell; their sum over the labels that own their cell
        is the loss of the image less that of the cells without an object.
      objectness: of the label's cell.
      class_probs: of the label's cell.
      owns_cell: False for padding, and for a label whose cell a later one has.
    """

    terms: LossTerms
    objectness: Float[Array, "*b n"]
    class_probs: Float[Array, "*b n k"]
    owns_cell: Bool[Array, "*b n"]


def score_labels(
    predictions: Predictions,
    boxes_cxcywh: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    weights: LossWeights,
) -> LabelScores:
    """The loss of each label of one image at its cell, term by term as `yogo_loss` has it.

    Args:
      predictions: decoded predictions, classes as logits.
      boxes_cxcywh: labels as `bin_targets` takes them.
      class_ids: likewise.
      valid: likewise.
      weights: of the terms.
    """
    rows, columns = predictions.objectness.shape
    cells = cells_of_boxes(boxes_cxcywh, (rows, columns))
    winner = winners_by_cell(cells, valid, num_cells=rows * columns)
    owns_cell = valid & (winner[cells] == jnp.arange(cells.shape[0], dtype=jnp.int32))

    objectness = predictions.objectness.reshape(-1)[cells]
    logits = predictions.class_logits.reshape(rows * columns, -1)[cells]
    found_cxcywh = predictions.boxes_cxcywh.reshape(-1, 4)[cells]

    cross_entropy = class_loss(logits, class_ids, weights)
    box = box_loss(found_cxcywh, cxcywh_to_xyxy(boxes_cxcywh), owns_cell)
    terms = LossTerms(
        objectness=objectness_loss(objectness, jnp.ones_like(objectness), weights) * owns_cell,
        box=weights.iou_weight * box,
        classification=weights.classify_weight * cross_entropy * owns_cell,
    )
    return LabelScores(terms, objectness, jax.nn.softmax(logits), owns_cell)


class Opinions(NamedTuple):
    """The opinions of a detector on a batch: on each label, and its own detections."""

    labels: LabelScores
    detections: PaddedDetections


def make_opinion_step(
    spec: ModelSpec, weights: LossWeights, *, objectness_threshold: float, iou_threshold: float
) -> Callable[[Any, Any], Opinions]:
    """A pure function of (variables, batch) that gives the opinions on a batch."""
    find = functools.partial(
        detect,
        objectness_threshold=objectness_threshold,
        iou_threshold=iou_threshold,
        max_detections=min(MAX_DETECTIONS, spec.grid_hw[0] * spec.grid_hw[1]),
    )
    score = functools.partial(score_labels, weights=weights)

    def step(variables: Any, batch: Any) -> Opinions:
        predictions = spec.predict(variables, batch["image"])
        labels = (batch["boxes_cxcywh"], batch["class_ids"], batch["valid"])
        return Opinions(jax.vmap(score)(predictions, *labels), jax.vmap(find)(predictions))

    return step


class Doubt(NamedTuple):
    """Something that labels and detector say differently of one image.

    Attributes:
      kind: "other_class", "not_found" or "no_label", or "high_loss" for a label with its loss.
      weight: of one kind, the larger the more it should be looked at.
      label: index of the label in its image, None for `no_label`.
      class_id: what the detector takes it for.
      probability: of that class, if there is an object.
      objectness: of the detection, or of the label's cell if there is none.
      loss: of the label's cell; None for `no_label`.
      box_cxcywh: of the label, or of the detection for `no_label`.
    """

    kind: str
    weight: float
    label: int | None
    class_id: int
    probability: float
    objectness: float
    loss: float | None
    box_cxcywh: tuple[float, ...]


def doubts_of_image(
    opinions: Opinions,
    boxes_cxcywh: Float[np.ndarray, "n 4"],
    class_ids: Int[np.ndarray, " n"],
    others_cxcywh: Float[np.ndarray, "m 4"],
    spec: ModelSpec,
    *,
    min_confidence: float,
) -> list[Doubt]:
    """All doubts on the labels of one image; labels that lost their cell are left alone.

    Args:
      opinions: of this image; the first n rows of its labels count.
      boxes_cxcywh: the labels that a training uses.
      class_ids: their classes.
      others_cxcywh: labels that it does not use: objects all the same.
      spec: of the detector.
      min_confidence: least probability of the class for `other_class`, and least objectness times
        probability for `no_label`.
    """
    found = opinions.detections.to_host(spec.class_names, spec.image_hw)
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh)
    everything_xyxy = np.concatenate([boxes_xyxy, cxcywh_to_xyxy(others_cxcywh)])
    losses = np.sum(opinions.labels.terms, axis=0).tolist()
    objectness, class_probs, owns_cell = (np.asarray(array) for array in opinions.labels[1:])

    def doubt(kind: str, weight: float, label: int, found_as: tuple[float, np.ndarray]) -> Doubt:
        its_objectness, probs = found_as
        return Doubt(
            kind,
            weight,
            label,
            int(probs.argmax()),
            float(probs.max()),
            its_objectness,
            losses[label],
            tuple(boxes_cxcywh[label].tolist()),
        )

    doubts = []
    matches = match_boxes(found.boxes_xyxy, boxes_xyxy)
    for j, i in zip(matches.prediction_index.tolist(), matches.label_index.tolist(), strict=True):
        probs = found.class_probs[j]
        wrong = probs.argmax() != class_ids[i] and probs.max() >= min_confidence
        if wrong and owns_cell[i]:
            seen = (float(found.objectness[j]), probs)
            doubts.append(doubt("other_class", float(found.scores[j]), i, seen))
    at_cell = [*zip(objectness.tolist(), class_probs, strict=True)]
    for i in matches.missed.tolist():
        if owns_cell[i]:
            doubts.append(doubt("not_found", 1 - at_cell[i][0], i, at_cell[i]))
    for i in np.flatnonzero(owns_cell[: len(class_ids)]).tolist():
        doubts.append(doubt("high_loss", losses[i], i, at_cell[i]))
    return doubts + _without_label(found, everything_xyxy, min_confidence)


def _without_label(
    found: Detections, labels_xyxy: Float[np.ndarray, "n 4"], min_confidence: float
) -> list[Doubt]:
    """Sure detections that are not near any label."""
    boxes_xyxy = found.boxes_xyxy.astype(np.float64)
    overlap = iou(boxes_xyxy[:, None], labels_xyxy[None]).max(axis=1, initial=0)
    doubts = []
    for j in np.flatnonzero((overlap < NEAR_A_LABEL) & (found.scores >= min_confidence)).tolist():
        low, high = found.boxes_xyxy[j, :2], found.boxes_xyxy[j, 2:]
        doubts.append(
            Doubt(
                "no_label",
                float(found.scores[j]),
                None,
                int(found.class_ids[j]),
                float(found.class_probs[j].max()),
                float(found.objectness[j]),
                None,
                tuple(np.concatenate([(low + high) / 2, high - low]).tolist()),
            )
        )
    return doubts
