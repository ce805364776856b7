"""The loss of one image, term by term and unreduced over images."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from yogo_jax.detector.boxes import area, cxcywh_to_xyxy, intersection, iou, xyxy_to_cxcywh
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.targets import Targets, bin_targets


# Least and most factor of `reference_count`: an image without an object tells something, too.
_FULLNESS = (0.25, 4.0)

# Boxes of cells that a teacher thinks less of are not imitated.
_IMITATED_OBJECTNESS = 0.05


class LossTerms(NamedTuple):
    """Weighted terms, each summed over the cells of one image; the loss is their sum."""

    objectness: Float[Array, "*b"]
    box: Float[Array, "*b"]
    classification: Float[Array, "*b"]

    def total(self) -> Float[Array, "*b"]:
        """The loss."""
        return self.objectness + self.box + self.classification

    def mixed(self, other: "LossTerms", share: float) -> "LossTerms":
        """These terms and others, of which a share is taken."""
        return LossTerms(
            *((1 - share) * own + share * each for own, each in zip(self, other, strict=True))
        )


def yogo_loss(predictions: Predictions, targets: Targets, weights: LossWeights) -> LossTerms:
    """Loss terms of one image.

    With t the target and p the predicted objectness:
    `objectness = sum over cells of (p - t)^2 * (t * (1 - no_object_weight) + no_object_weight)`
    (or of the cross entropy of p and t; with `objectness_target="iou"`, p is compared with t times
    the IoU of the predicted box and the label, which takes no gradient),
    `box = iou_weight * sum over object cells of CIoU loss`,
    `classification = classify_weight * sum over object cells of smoothed cross entropy`.

    Predicted corners are clamped to the image; object cells whose clamped box has no width or no
    height are left out of the box term.

    Args:
      predictions: decoded predictions, classes as logits.
      targets: of the same grid.
      weights: of the terms.

    References:
      Redmon et al. 2015, You Only Look Once, arXiv:1506.02640, equation 3 (squared objectness).
      Zheng et al. 2019, Distance-IoU Loss, arXiv:1911.08287.
      Zhang et al. 2020, VarifocalNet, arXiv:2008.13367, section 3.1 (objectness that is the IoU).
      Szegedy et al. 2015, Rethinking the Inception Architecture, arXiv:1512.00567, section 7.
    """
    t = targets.objectness
    cell_weights = t * (1 - weights.no_object_weight) + weights.no_object_weight
    if weights.neighbour_weight != 1:
        cell_weights = jnp.where(
            is_neighbour(t > 0), cell_weights * weights.neighbour_weight, cell_weights
        )
    if weights.reference_count:
        fullness = jnp.clip(t.sum() / weights.reference_count, *_FULLNESS)
        cell_weights = jnp.where(t > 0, cell_weights, cell_weights * fullness)
    wanted = t
    if weights.objectness_target == "iou":
        wanted = t * fit(predictions.boxes_cxcywh, targets.boxes_xyxy)
    objectness = (objectness_loss(predictions.objectness, wanted, weights) * cell_weights).sum()

    box = box_loss(predictions.boxes_cxcywh, targets.boxes_xyxy, t > 0).sum()
    cross_entropy = class_loss(predictions.class_logits, targets.class_ids, weights)
    return LossTerms(
        objectness=objectness,
        box=weights.iou_weight * box,
        classification=weights.classify_weight * (cross_entropy * t).sum(),
    )


def objectness_loss(
    p: Float[Array, "*b"], t: Float[Array, "*b"], weights: LossWeights
) -> Float[Array, "*b"]:
    """Loss of each cell's objectness, not yet weighed.

    Args:
      p: predicted.
      t: 1 with an object, 0 without.
      weights: say in which form.
    """
    return jnp.square(p - t) if weights.objectness == "squared" else _cross_entropy(p, t)


def fit(
    boxes_cxcywh: Float[Array, "*b 4"], target_boxes_xyxy: Float[Array, "*b 4"]
) -> Float[Array, "*b"]:
    """IoU of each box, cut at the edges of the image, with its target; it takes no gradient."""
    corners = jnp.clip(cxcywh_to_xyxy(jax.lax.stop_gradient(boxes_cxcywh)), 0, 1)
    return iou(corners, target_boxes_xyxy)


def is_neighbour(is_object: Bool[Array, "gh gw"]) -> Bool[Array, "gh gw"]:
    """Cells without an object beside, or at a corner of, one with an object."""
    rows, columns = is_object.shape
    wide = jnp.pad(is_object, 1)
    near = jnp.zeros_like(is_object)
    for i in range(3):
        for j in range(3):
            near = near | wide[i : i + rows, j : j + columns]
    return near & ~is_object


def box_loss(
    boxes_cxcywh: Float[Array, "*b 4"],
    target_boxes_xyxy: Float[Array, "*b 4"],
    is_object: Bool[Array, "*b"],
) -> Float[Array, "*b"]:
    """CIoU loss of each box after it was cut at the edges of the image.

    It is 0 where there is no object, and where nothing of the box is left by the cut.
    """
    corners = jnp.clip(cxcywh_to_xyxy(boxes_cxcywh), 0, 1)
    has_size = (corners[..., 2] > corners[..., 0]) & (corners[..., 3] > corners[..., 1])
    counts = is_object & has_size
    # Cells that do not count get the unit box before the loss, not zero after it: a `where`
    # behind a quotient by zero would still leave NaN in the gradient.
    unit_box = jnp.asarray((0, 0, 1, 1), corners.dtype).reshape((1,) * (corners.ndim - 1) + (4,))
    boxes = jnp.where(counts[..., None], corners, unit_box)
    target_boxes = jnp.where(counts[..., None], target_boxes_xyxy, unit_box)
    return ciou_loss(boxes, target_boxes) * counts


def ciou_loss(
    boxes_xyxy: Float[Array, "*n 4"], target_xyxy: Float[Array, "*n 4"], *, eps: float = 1e-7
) -> Float[Array, "*n"]:
    """Complete IoU loss, `1 - IoU + distance^2 / diagonal^2 + alpha * v`, in [0, 3) or so.

    `v = 4 / pi^2 * (atan(w_t / h_t) - atan(w / h))^2` compares the aspects, and
    `alpha = v / (1 - IoU + v)` takes no gradient.

    Args:
      boxes_xyxy: predicted corners.
      target_xyxy: true corners, of the same shape.
      eps: keeps the quotients and their slopes finite. A box that is narrower or lower than this
        has the aspect of one that is as wide or as high as this.

    References:
      Zheng et al. 2019, Distance-IoU Loss, arXiv:1911.08287, equations 10 and 11.
    """
    shared = intersection(boxes_xyxy, target_xyxy)
    overlap = shared / (area(boxes_xyxy) + area(target_xyxy) - shared + eps)
    hull_low = jnp.minimum(boxes_xyxy[..., :2], target_xyxy[..., :2])
    hull_high = jnp.maximum(boxes_xyxy[..., 2:], target_xyxy[..., 2:])
    diagonal_squared = jnp.square(hull_high - hull_low).sum(-1) + eps
    box, target = xyxy_to_cxcywh(boxes_xyxy), xyxy_to_cxcywh(target_xyxy)
    distance_squared = jnp.square(box[..., :2] - target[..., :2]).sum(-1)
    v = 4 / math.pi**2 * jnp.square(_aspect(target, eps) - _aspect(box, eps))
    alpha = jax.lax.stop_gradient(v / (1 - overlap + v + eps))
    return 1 - overlap + distance_squared / diagonal_squared + alpha * v


def _aspect(boxes_cxcywh: Float[Array, "*n 4"], eps: float) -> Float[Array, "*n"]:
    """The angle whose tangent is width / height. Its slope holds the square of the height."""
    sizes = jnp.maximum(boxes_cxcywh[..., 2:], eps)
    return jnp.arctan(sizes[..., 0] / sizes[..., 1])


def class_loss(
    logits: Float[Array, "*b k"], class_ids: Int[Array, "*b"], weights: LossWeights
) -> Float[Array, "*b"]:
    """Smoothed cross entropy of each cell or label, times the weight of its class.

    With `logit_adjustment` tau, `tau * log(share of the class)` is added to the logits first: what
    is left for the network to learn is the evidence of the image, without how frequent classes are.

    References:
      Menon et al. 2020, Long-tail learning via logit adjustment, arXiv:2007.07314, equation 10.
    """
    if weights.logit_adjustment:
        priors = jnp.asarray(weights.class_priors, logits.dtype)
        priors = priors.reshape((1,) * (logits.ndim - 1) + (-1,))
        logits = logits + weights.logit_adjustment * jnp.log(priors)
    log_probs = jax.nn.log_softmax(logits)
    num_classes = log_probs.shape[-1]
    smoothed = jax.nn.one_hot(class_ids, num_classes, dtype=log_probs.dtype)
    label_smoothing = weights.label_smoothing
    smoothed = smoothed * (1 - label_smoothing) + label_smoothing / num_classes
    cross_entropy = -(smoothed * log_probs).sum(-1)
    if not weights.class_weights:
        return cross_entropy
    return cross_entropy * jnp.asarray(weights.class_weights, cross_entropy.dtype)[class_ids]


def label_loss(
    predictions: Predictions,
    boxes_cxcywh: Float[Array, "n 4"],
    class_ids: Int[Array, " n"],
    valid: Bool[Array, " n"],
    weights: LossWeights,
) -> LossTerms:
    """Loss terms of one image, see `yogo_loss`, against its labels as `bin_targets` takes them."""
    grid_hw = predictions.objectness.shape
    targets = bin_targets(boxes_cxcywh, class_ids, valid, grid_hw=(grid_hw[0], grid_hw[1]))
    return yogo_loss(predictions, targets, weights)


def imitation_loss(
    predictions: Predictions, teacher: Predictions, weights: LossWeights
) -> LossTerms:
    """Loss terms of one image against what a teacher says of it, in place of labels.

    Objectness is compared in every cell, by cross entropy; boxes and classes count as far as the
    teacher sees an object. Cells that the teacher is sure are empty are many, and weigh
    `no_object_weight` as those without a label do.

    Args:
      predictions: decoded predictions of the network in training, classes as logits.
      teacher: of the same grid; no gradient goes there.
      weights: of the terms.

    References:
      Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
      Mehta and Ozturk 2018, Object detection at 200 Frames Per Second, arXiv:1805.06361, section
      3.3 (boxes and classes weighed by the teacher's objectness).
    """
    t = teacher.objectness
    p = predictions.objectness
    cell_weights = t * (1 - weights.no_object_weight) + weights.no_object_weight
    # Less the teacher's own entropy, so that an imitation without a fault has no loss.
    divergence = _cross_entropy(p, t) - _cross_entropy(t, t)
    boxes_xyxy = jnp.clip(cxcywh_to_xyxy(teacher.boxes_cxcywh), 0, 1)
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    is_object = (t > _IMITATED_OBJECTNESS) & (sizes > 0).all(-1)
    box = box_loss(predictions.boxes_cxcywh, boxes_xyxy, is_object)
    log_probs = jax.nn.log_softmax(predictions.class_logits)
    teacher_log_probs = jax.nn.log_softmax(teacher.class_logits)
    kullback = (jnp.exp(teacher_log_probs) * (teacher_log_probs - log_probs)).sum(-1)
    return LossTerms(
        objectness=(divergence * cell_weights).sum(),
        box=weights.iou_weight * (box * t).sum(),
        classification=weights.classify_weight * (kullback * t).sum(),
    )


def _cross_entropy(p: Array, t: Array) -> Array:
    # The last numbers of float32 before 0 and 1 that a logarithm takes. Down to there, between
    # logits of -69 and 16, a cell that is wrong keeps its slope.
    p = jnp.clip(p, 1e-30, 1 - 2**-24)
    return -t * jnp.log(p) - (1 - t) * jnp.log1p(-p)
