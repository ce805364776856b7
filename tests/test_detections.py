import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity import load
from yogo_jax.detector.boxes import xyxy_to_cxcywh
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.nms import detect


def as_predictions(upstream: np.ndarray) -> Predictions:
    """The recorded classes are probabilities; their logarithm is a logit that gives them back."""
    in_cells = jnp.moveaxis(jnp.asarray(upstream), 0, -1)
    return Predictions(in_cells[..., :4], in_cells[..., 4], jnp.log(in_cells[..., 5:]))


def rows_of(detections) -> np.ndarray:
    """As the recording: box, objectness, class probabilities, one row per valid detection."""
    table = jnp.concatenate(
        [detections.boxes_xyxy, detections.objectness[:, None], detections.class_probs], 1
    )
    return np.asarray(table)[np.asarray(detections.valid)]


SETTINGS = {
    "xyxy": Thresholds(),
    "strict": Thresholds(objectness=0.7, iou=0.3, min_class_confidence=0.5),
    # Boxes above no IoU of 1: nothing is suppressed.
    "no_nms": Thresholds(iou=1.0),
}


@pytest.mark.optimized
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("image", range(6))
def test_recorded_formatting(setting, image):
    recorded = load("format_preds.npz")
    thresholds = SETTINGS[setting]
    run = jax.jit(functools.partial(detect, thresholds=thresholds, max_detections=192))
    found = rows_of(run(as_predictions(recorded["raw"][image])))
    expected = recorded[f"{setting}_{image}"]
    if setting != "xyxy":
        found[:, :4] = np.asarray(xyxy_to_cxcywh(jnp.asarray(found[:, :4])))
    if setting == "no_nms":  # recorded in the order of the cells
        found, expected = (rows[rows[:, 5].argsort()] for rows in (found, expected))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_default_recording_is_the_same_in_other_coordinates():
    recorded = load("format_preds.npz")
    for image in range(6):
        corners = jnp.asarray(recorded[f"xyxy_{image}"])
        np.testing.assert_allclose(
            xyxy_to_cxcywh(corners[:, :4]), recorded[f"default_{image}"][:, :4], atol=1e-6
        )


def grid(objectness: list[float], probs: list[tuple[float, float]]) -> Predictions:
    """One row of cells whose boxes do not touch."""
    count = len(objectness)
    centres = (np.arange(count) + 0.5) / count
    boxes = np.stack([centres, np.full(count, 0.5), *np.full((2, count), 0.5 / count)], 1)
    return Predictions(
        jnp.asarray(boxes, jnp.float32)[None],
        jnp.asarray(objectness, jnp.float32)[None],
        jnp.log(jnp.asarray(probs, jnp.float32))[None],
    )


def test_thresholds_are_exclusive_and_class_confidence_is_a_probability():
    predictions = grid([0.5, 0.9, 0.8], [(0.9, 0.1), (0.25, 0.75), (0.5, 0.5)])
    kept = detect(predictions, Thresholds(min_class_confidence=0.6), max_detections=8)
    np.testing.assert_allclose(rows_of(kept)[:, 4:], [[0.9, 0.25, 0.75]], rtol=1e-6)


def test_fixed_size_whatever_is_found():
    predictions = grid([0.1, 0.1, 0.1], [(0.5, 0.5)] * 3)
    found = detect(predictions, Thresholds(), max_detections=5)
    assert found.boxes_xyxy.shape == (5, 4)
    assert not found.valid.any()


def test_thresholds_of_classes():
    # Largest scores 0.81, 0.64 and 0.56 of class 0, 0.48 of class 1.
    predictions = grid([0.9, 0.8, 0.7, 0.8], [(0.9, 0.1), (0.8, 0.2), (0.8, 0.2), (0.4, 0.6)])

    def count(class_thresholds):
        at = Thresholds(class_thresholds=class_thresholds)
        found = detect(predictions, at, max_detections=8)
        return np.asarray(found.objectness)[np.asarray(found.valid)].tolist()

    everything = count(())
    assert len(everything) == 4
    assert count((0.01, 0.01)) == everything
    np.testing.assert_allclose(count((0.6, 0.4)), [0.9, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(count((0.3, 0.5)), [0.9, 0.8, 0.7, 0.8], rtol=1e-6)
    np.testing.assert_allclose(count((0.5, 0.5)), [0.9, 0.8, 0.7], rtol=1e-6)
    assert count((1.0, 1.0)) == []
