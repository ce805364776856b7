"""COCO's mean average precision over a data set, from all predictions and not from matched ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.metrics.confusion import check_class_ids
from yogo_jax.metrics.ranking import (
    MAX_DETECTIONS,
    RankedImage,
    average_precision,
    merge,
    rank_image,
)


class MeanAveragePrecision:
    """AP at IoU 0.5 and the mean over IoU 0.5, 0.55 … 0.95, of each class and over the classes.

    Precision is interpolated at COCO's 101 recalls. Equal scores rank in the order in which they
    were given. Each prediction has one label.

    Args:
      class_names: names in the order of the class ids.
      max_detections: best predictions of an image that count.

    References:
      Lin et al. 2014, Microsoft COCO, arXiv:1405.0312; cocodataset.org, "Detection evaluation".
    """

    def __init__(self, class_names: Sequence[str], *, max_detections: int = MAX_DETECTIONS) -> None:
        self.class_names = tuple(class_names)
        self.max_detections = max_detections
        self._images: list[RankedImage] = []
        self._images_over_max_detections = 0

    def update(
        self,
        boxes_xyxy: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, " n"],
        class_ids: Int[np.ndarray, " n"],
        label_boxes_xyxy: Float[np.ndarray, "m 4"],
        label_class_ids: Int[np.ndarray, " m"],
    ) -> None:
        """Adds one image: its predictions in any order, and its true boxes.

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
        self._images_over_max_detections += len(scores) > self.max_detections
        best = np.argsort(-scores, kind="stable")[: self.max_detections]
        labels = label_boxes_xyxy, label_class_ids
        self._images.append(rank_image(boxes_xyxy[best], scores[best], class_ids[best], *labels))

    def compute(self) -> dict[str, Any]:
        """The metrics of the images so far, ready for JSON.

        Returns:
          - `mAP50`, `mAP50_95`: means over the classes with at least one true box; None if there is
            no such class.
          - `AP50_by_class`, `AP50_95_by_class`: None for a class without a true box, 0.0 for one
            that was never predicted.
          - `images_over_max_detections`: images whose predictions did not all count.
        """
        ranking = merge(self._images, len(self.class_names))
        once = np.ones((1, len(self._images)), np.int64)
        ap50: dict[str, float | None] = {}
        ap50_95: dict[str, float | None] = {}
        for class_id, name in enumerate(self.class_names):
            of_class = ranking.of_class(class_id)
            (by_iou,) = average_precision(of_class, once)
            exists = bool(of_class.objects.any())
            ap50[name] = float(by_iou[0]) if exists else None
            ap50_95[name] = float(by_iou.mean()) if exists else None
        return {
            "mAP50": _mean(ap50),
            "mAP50_95": _mean(ap50_95),
            "AP50_by_class": ap50,
            "AP50_95_by_class": ap50_95,
            "images_over_max_detections": self._images_over_max_detections,
        }


def _mean(by_class: dict[str, float | None]) -> float | None:
    """Mean over the classes that have a value."""
    values = [value for value in by_class.values() if value is not None]
    return float(np.mean(values)) if values else None
