"""COCO's mean average precision over a data set, from all predictions and not from matched ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float, Int

from yogo_jax.metrics.confusion import check_class_ids


class _Boxes(NamedTuple):
    """Boxes of one image: predictions, or labels (whose scores are not used)."""

    boxes_xywh_px: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    class_ids: Int[np.ndarray, " n"]


# Of one frame; more are cut off and counted.
MAX_DETECTIONS = 2000


class MeanAveragePrecision:
    """AP at IoU 0.5 and the mean over IoU 0.5, 0.55 … 0.95, of each class and over the classes.

    Precision is interpolated at COCO's 101 recalls. Equal scores rank in the order in which they
    were given. Each prediction has one label.

    Args:
      class_names: names in the order of the class ids.
      image_hw: (rows, columns) of the images in pixels.
      max_detections: best predictions of an image that count. COCO's own limit of 100 is too few
        for a field of cells.

    References:
      Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
    """

    def __init__(
        self,
        class_names: Sequence[str],
        image_hw: tuple[int, int],
        *,
        max_detections: int = MAX_DETECTIONS,
    ) -> None:
        self.class_names = tuple(class_names)
        self.image_hw = image_hw
        self.max_detections = max_detections
        self._predictions: list[_Boxes] = []
        self._labels: list[_Boxes] = []
        self._images_over_max_detections = 0

    def update(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, " n"],
        class_ids: Int[np.ndarray, " n"],
        label_boxes_xyxy: Float[np.ndarray, "m 4"],
        label_class_ids: Int[np.ndarray, " m"],
    ) -> None:
        """Add one image: its predictions in any order, and its true boxes.

        Args:
          boxes_xyxy: predicted boxes in [0, 1], after NMS, with hardly any threshold on the score.
          scores: confidence by which predictions are ranked over all images.
          class_ids: the one label of each prediction.
          label_boxes_xyxy: true boxes in [0, 1].
          label_class_ids: index into `class_names` of each true box.

        Raises:
          ValueError: a score or coordinate is not finite, or a class id is out of range.
        """
        for ids in (class_ids, label_class_ids):
            check_class_ids(ids, len(self.class_names))
        for values in (boxes_xyxy, scores, label_boxes_xyxy):
            # A NaN neither sorts nor overlaps: it would be scored, but as what?
            if not np.isfinite(values).all():
                raise ValueError("boxes and scores must be finite, got NaN or infinity")

        predictions = _Boxes(self._to_xywh_px(boxes_xyxy), scores.copy(), class_ids.copy())
        if len(scores) > self.max_detections:
            self._images_over_max_detections += 1
            best = np.sort(np.argsort(-scores, kind="stable")[: self.max_detections])
            predictions = _Boxes(*(field[best] for field in predictions))
        no_scores = np.zeros(len(label_class_ids), np.float32)
        labels = _Boxes(self._to_xywh_px(label_boxes_xyxy), no_scores, label_class_ids.copy())
        self._predictions.append(predictions)
        self._labels.append(labels)

    def compute(self) -> dict[str, Any]:
        """The metrics of the images so far, ready for JSON.

        Returns:
          - `mAP50`, `mAP50_95`: means over the classes with at least one true box; None if there is
            no such class.
          - `AP50_by_class`, `AP50_95_by_class`: None for a class without a true box, 0.0 for one
            that was never predicted.
          - `images_over_max_detections`: images whose predictions did not all count.
        """
        ap50: dict[str, float | None] = {}
        ap50_95: dict[str, float | None] = {}
        # One class after the other: the same numbers, and only one class held as COCO's dicts.
        for class_id, name in enumerate(self.class_names):
            by_iou = self._average_precision(class_id)
            ap50[name] = None if by_iou is None else float(by_iou[0])
            ap50_95[name] = None if by_iou is None else float(by_iou.mean())
        return {
            "mAP50": _mean(ap50),
            "mAP50_95": _mean(ap50_95),
            "AP50_by_class": ap50,
            "AP50_95_by_class": ap50_95,
            "images_over_max_detections": self._images_over_max_detections,
        }

    def _average_precision(self, class_id: int) -> Float[np.ndarray, " ious"] | None:
        """AP of one class at COCO's ten IoU thresholds."""
        labels = _to_coco(self._labels, class_id)
        if not labels.anns:
            return None
        predictions = _to_coco(self._predictions, class_id)
        evaluation = COCOeval_faster(
            labels, predictions, iouType="bbox", print_function=_print_nothing
        )
        evaluation.params.maxDets = [self.max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        # [IoU thresholds, recalls, 1 class, 1 range of areas, 1 limit of detections]
        return np.asarray(evaluation.eval["precision"])[:, :, 0, 0, 0].mean(axis=1)

    def _to_xywh_px(self, boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        rows, columns = self.image_hw
        boxes_px = boxes_xyxy * np.array([columns, rows, columns, rows], np.float64)
        return np.concatenate([boxes_px[:, :2], boxes_px[:, 2:] - boxes_px[:, :2]], axis=1)


def _to_coco(images: Sequence[_Boxes], class_id: int) -> COCO:
    """The boxes of one class as a COCO data set with that single category."""
    annotations: list[dict[str, Any]] = []
    for image_id, (boxes_xywh_px, scores, class_ids) in enumerate(images):
        of_class = class_ids == class_id
        for box, score in zip(
            boxes_xywh_px[of_class].tolist(), scores[of_class].tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would read as "unmatched"
                    "image_id": image_id,
                    "category_id": 0,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return COCO(
        {
            "images": [{"id": image_id} for image_id in range(len(images))],
            "categories": [{"id": 0}],
            "annotations": annotations,
        },
        print_function=_print_nothing,
    )


def _mean(by_class: dict[str, float | None]) -> float | None:
    """Mean over the classes that have a value."""
    values = [value for value in by_class.values() if value is not None]
    return float(np.mean(values)) if values else None


def _print_nothing(*_: object) -> None:
    """Stands in for the evaluator's progress messages; its errors are exceptions and get out."""
