import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity import load
from yogo_jax.config.schema import LossConfig
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import (
    LossTerms,
    box_loss,
    class_loss,
    imitation_loss,
    label_loss,
    objectness_loss,
    yogo_loss,
)
from yogo_jax.detector.targets import Targets
from yogo_jax.errors import UserError


DEFAULT = {
    "no_object_weight": 0.5,
    "iou_weight": 5.0,
    "classify_weight": 1.0,
    "label_smoothing": 0.01,
}
SETTINGS = {
    "default": DEFAULT,
    "weighted": {
        "no_object_weight": 0.3,
        "iou_weight": 2.0,
        "classify_weight": 0.7,
        "label_smoothing": 0.1,
    },
}


def as_predictions(upstream: jax.Array) -> Predictions:
    """[5+k gh gw] of one image as our predictions."""
    in_cells = jnp.moveaxis(upstream, 0, -1)
    return Predictions(in_cells[..., :4], in_cells[..., 4], in_cells[..., 5:])


def as_targets(upstream: jax.Array) -> Targets:
    in_cells = jnp.moveaxis(upstream, 0, -1)
    return Targets(in_cells[..., 0], in_cells[..., 1:5], in_cells[..., 5].astype(jnp.int32))


def batch_loss(upstream_predictions, upstream_labels, **weights):
    one = functools.partial(yogo_loss, weights=LossWeights(**weights))
    terms = jax.vmap(lambda p, l: one(as_predictions(p), as_targets(l)))(
        upstream_predictions, upstream_labels
    )
    return terms.total().mean(), terms


@pytest.mark.smoke
@pytest.mark.optimized
@pytest.mark.parametrize("setting", SETTINGS)
def test_recorded_loss_terms_and_gradients(setting):
    recorded = load("loss.npz")
    compute = jax.jit(
        jax.value_and_grad(functools.partial(batch_loss, **SETTINGS[setting]), has_aux=True)
    )
    (loss, terms), grad = compute(jnp.asarray(recorded["preds"]), jnp.asarray(recorded["labels"]))
    assert float(loss) == pytest.approx(float(recorded[f"{setting}_loss"]), rel=1e-6)
    names = {"objectness": "objectness", "box": "iou", "classification": "classification"}
    for ours, theirs in names.items():
        expected = float(recorded[f"{setting}_{theirs}_loss"])
        assert float(getattr(terms, ours).mean()) == pytest.approx(expected, rel=1e-6)
    expected = recorded[f"{setting}_grad"]
    np.testing.assert_allclose(grad, expected, atol=1e-6 * abs(expected).max())


def make_case(seed: int, objects: int) -> tuple[Predictions, Targets]:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(0, 1, (12, 16, 2)), rng.uniform(0.02, 0.3, (12, 16, 2))], -1
    )
    predictions = Predictions(
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(rng.uniform(0, 1, (12, 16)), jnp.float32),
        jnp.asarray(rng.normal(0, 2, (12, 16, 7)), jnp.float32),
    )
    filled = np.zeros(12 * 16, np.float32)
    filled[rng.choice(12 * 16, objects, replace=False)] = 1
    filled = filled.reshape(12, 16)
    low = rng.uniform(0, 0.8, (12, 16, 2))
    corners = np.concatenate([low, low + rng.uniform(0.02, 0.2, (12, 16, 2))], -1)
    targets = Targets(
        jnp.asarray(filled),
        jnp.asarray(corners * filled[..., None], jnp.float32),
        jnp.asarray(rng.integers(0, 7, (12, 16)) * filled, jnp.int32),
    )
    return predictions, targets


def loss_of(predictions, targets) -> LossTerms:
    return yogo_loss(predictions, targets, LossWeights(**DEFAULT))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda boxes: boxes, id="ordinary"),
        pytest.param(lambda boxes: boxes * 0, id="boxes of no size"),
        pytest.param(lambda boxes: boxes.at[..., :2].set(3.0), id="boxes outside the image"),
        pytest.param(lambda boxes: boxes.at[..., 2:].set(1e30), id="boxes of endless size"),
    ],
)
@pytest.mark.parametrize("objects", [0, 1, 40])
def test_gradients_are_finite(objects, spoil):
    predictions, targets = make_case(0, objects)
    predictions = predictions._replace(boxes_cxcywh=spoil(predictions.boxes_cxcywh))
    grads = jax.jit(jax.grad(lambda p: loss_of(p, targets).total()))(predictions)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# From an ordinary size over the last ones that float32 has down to no size at all.
SIZES = (0.3, 1e-3, 1e-7, 1e-10, 1e-20, 1e-30, 1e-38, 1e-45, 0.0)


def test_gradients_are_finite_for_boxes_of_any_size():
    """In the middle, and at the corner of the image, where tiny sizes are not rounded off."""
    widths, heights = np.meshgrid(SIZES, SIZES)
    sizes = np.stack([widths.ravel(), heights.ravel()], -1)
    boxes = np.concatenate(
        [np.concatenate([np.full_like(sizes, place), sizes], -1) for place in (0.5, 0.0)]
    ).astype(np.float32)
    count = len(boxes)
    found = np.repeat(boxes, count, axis=0)
    labels = cxcywh_to_xyxy(jnp.asarray(np.tile(boxes, (count, 1))))
    is_object = jnp.ones(count * count, bool)

    def loss(found):
        return box_loss(found, labels, is_object).sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(jnp.asarray(found))
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_label_of_hardly_any_width_can_be_learnt(size):
    predictions, _ = make_case(0, 0)
    labels = jnp.asarray([(0.5, 0.5, size, 0.2), (0.2, 0.2, size, size)], jnp.float32)
    class_ids, valid = jnp.zeros(2, jnp.int32), jnp.ones(2, bool)

    def loss(predictions):
        weights = LossWeights(**DEFAULT)
        return label_loss(predictions, labels, class_ids, valid, weights).total()

    value, grads = jax.jit(jax.value_and_grad(loss))(predictions)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_an_empty_image_has_objectness_loss_only():
    predictions, targets = make_case(1, 0)
    terms = loss_of(predictions, targets)
    assert float(terms.box) == 0
    assert float(terms.classification) == 0
    expected = 0.5 * np.square(np.asarray(predictions.objectness, np.float64)).sum()
    assert float(terms.objectness) == pytest.approx(expected, rel=1e-6)


def test_weights_scale_their_own_term():
    predictions, targets = make_case(2, 9)
    base = loss_of(predictions, targets)
    doubled = yogo_loss(predictions, targets, LossWeights(**(DEFAULT | {"classify_weight": 2.0})))
    assert float(doubled.classification) == pytest.approx(2 * float(base.classification), rel=1e-6)
    assert float(doubled.box) == float(base.box)
    doubled = yogo_loss(predictions, targets, LossWeights(**(DEFAULT | {"iou_weight": 10.0})))
    assert float(doubled.box) == pytest.approx(2 * float(base.box), rel=1e-6)


def test_vmap_is_a_loop():
    cases = [make_case(seed, 5) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    batched = jax.jit(jax.vmap(loss_of))(*stacked)
    for index, case in enumerate(cases):
        for together, alone in zip(batched, loss_of(*case), strict=True):
            np.testing.assert_allclose(together[index], alone, rtol=1e-5)


def neighbours_by_loop(is_object: np.ndarray) -> np.ndarray:
    rows, columns = is_object.shape
    near = np.zeros_like(is_object)
    for i in range(rows):
        for j in range(columns):
            around = is_object[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            near[i, j] = around.any() and not is_object[i, j]
    return near


OBJECTNESS = {
    "squared": {},
    "cross entropy": {"objectness": "cross_entropy"},
    "neighbours ignored": {"neighbour_weight": 0.0},
    "by fullness": {"objectness": "cross_entropy", "reference_count": 20.0},
    "neighbours count less": {"objectness": "cross_entropy", "neighbour_weight": 0.3},
}


@pytest.mark.parametrize("objects", [0, 1, 40, 100])
@pytest.mark.parametrize("form", OBJECTNESS)
def test_forms_of_objectness_against_numpy(form, objects):
    predictions, targets = make_case(3, objects)
    p = np.asarray(predictions.objectness, np.float64)
    t = np.asarray(targets.objectness, np.float64)
    options = OBJECTNESS[form]
    if options.get("objectness") == "cross_entropy":
        each = -t * np.log(p) - (1 - t) * np.log(1 - p)
    else:
        each = (p - t) ** 2
    weights = np.where(t > 0, 1.0, 0.5)
    weights[neighbours_by_loop(t > 0)] *= options.get("neighbour_weight", 1.0)
    if "reference_count" in options:
        weights[t == 0] *= {0: 0.25, 1: 0.25, 40: 2.0, 100: 4.0}[objects]
    terms = yogo_loss(predictions, targets, LossWeights(**DEFAULT, **options))
    assert float(terms.objectness) == pytest.approx((each * weights).sum(), rel=1e-5)
    base = loss_of(predictions, targets)
    assert float(terms.box) == float(base.box)
    assert float(terms.classification) == float(base.classification)


@pytest.mark.parametrize("form", OBJECTNESS)
@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_forms_of_objectness_stay_finite_where_the_network_is_certain(form, certain):
    predictions, targets = make_case(4, 9)
    predictions = predictions._replace(objectness=jnp.full((12, 16), certain))
    weights = LossWeights(**DEFAULT, **OBJECTNESS[form])
    value, grad = jax.value_and_grad(lambda p: yogo_loss(p, targets, weights).total())(predictions)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


@pytest.mark.parametrize(("logit", "t"), [(-60.0, 1.0), (-20.0, 1.0), (-14.0, 1.0), (16.0, 0.0)])
def test_cross_entropy_keeps_its_slope_where_the_network_is_wrong_and_sure(logit, t):
    weights = LossWeights(**DEFAULT, objectness="cross_entropy")
    slope = jax.grad(lambda x: objectness_loss(jax.nn.sigmoid(x), jnp.asarray(t), weights))(logit)
    assert float(slope) == pytest.approx(1 if t == 0 else -1, rel=0.2)


def test_class_weights_count_in_their_class_only():
    predictions, targets = make_case(5, 30)
    weights = tuple(float(k) for k in range(7))
    terms = yogo_loss(predictions, targets, LossWeights(**DEFAULT, class_weights=weights))
    alone = 0.0
    for k in range(7):
        of_class = (targets.objectness > 0) & (targets.class_ids == k)
        masked = targets._replace(objectness=of_class.astype(jnp.float32))
        alone += k * float(loss_of(predictions, masked).classification)
    assert float(terms.classification) == pytest.approx(alone, rel=1e-5)
    assert float(terms.objectness) == float(loss_of(predictions, targets).objectness)


def test_weights_by_frequency_keep_the_mean():
    loss = LossConfig(**DEFAULT, class_weight_power=0.5)
    counts = [800, 50, 2, 0]
    weights = loss.for_data(counts, 10).class_weights
    ratios = [weights[1] / weights[0], weights[2] / weights[0]]
    assert ratios == pytest.approx([4.0, 20.0])
    # The class without a box counts as one box.
    seen = [800, 50, 2, 1]
    assert np.average(weights, weights=seen) == pytest.approx(1.0)
    assert LossConfig(**DEFAULT).for_data(counts, 10).class_weights == ()
    with pytest.raises(UserError, match=r"loss.class_weights must be empty or of 4 numbers"):
        LossConfig(**DEFAULT, class_weights=(1.0, 2.0)).for_data(counts, 10)


@pytest.mark.parametrize("form", ["squared", "cross_entropy"])
def test_objectness_that_is_the_overlap_against_numpy(form):
    predictions, targets = make_case(3, 6)
    weights = LossWeights(**DEFAULT, objectness=form, objectness_target="iou")
    found = float(yogo_loss(predictions, targets, weights).objectness)
    boxes, p = (np.asarray(each, np.float64) for each in predictions[:2])
    corners = np.concatenate(
        [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1
    )
    corners = corners.clip(0, 1)
    true, t = np.asarray(targets.boxes_xyxy, np.float64), np.asarray(targets.objectness)
    low, high = (
        np.maximum(corners[..., :2], true[..., :2]),
        np.minimum(corners[..., 2:], true[..., 2:]),
    )
    shared = (high - low).clip(0).prod(-1)
    area = (corners[..., 2:] - corners[..., :2]).prod(-1) + (true[..., 2:] - true[..., :2]).prod(-1)
    wanted = t * shared / (area - shared)
    assert 0 < wanted.max() < 1
    error = (
        np.square(p - wanted)
        if form == "squared"
        else -wanted * np.log(p) - (1 - wanted) * np.log1p(-p)
    )
    assert found == pytest.approx((error * (0.5 + 0.5 * t)).sum(), rel=1e-4)

    def objectness_of(boxes):
        return yogo_loss(predictions._replace(boxes_cxcywh=boxes), targets, weights).objectness

    # A box does not become worse to please the objectness.
    assert (jax.grad(objectness_of)(predictions.boxes_cxcywh) == 0).all()


def test_weights_by_effective_number_against_the_formula():
    counts, beta = [800, 50, 2, 0], 0.99
    weights = LossConfig(**DEFAULT, effective_number_beta=beta).for_data(counts, 10).class_weights
    seen = np.asarray([800, 50, 2, 1])
    inverse = (1 - beta) / (1 - beta**seen)
    np.testing.assert_allclose(weights, inverse / np.average(inverse, weights=seen), rtol=1e-9)
    # Near 1 it is the inverse of the count.
    weights = LossConfig(**DEFAULT, effective_number_beta=1 - 1e-9).for_data(counts, 10)
    assert weights.class_weights[2] / weights.class_weights[0] == pytest.approx(400, rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"class_weights": (1.0, 2.0), "class_weight_power": 0.5},
        {"class_weights": (1.0, 2.0), "effective_number_beta": 0.9},
        {"class_weight_power": 0.5, "effective_number_beta": 0.9},
        {"class_priors": (0.9, 0.1)},
        {"logit_adjustment": 1.0, "imitation": 0.5},
    ],
)
def test_fields_of_the_class_term_that_contradict_each_other_are_refused(fields):
    with pytest.raises(UserError, match=r"config.loss\.\w+ must be (0|empty) where"):
        LossConfig(**DEFAULT, **fields)


@pytest.mark.parametrize("given", [(), (0.7, 0.2, 0.1)])
def test_logit_adjustment_against_numpy(given):
    counts, tau = [900, 99, 0], 1.5
    config = LossConfig(**DEFAULT, logit_adjustment=tau, class_priors=given)
    weights = config.for_data(counts, 10)
    priors = np.asarray(given or np.asarray([900, 99, 1]) / 1000)
    np.testing.assert_allclose(weights.class_priors, priors)
    logits = np.random.default_rng(0).normal(size=(6, 3))
    ids = np.asarray([0, 1, 2, 0, 1, 2])
    adjusted = logits + tau * np.log(priors)
    log_probs = adjusted - np.log(np.exp(adjusted).sum(1, keepdims=True))
    smoothed = np.eye(3)[ids] * 0.99 + 0.01 / 3
    found = class_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(ids), weights)
    np.testing.assert_allclose(found, -(smoothed * log_probs).sum(1), rtol=1e-5)
    # Evaluations know no frequencies of another data set.
    assert weights.for_evaluation() == LossConfig(**DEFAULT).for_evaluation()
    with pytest.raises(UserError, match=r"loss.class_priors must be empty or of 2 numbers"):
        LossConfig(**DEFAULT, logit_adjustment=1.0, class_priors=(0.5, 0.3, 0.2)).for_data(
            [1, 2], 1
        )


def test_the_usual_number_of_objects_is_the_mean_of_the_training_images():
    loss = LossConfig(**DEFAULT, reference_count_from_data=True)
    assert loss.for_data([30, 10, 0], 8).reference_count == 5
    assert LossConfig(**DEFAULT, reference_count=3.0).for_data([30, 10], 8).reference_count == 3
    # Evaluations of whatever data are measured alike.
    assert loss.for_data([30, 10, 0], 8).for_evaluation().reference_count == 0
    with pytest.raises(UserError, match=r"loss.reference_count_from_data must be False where"):
        LossConfig(**DEFAULT, reference_count_from_data=True, reference_count=3.0)


@pytest.mark.parametrize("objects", [1, 40])
def test_an_imitation_without_a_fault_has_no_loss(objects):
    teacher, _ = make_case(6, objects)
    weights = LossWeights(**DEFAULT)
    terms = imitation_loss(teacher, teacher, weights)
    assert float(terms.objectness) == pytest.approx(0, abs=1e-3)
    assert float(terms.classification) == pytest.approx(0, abs=1e-3)
    # Boxes of this teacher reach over the edges, and are cut there.
    assert float(terms.box) == pytest.approx(0, abs=1e-2)


def test_imitation_against_numpy():
    (predictions, _), (teacher, _) = make_case(7, 5), make_case(8, 5)
    weights = LossWeights(**DEFAULT)
    terms = imitation_loss(predictions, teacher, weights)
    p, t = (np.asarray(each.objectness, np.float64) for each in (predictions, teacher))
    kl = t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p))
    assert float(terms.objectness) == pytest.approx((kl * (t * 0.5 + 0.5)).sum(), rel=1e-4)
    p, q = (np.asarray(each.class_logits, np.float64) for each in (predictions, teacher))
    p, q = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (p, q))
    kl = (np.exp(q) * (q - p)).sum(-1)
    assert float(terms.classification) == pytest.approx((kl * t).sum(), rel=1e-4)
    assert float(terms.box) > 0


def test_nothing_is_learnt_of_boxes_where_the_teacher_sees_nothing():
    (predictions, _), (teacher, _) = make_case(9, 5), make_case(10, 5)
    teacher = teacher._replace(objectness=jnp.full((12, 16), 0.01))
    weights = LossWeights(**DEFAULT)
    grads = jax.grad(lambda each: imitation_loss(each, teacher, weights).total())(predictions)
    np.testing.assert_array_equal(grads.boxes_cxcywh, 0)
    assert np.all(np.isfinite(grads.class_logits))


def test_terms_are_mixed_by_their_share():
    one, other = LossTerms(1.0, 2.0, 3.0), LossTerms(5.0, 6.0, 7.0)
    assert one.mixed(other, 0.25) == LossTerms(2.0, 3.0, 4.0)
