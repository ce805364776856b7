"""How well the labels of an image and a detector agree, label by label."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import Detections, detect
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import LossTerms, box_loss, class_loss, objectness_loss
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.detector.targets import cells_of_boxes, winners_by_cell


MAX_DETECTIONS = 2000


class LabelScores(NamedTuple):
    """What the cells of the labels of one image say.

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
    """What the detector says of a batch: of each label, and by itself."""

    labels: LabelScores
    detections: Detections


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
