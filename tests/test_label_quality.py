import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn_models import make_spec
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import LossTerms, label_loss
from yogo_jax.detector.nms import PaddedDetections
from yogo_jax.inspection.suspects import LabelScores, Opinions, doubts_of_image, score_labels


GRID_HW, CLASSES, ROWS = (5, 7), 3, 12
TWO_CLASSES = make_spec("quarter_filters", class_names=("a", "b"))
WEIGHTS = LossWeights(
    no_object_weight=0.3, iou_weight=4.0, classify_weight=2.0, label_smoothing=0.1
)
score = jax.jit(lambda *arguments: score_labels(*arguments, WEIGHTS))
whole = jax.jit(lambda *arguments: label_loss(*arguments, WEIGHTS))


def random_image(seed):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform((0, 0, 0.1, 0.1), (1, 1, 0.4, 0.4), (*GRID_HW, 4))
    boxes[rng.random(GRID_HW) < 0.1] = (1.5, 0.5, 0.2, 0.2)  # nothing of it on the image
    predictions = Predictions(
        boxes.astype(np.float32),
        rng.random(GRID_HW, np.float32),
        rng.normal(0, 2, (*GRID_HW, CLASSES)).astype(np.float32),
    )
    labels = rng.uniform((0, 0, 0.1, 0.1), (1, 1, 0.4, 0.4), (ROWS, 4)).astype(np.float32)
    class_ids = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    return predictions, labels, class_ids, rng.random(ROWS) < 0.8


@pytest.mark.parametrize("seed", range(12), ids=str)
def test_losses_of_labels_add_up_to_that_of_the_image(seed):
    predictions, boxes, class_ids, valid = random_image(seed)
    scores = score(predictions, boxes, class_ids, valid)
    expected = whole(predictions, boxes, class_ids, valid)
    owns = np.asarray(scores.owns_cell)
    cells = [(int(box[1] * GRID_HW[0]), int(box[0] * GRID_HW[1])) for box in boxes]
    last = {cell: i for i, cell in enumerate(cells) if valid[i]}
    np.testing.assert_array_equal(np.flatnonzero(owns), sorted(last.values()))

    empty = np.ones(GRID_HW, bool)
    for i, cell in enumerate(cells):
        if owns[i]:
            empty[cell] = False
            assert scores.objectness[i] == predictions.objectness[cell]
            probs = np.exp(predictions.class_logits[cell])
            np.testing.assert_allclose(scores.class_probs[i], probs / probs.sum(), rtol=1e-5)
    nothing = WEIGHTS.no_object_weight * np.square(predictions.objectness[empty]).sum()
    sums = [np.asarray(term).sum() for term in scores.terms]
    np.testing.assert_allclose(sums[0] + nothing, expected.objectness, rtol=1e-5)
    np.testing.assert_allclose(sums[1], expected.box, rtol=1e-5)
    np.testing.assert_allclose(sums[2], expected.classification, rtol=1e-5)
    for term in scores.terms:
        np.testing.assert_array_equal(np.asarray(term)[~owns], 0)


FORMS = {
    "cross entropy": {"objectness": "cross_entropy"},
    "neighbours": {"objectness": "cross_entropy", "neighbour_weight": 0.3},
    "fullness": {"reference_count": 20.0},
    "classes": {"class_weights": (0.5, 3.0, 7.0)},
    "all": {
        "objectness": "cross_entropy",
        "neighbour_weight": 0.3,
        "reference_count": 20.0,
        "class_weights": (0.5, 3.0, 7.0),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_cost_what_they_cost_in_training(form):
    """If empty cells weigh nothing, the loss of an image is that of its labels."""
    weights = dataclasses.replace(WEIGHTS, no_object_weight=0.0, **FORMS[form])
    for seed in range(3):
        image = jax.tree.map(jnp.asarray, random_image(seed))
        scores = score_labels(*image, weights)
        for term, expected in zip(scores.terms, label_loss(*image, weights), strict=True):
            np.testing.assert_allclose(np.sum(term), expected, rtol=1e-5)


def test_a_label_with_no_objectness_at_all_under_cross_entropy():
    predictions, *labels = jax.tree.map(jnp.asarray, random_image(0))
    predictions = predictions._replace(objectness=jnp.full(GRID_HW, 1e-4))
    weights = dataclasses.replace(WEIGHTS, objectness="cross_entropy")
    scores = score_labels(predictions, *labels, weights)
    owns = np.asarray(scores.owns_cell)
    np.testing.assert_allclose(scores.terms.objectness[owns], -np.log(1e-4), rtol=1e-5)


def opinions_of(labels, found):
    """Opinions from rows (loss, objectness, probs, owns cell) and (box xyxy, objectness, probs)."""
    losses, objectness, probs, owns = zip(*labels, strict=True) if labels else ([], [], [], [])
    boxes, found_objectness, found_probs = zip(*found, strict=True) if found else ([], [], [])
    zeros = np.zeros(len(labels), np.float32)
    return Opinions(
        LabelScores(
            LossTerms(zeros, zeros, np.array(losses, np.float32)),
            np.array(objectness, np.float32),
            np.array(probs, np.float32).reshape(-1, 2),
            np.array(owns, bool),
        ),
        PaddedDetections(
            np.array([*boxes, (0, 0, 0, 0)], np.float32),
            np.array([*found_objectness, 1], np.float32),
            np.array([*found_probs, (1, 0)], np.float32),
            np.array([*([True] * len(boxes)), False]),
        ),
    )


A, B, C = ((0.2, 0.2, 0.2, 0.2), (0.6, 0.2, 0.2, 0.2), (0.2, 0.7, 0.2, 0.2))
CORNERS = {box: (box[0] - 0.1, box[1] - 0.1, box[0] + 0.1, box[1] + 0.1) for box in (A, B, C)}
SEEN, OWN = (1.0, 0.9, (0.95, 0.05)), (True,)
# Labels as (box, class, what their cell says), detections as (box, objectness, probabilities),
# and the kinds of doubt but for the ranking by loss.
CASES = {
    "agrees": ([(A, 0, (*SEEN, True))], [(A, 0.9, (0.95, 0.05))], []),
    "other class": ([(A, 1, (*SEEN, True))], [(A, 0.9, (0.95, 0.05))], ["other_class"]),
    "other class, unsure": ([(A, 1, (*SEEN, True))], [(A, 0.9, (0.7, 0.3))], []),
    "other class at the limit": (
        [(A, 1, (*SEEN, True))],
        [(A, 0.9, (0.75, 0.25))],
        ["other_class"],
    ),
    "not found": ([(A, 0, (*SEEN, True))], [], ["not_found"]),
    "elsewhere": (
        [(A, 0, (*SEEN, True))],
        [(B, 0.9, (0.95, 0.05))],
        ["not_found", "no_label"],
    ),
    "no label, unsure object": ([], [(B, 0.7, (0.95, 0.05))], []),
    "no label": ([], [(B, 0.9, (0.95, 0.05))], ["no_label"]),
    "second detection of one": (
        [(A, 0, (*SEEN, True))],
        [(A, 0.9, (0.95, 0.05)), (A, 0.8, (0.95, 0.05))],
        [],
    ),
    "lost its cell": ([(A, 0, (*SEEN, False))], [], []),
    "lost its cell, other class": ([(A, 1, (*SEEN, False))], [(A, 0.9, (0.95, 0.05))], []),
}


@pytest.mark.parametrize(("labels", "found", "kinds"), CASES.values(), ids=CASES)
def test_doubts(labels, found, kinds):
    opinions = opinions_of(
        [cell for _, _, cell in labels],
        [(CORNERS[box], objectness, probs) for box, objectness, probs in found],
    )
    doubts = doubts_of_image(
        opinions,
        np.array([box for box, _, _ in labels]).reshape(-1, 4),
        np.array([class_id for _, class_id, _ in labels], int),
        np.zeros((0, 4)),
        TWO_CLASSES,
        min_confidence=0.75,
    )
    assert [doubt.kind for doubt in doubts if doubt.kind != "high_loss"] == kinds
    ranked = [doubt.label for doubt in doubts if doubt.kind == "high_loss"]
    assert ranked == [i for i, (_, _, cell) in enumerate(labels) if cell[3]]


def test_a_small_label_is_a_label():
    opinions = opinions_of([], [(CORNERS[B], 0.9, (0.95, 0.05))])
    nothing = (np.zeros((0, 4)), np.zeros(0, int))
    for others, kinds in ((np.zeros((0, 4)), ["no_label"]), (np.array([B]), [])):
        doubts = doubts_of_image(opinions, *nothing, others, TWO_CLASSES, min_confidence=0.5)
        assert [doubt.kind for doubt in doubts] == kinds


def test_what_a_doubt_says():
    opinions = opinions_of([(3.5, 0.2, (0.4, 0.6), True)], [(CORNERS[C], 0.9, (0.1, 0.9))])
    missed, ranked, extra = doubts_of_image(
        opinions, np.array([A]), np.array([0]), np.zeros((0, 4)), TWO_CLASSES, min_confidence=0.8
    )
    assert (missed.kind, missed.label, missed.class_id, missed.box_cxcywh) == ("not_found", 0, 1, A)
    assert (missed.weight, missed.objectness) == pytest.approx((0.8, 0.2))
    assert (ranked.kind, ranked.weight, ranked.loss) == ("high_loss", 3.5, 3.5)
    assert ranked.probability == pytest.approx(0.6)
    assert (extra.kind, extra.label, extra.loss) == ("no_label", None, None)
    assert extra.weight == pytest.approx(0.81)
    assert extra.box_cxcywh == pytest.approx(C)
