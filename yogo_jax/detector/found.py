"""Detections of one image on the host, from the outputs of any engine, by one and the same code.

Outputs are what exported models give: [5+k gh gw] = xc, yc, w, h as fractions of the image,
objectness, class probabilities. A checkpoint's predictions are brought into this form too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.detector.decode import BOX_CHANNELS
from yogo_jax.detector.detections import Detections, select
from yogo_jax.errors import UserError


# Candidates are padded to powers of two, at least this many, so that few sizes are compiled.
_FEWEST_CANDIDATES = 64


class Thresholds(NamedTuple):
    """When a box counts as a detection.

    Attributes:
      objectness: a box lies above it.
      iou: of the NMS.
      min_class_confidence: probability that the most probable class exceeds, if it is above 0.
      min_scores: least score, objectness times that probability, by class; empty is none.
    """

    objectness: float = 0.5
    iou: float = 0.5
    min_class_confidence: float = 0.0
    min_scores: tuple[float, ...] = ()


class NotNumbersError(UserError):
    """A network gives values that are NaN or infinite, where it may see an object."""


class Found(NamedTuple):
    """Detections of one image on the host, without padding: arrays [n 4], [n] and [n k]."""

    boxes_xyxy: np.ndarray
    objectness: np.ndarray
    class_probs: np.ndarray

    @property
    def class_ids(self) -> np.ndarray:
        """The most probable class of each, int32 [n]."""
        return self.class_probs.argmax(-1).astype(np.int32)

    @property
    def scores(self) -> np.ndarray:
        """Objectness times the probability of the most probable class, [n]."""
        return self.objectness * self.class_probs.max(-1, initial=0)


def on_host(detections: Detections) -> Found:
    """Fetches the detections of one image, and leaves out their padding."""
    valid = np.asarray(detections.valid)
    return Found(*(np.asarray(array)[valid] for array in detections[:3]))


def check_numbers(unusable: int, image: str) -> None:
    """Refuses detections of an image in which others may be missing.

    Args:
      unusable: of its `Detections`.
      image: its name.

    Raises:
      NotNumbersError: cells were left out because they hold no numbers.
    """
    if unusable:
        cells = "1 cell" if unusable == 1 else f"{unusable} cells"
        raise not_numbers(image, f"NaN or infinite values in {cells}")


def not_numbers(image: str, found: str) -> NotNumbersError:
    """The error on an image for which a network gives something else than numbers."""
    return NotNumbersError(
        f"{image}: the network gives {found}, expected numbers. In half precision values leave its "
        "range: compute in f32. If it is so in f32, too, the weights are damaged: use another "
        "checkpoint"
    )


def detections_of(
    outputs: Float[np.ndarray, "outputs gh gw"], thresholds: Thresholds | None = None
) -> Found:
    """Detections of one image's outputs after threshold and NMS, by descending score."""
    return on_host(select_from(outputs, thresholds or Thresholds()))


def select_from(outputs: Float[np.ndarray, "outputs gh gw"], thresholds: Thresholds) -> Detections:
    """As `detections_of`, still on the device and with padding.

    Only cells above the objectness threshold go to the NMS, which has room for all of them: nothing
    is cut off, and the work follows what is in the image.
    """
    cells = outputs.reshape(len(outputs), -1)
    # Also those with a NaN, which `select` counts.
    rows = cells[:, ~(cells[BOX_CHANNELS - 1] <= thresholds.objectness)].T
    size = max(_FEWEST_CANDIDATES, 1 << max(len(rows) - 1, 0).bit_length())
    # An objectness of 0 is above no threshold, so padding is never a candidate.
    padded = np.zeros((size, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return _select(padded, thresholds)


@functools.partial(jax.jit, static_argnums=1)
def _select(rows: Float[Array, "n outputs"], thresholds: Thresholds) -> Detections:
    return select(
        cxcywh_to_xyxy(jnp.asarray(rows)[:, :4]),
        rows[:, BOX_CHANNELS - 1],
        rows[:, BOX_CHANNELS:],
        objectness_threshold=thresholds.objectness,
        iou_threshold=thresholds.iou,
        min_class_confidence=thresholds.min_class_confidence,
        min_scores=thresholds.min_scores,
        max_detections=len(rows),
    )
