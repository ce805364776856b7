"""Evaluation of a model on records: validation and test run this same code.

Counts come from boxes with objectness above the threshold after NMS, each with its decided class.
Mean AP comes from nearly all boxes after NMS, by two protocols, see `mean_ap.py`: COCO's, and the
original's.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from yogo_jax.data.pipeline import EpochOrder, PackedImages, RecordSource, open_batches
from yogo_jax.data.records import Records
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.detections import Detections, Thresholds, check_numbers, not_numbers
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.losses import LossTerms, label_loss
from yogo_jax.detector.nms import PaddedDetections, detect
from yogo_jax.detector.postprocess import Selected, select_cells
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.confusion import DetectionMetrics, Matches
from yogo_jax.metrics.mean_ap import (
    MEAN_AP_OBJECTNESS,
    ORIGINAL_OBJECTNESS,
    MeanAveragePrecision,
    OriginalMeanAveragePrecision,
)
from yogo_jax.parallel import Devices


# Images that a device takes at a time by default: enough to keep it busy.
IMAGES_AT_A_TIME = 8


class BatchOutputs(NamedTuple):
    """The results of the device for a batch of an evaluation.

    Of `outputs`, see `ModelSpec.outputs`, the host makes the many boxes that mean AP ranks: its NMS
    compares neighbours only, and takes a hundredth of the time.
    """

    terms: LossTerms
    detections: PaddedDetections
    outputs: jax.Array
    label_boxes_xyxy: jax.Array


def make_eval_step(
    spec: ModelSpec, loss_weights: LossWeights, thresholds: Thresholds
) -> Callable[[Any, Any], BatchOutputs]:
    """Makes a pure function of (variables, batch): losses and detections of each image."""
    cells = spec.grid_hw[0] * spec.grid_hw[1]
    keep = functools.partial(detect, thresholds=thresholds, max_detections=cells)
    image_loss = functools.partial(label_loss, weights=loss_weights)

    def eval_step(variables: Any, batch: Any) -> BatchOutputs:
        predictions = spec.predict(variables, batch["image"])
        labels = (batch["boxes_cxcywh"], batch["class_ids"], batch["valid"])
        return BatchOutputs(
            terms=jax.vmap(image_loss)(predictions, *labels),
            detections=jax.vmap(keep)(predictions),
            outputs=spec.layout(predictions),
            label_boxes_xyxy=cxcywh_to_xyxy(batch["boxes_cxcywh"]),
        )

    return eval_step


class Evaluator:
    """Evaluates one model, with any weights, on any records; compiles once.

    Every device takes `batch_size` images at a time, however many devices there are: what is
    computed of an image does not depend on their number.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        loss_weights: LossWeights,
        batch_size: int,
        max_boxes: int,
        workers: int,
        thresholds: Thresholds | None = None,
        devices: Devices | None = None,
    ) -> None:
        self.spec = spec
        self._batch_size = batch_size
        self._max_boxes = max_boxes
        self._workers = workers
        self.devices = devices = devices or Devices()
        self._thresholds = thresholds = thresholds or Thresholds()
        step = make_eval_step(spec, loss_weights, thresholds)
        copied, by_image = devices.copied, devices.by_image
        self._step = jax.jit(
            jax.shard_map(
                step,
                mesh=devices.mesh,
                in_specs=(copied.spec, by_image.spec),
                out_specs=by_image.spec,
                check_vma=False,
            ),
            in_shardings=(copied, by_image),
            out_shardings=by_image,
        )

    def run(
        self,
        variables: Mapping[str, Any],
        records: Records,
        *,
        keep_images: bool = False,
        before_batch: Callable[[], object] = lambda: None,
        packed: PackedImages | None = None,
    ) -> "Evaluation":
        """Evaluates the weights on the records.

        Args:
          variables: `params` and `batch_stats`.
          records: at least one image.
          keep_images: also give back what was found in each image, from which pictures, curves and
            intervals are made. It takes some 50 bytes a box.
          before_batch: called before each batch; what it raises ends the evaluation.
          packed: the images, if they are packed.

        Returns:
          The metrics as plain values for JSON: keys of `DetectionMetrics`,
          `MeanAveragePrecision` and `OriginalMeanAveragePrecision`, `loss` and `loss_terms` (means
          over the images); and the images, in the order of the records, if they were asked for.

        Raises:
          NotNumbersError: the network gives NaN or infinite values where it may see an object, or
            the loss of an image is no number.
          UserError: an image cannot be read.
        """
        spec, devices = self.spec, self.devices
        variables = devices.copy(variables)
        measured: list[_Measured] = []
        source = RecordSource(
            records,
            image_hw=spec.image_hw,
            rgb=spec.rgb,
            max_boxes=self._max_boxes,
            apply_orientation=spec.apply_orientation,
            packed=packed,
        )
        order = EpochOrder(
            num_records=len(records), batch_size=self._batch_size * devices.count, seed=None
        )
        with open_batches(source, order, workers=self._workers, share=devices.share) as batches:
            for batch in batches:
                before_batch()
                outputs = devices.own(self._step(variables, devices.spread(batch)))
                for row in np.flatnonzero(batch["image_valid"]).tolist():
                    one = jax.tree.map(lambda array, row=row: array[row], outputs)
                    measured.append(_measured(one, batch, row, spec, self._thresholds))
        # Of each batch a process has some images in a row: sorted, they are as one reads them.
        everything = sorted(devices.gather(measured), key=lambda image: image.record)
        return _evaluation(everything, spec, records.image_paths, keep_images=keep_images)


class _Measured(NamedTuple):
    """Results and labels of one image, on the host and without padding."""

    record: int
    found: Detections
    ranked: Detections
    ranked_original: Detections
    label_boxes_xyxy: np.ndarray
    label_class_ids: np.ndarray
    loss_terms: np.ndarray
    unusable: int


def _measured(
    outputs: BatchOutputs, batch: Mapping, row: int, spec: ModelSpec, thresholds: Thresholds
) -> _Measured:
    valid = batch["valid"][row]
    # Each has an NMS of its own: a box of little objectness may suppress another.
    ranked, original = (
        select_cells(np.asarray(outputs.outputs), Thresholds(objectness=least, iou=thresholds.iou))
        for least in (MEAN_AP_OBJECTNESS, ORIGINAL_OBJECTNESS)
    )
    return _Measured(
        record=int(batch["record_index"][row]),
        found=outputs.detections.to_host(
            spec.class_names, spec.image_hw, thresholds.class_thresholds
        ),
        ranked=_on_host(ranked, spec),
        ranked_original=_on_host(original, spec),
        label_boxes_xyxy=np.asarray(outputs.label_boxes_xyxy)[valid],
        label_class_ids=batch["class_ids"][row][valid],
        loss_terms=np.asarray(outputs.terms, np.float64),
        unusable=max(int(outputs.detections.unusable), ranked.unusable),
    )


def _on_host(selected: Selected, spec: ModelSpec) -> Detections:
    return Detections(
        boxes_xyxy=selected.boxes_xyxy,
        objectness=selected.objectness,
        class_probs=selected.class_probs,
        class_names=spec.class_names,
        image_hw=spec.image_hw,
    )


def _evaluation(
    measured: Sequence[_Measured], spec: ModelSpec, paths: Sequence[str], *, keep_images: bool
) -> "Evaluation":
    """Metrics of all images, in their order."""
    metrics = DetectionMetrics(spec.class_names)
    mean_ap = MeanAveragePrecision(spec.class_names)
    original = OriginalMeanAveragePrecision(spec.class_names)
    sums = np.zeros(len(LossTerms._fields))
    images: list[ImageResult] = []
    for each in measured:
        labels = each.label_boxes_xyxy, each.label_class_ids
        found, ranked = each.found, each.ranked
        check_numbers(each.unusable, str(paths[each.record]))
        if not np.isfinite(each.loss_terms).all():
            terms = ", ".join(
                f"{name} {value:g}"
                for name, value in zip(LossTerms._fields, each.loss_terms, strict=True)
            )
            raise not_numbers(str(paths[each.record]), f"a loss of {terms}")
        matches = metrics.update(found.boxes_xyxy, found.class_probs, *labels, found.class_ids)
        for accumulator, boxes in ((mean_ap, ranked), (original, each.ranked_original)):
            accumulator.update(boxes.boxes_xyxy, boxes.objectness, boxes.class_probs, *labels)
        sums += each.loss_terms
        if keep_images:
            path = str(paths[each.record])
            images.append(ImageResult(path, found, ranked, *labels, matches, each.loss_terms))
    means = sums / len(measured)
    values = {
        **mean_ap.compute(),
        **original.compute(),
        **metrics.compute(),
        "loss": float(means.sum()),
        "loss_terms": dict(zip(LossTerms._fields, means.tolist(), strict=True)),
    }
    return Evaluation(values, tuple(images))


class ImageResult(NamedTuple):
    """The result of an evaluation for one image.

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
    found: Detections
    ranked: Detections
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
