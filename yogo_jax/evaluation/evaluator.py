"""Evaluation of a model on records: validation and test run this same code.

The protocol is the one of the original's figures: metrics from boxes with objectness above the
threshold after NMS; mean AP from all boxes with objectness above 0.05 after NMS, each with its
most probable class and the score objectness * probability of that class.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from yogo_jax.data.pipeline import EpochOrder, open_batches
from yogo_jax.data.records import Records
from yogo_jax.data.source import RecordSource
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.detections import Detections, detect
from yogo_jax.detector.found import Thresholds, on_host
from yogo_jax.detector.losses import LossTerms, LossWeights, label_loss
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.mean_ap import MAX_DETECTIONS, MeanAveragePrecision
from yogo_jax.evaluation.metrics import DetectionMetrics
from yogo_jax.output.draw import draw_boxes


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
        picture_folder: Path | None = None,
        pictures: int = 0,
    ) -> dict[str, Any]:
        """Metrics of the weights on the records, as plain values for JSON.

        Args:
          variables: `params` and `batch_stats`.
          records: at least one image.
          picture_folder: where frames with their boxes drawn are written, if anywhere.
          pictures: how many of them, from the first record on.

        Returns:
          Keys of `DetectionMetrics` and `MeanAveragePrecision`, `loss` and `loss_terms` (means
          over the images).

        Raises:
          UserError: an image cannot be read.
        """
        spec = self._spec
        metrics = DetectionMetrics(spec.class_names)
        mean_ap = MeanAveragePrecision(spec.class_names, spec.image_hw)
        sums = np.zeros(len(LossTerms._fields))
        source = RecordSource(
            records, image_hw=spec.image_hw, rgb=spec.rgb, max_boxes=self._max_boxes
        )
        order = EpochOrder(num_records=len(records), batch_size=self._batch_size, seed=None)
        with open_batches(source, order, workers=self._workers) as batches:
            for batch in batches:
                outputs = jax.device_get(self._step(variables, jax.device_put(batch)))
                for row in np.flatnonzero(batch["image_valid"]).tolist():
                    image = jax.tree.map(lambda array, row=row: array[row], outputs)
                    sums += np.asarray(image.terms, np.float64)
                    labels = _labels(image, batch, row)
                    _update(metrics, mean_ap, image, labels)
                    index = int(batch["record_index"][row])
                    if picture_folder is not None and index < pictures:
                        name = f"{index:03d}_{Path(records.image_paths[index]).stem}.png"
                        picture = _draw(spec, batch["image"][row], image.detections, labels)
                        picture_folder.mkdir(parents=True, exist_ok=True)
                        picture.save(picture_folder / name)
        means = sums / len(records)
        return {
            **mean_ap.compute(),
            **metrics.compute(),
            "loss": float(means.sum()),
            "loss_terms": dict(zip(LossTerms._fields, means.tolist(), strict=True)),
        }


def metrics_of_a_test(metrics: Mapping[str, Any], checkpoint: Path, step: int) -> dict[str, Any]:
    """The metrics of an evaluation as `metrics.json` has them."""
    renamed = {key: value for key, value in metrics.items() if key != "loss"}
    return {**renamed, "test_loss": metrics["loss"], "checkpoint": str(checkpoint), "step": step}


def _labels(image: BatchOutputs, batch: Mapping, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners and class ids of an image's labels, without padding."""
    valid = batch["valid"][row]
    return np.asarray(image.label_boxes_xyxy)[valid], batch["class_ids"][row][valid]


def _update(
    metrics: DetectionMetrics,
    mean_ap: MeanAveragePrecision,
    image: BatchOutputs,
    labels: tuple[np.ndarray, np.ndarray],
) -> None:
    found, ranked = on_host(image.detections), on_host(image.ranked)
    metrics.update(found.boxes_xyxy, found.class_probs, *labels)
    mean_ap.update(ranked.boxes_xyxy, ranked.scores, ranked.class_ids, *labels)


def _draw(
    spec: ModelSpec,
    image: np.ndarray,
    detections: Detections,
    labels: tuple[np.ndarray, np.ndarray],
) -> Any:
    found = on_host(detections)
    return draw_boxes(
        image,
        found.boxes_xyxy,
        found.class_ids,
        spec.class_names,
        scores=found.scores,
        label_boxes_xyxy=labels[0],
        label_class_ids=labels[1],
    )
