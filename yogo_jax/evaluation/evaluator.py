"""Evaluation of a model on records: validation and test run this same code.

The protocol is the one of the original's figures: metrics from boxes with objectness above the
threshold after NMS; mean AP from all boxes with objectness above 0.05 after NMS, each with its
most probable class and the score objectness * probability of that class.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from yogo_jax.data.pipeline import EpochOrder, open_batches
from yogo_jax.data.records import Records
from yogo_jax.data.source import RecordSource
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.detections import Detections, detect
from yogo_jax.detector.found import Found, Thresholds, on_host
from yogo_jax.detector.losses import LossTerms, LossWeights, label_loss
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.matching import Matches
from yogo_jax.evaluation.mean_ap import MAX_DETECTIONS, MeanAveragePrecision
from yogo_jax.evaluation.metrics import DetectionMetrics


# Boxes under this objectness do not take part in mean AP.
MEAN_AP_OBJECTNESS = 0.05


class BatchOutputs(NamedTuple):
    """What the device computes of a batch for an evaluation."""

    terms: LossTerms
    detections: Detections
    ranked: Detections
    label_boxes_xyxy: jax.Array


def make_eval_step(
    spec: ModelSpec, loss_weights: LossWeights, thresholds: Thresholds
) -> Callable[[Any, Any], BatchOutputs]:
    """A pure function of (variables, batch) that gives losses and detections of each image."""
    # One more than mean AP takes, so that it can tell and count the frames that had more.
    max_detections = min(MAX_DETECTIONS + 1, spec.grid_hw[0] * spec.grid_hw[1])
    find = functools.partial(detect, iou_threshold=thresholds.iou, max_detections=max_detections)
    keep = functools.partial(
        find,
        objectness_threshold=thresholds.objectness,
        min_class_confidence=thresholds.min_class_confidence,
    )
    rank = functools.partial(find, objectness_threshold=MEAN_AP_OBJECTNESS)
    image_loss = functools.partial(label_loss, weights=loss_weights)

    def eval_step(variables: Any, batch: Any) -> BatchOutputs:
        predictions = spec.predict(variables, batch["image"])
        labels = (batch["boxes_cxcywh"], batch["class_ids"], batch["valid"])
        return BatchOutputs(
            terms=jax.vmap(image_loss)(predictions, *labels),
            detections=jax.vmap(keep)(predictions),
            ranked=jax.vmap(rank)(predictions),
            label_boxes_xyxy=cxcywh_to_xyxy(batch["boxes_cxcywh"]),
        )

    return eval_step


def _nothing() -> None:
    pass


class Evaluator:
    """Evaluates one model, with any weights, on any records; compiles once."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        loss_weights: LossWeights,
        batch_size: int,
        max_boxes: int,
        workers: int,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._spec = spec
        self._batch_size = batch_size
        self._max_boxes = max_boxes
        self._workers = workers
        self._step = jax.jit(make_eval_step(spec, loss_weights, thresholds or Thresholds()))

    def run(
        self,
        variables: Mapping[str, Any],
        records: Records,
        *,
        keep_images: bool = False,
        before_batch: Callable[[], None] = _nothing,
    ) -> "Evaluation":
        """Evaluates the weights on the records.

        Args:
          variables: `params` and `batch_stats`.
          records: at least one image.
          keep_images: also give back what was found in each image, from which pictures, curves and
            intervals are made. It takes some 50 bytes a box.
          before_batch: called before each batch; what it raises ends the evaluation.

        Returns:
          The metrics as plain values for JSON: keys of `DetectionMetrics` and
          `MeanAveragePrecision`, `loss` and `loss_terms` (means over the images); and the images,
          in the order of the records, if they were asked for.

        Raises:
          UserError: an image cannot be read.
        """
        spec = self._spec
        metrics = DetectionMetrics(spec.class_names)
        mean_ap = MeanAveragePrecision(spec.class_names, spec.image_hw)
        sums = np.zeros(len(LossTerms._fields))
        images: list[ImageResult] = []
        source = RecordSource(
            records, image_hw=spec.image_hw, rgb=spec.rgb, max_boxes=self._max_boxes
        )
        order = EpochOrder(num_records=len(records), batch_size=self._batch_size, seed=None)
        with open_batches(source, order, workers=self._workers) as batches:
            for batch in batches:
                before_batch()
                outputs = jax.device_get(self._step(variables, jax.device_put(batch)))
                for row in np.flatnonzero(batch["image_valid"]).tolist():
                    one = jax.tree.map(lambda array, row=row: array[row], outputs)
                    path = records.image_paths[int(batch["record_index"][row])]
                    image = _add(metrics, mean_ap, one, _labels(one, batch, row), str(path))
                    sums += image.loss_terms
                    if keep_images:
                        images.append(image)
        means = sums / len(records)
        values = {
            **mean_ap.compute(),
            **metrics.compute(),
            "loss": float(means.sum()),
            "loss_terms": dict(zip(LossTerms._fields, means.tolist(), strict=True)),
        }
        return Evaluation(values, tuple(images))


def _labels(image: BatchOutputs, batch: Mapping, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners and class ids of an image's labels, without padding."""
    valid = batch["valid"][row]
    return np.asarray(image.label_boxes_xyxy)[valid], batch["class_ids"][row][valid]


def _add(
    metrics: DetectionMetrics,
    mean_ap: MeanAveragePrecision,
    image: BatchOutputs,
    labels: tuple[np.ndarray, np.ndarray],
    path: str,
) -> "ImageResult":
    """Counts one image in the metrics."""
    found, ranked = on_host(image.detections), on_host(image.ranked)
    matches = metrics.update(found.boxes_xyxy, found.class_probs, *labels)
    mean_ap.update(ranked.boxes_xyxy, ranked.scores, ranked.class_ids, *labels)
    return ImageResult(path, found, ranked, *labels, matches, np.asarray(image.terms, np.float64))


class ImageResult(NamedTuple):
    """What an evaluation found in one image.

    Attributes:
      path: of the image file.
      found: detections above the thresholds, which metrics count.
      ranked: detections above `MEAN_AP_OBJECTNESS`, which mean AP ranks.
      label_boxes_xyxy: corners of the true boxes, [m 4].
      label_class_ids: their classes, [m].
      matches: which of `found` belongs to which true box.
      loss_terms: of this image, in the order of `LossTerms`.
    """

    path: str
    found: Found
    ranked: Found
    label_boxes_xyxy: np.ndarray
    label_class_ids: np.ndarray
    matches: Matches
    loss_terms: np.ndarray

    @property
    def loss(self) -> float:
        """The sum of its terms."""
        return float(self.loss_terms.sum())


class Evaluation(NamedTuple):
    """Metrics of some weights on some records, and the images if they were kept."""

    metrics: dict[str, Any]
    images: tuple[ImageResult, ...]
