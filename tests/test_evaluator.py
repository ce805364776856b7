"""The protocol of the evaluation, with predictions made by hand and numbers counted by hand.

The network is replaced by a table of predictions, one row a record: the "weights" hold the table,
and the gray value of an image says which row is its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from reference import bin_targets, ciou_loss
from yogo_jax.data.definition import PathPair
from yogo_jax.data.records import read_records
from yogo_jax.detector.decode import Predictions
from yogo_jax.detector.detections import NotNumbersError, Thresholds
from yogo_jax.detector.loss_weights import LossWeights
from yogo_jax.detector.nms import detect
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.drawing import draw_boxes
from yogo_jax.metrics.evaluator import Evaluator
from yogo_jax.reports.evaluation_page import write_pictures
from yogo_jax.training.tracking import NotFiniteError, SilentTracker
from yogo_jax.training.validation import validate


NAMES = ("healthy", "ring", "wbc")
SPEC = ModelSpec(
    architecture="quarter_filters",
    class_names=NAMES,
    image_hw=(32, 32),
    anchor_wh=(0.2, 0.2),
    rgb=False,
    normalize_images=True,
)
GRID_HW = (4, 4)
GRAY_STEP = 40
WEIGHTS = LossWeights(
    no_object_weight=0.3, iou_weight=4.0, classify_weight=2.0, label_smoothing=0.1
)
# Places that do not touch, as corners.
A, B, C, D = (
    (0.0, 0.0, 0.25, 0.25),
    (0.5, 0.0, 0.75, 0.25),
    (0.0, 0.5, 0.25, 0.75),
    (0.5, 0.5, 0.75, 0.75),
)
NEAR_A = (0.05, 0.0, 0.3, 0.25)  # IoU with A 2/3
BESIDE_A = (0.1, 0.0, 0.35, 0.25)  # 3/7
HALF_A = (0.0, 0.0, 0.25, 0.125)  # exactly 1/2
HEALTHY, RING, WBC = (0.9, 0.06, 0.04), (0.06, 0.9, 0.04), (0.04, 0.06, 0.9)


class Box(NamedTuple):
    """Prediction of one cell."""

    xyxy: tuple[float, ...]
    objectness: float
    probs: tuple[float, ...] = HEALTHY


class Frame(NamedTuple):
    """One image: what is predicted and what is true, as (corners, class id)."""

    predicted: tuple[Box, ...] = ()
    labels: tuple[tuple[tuple[float, ...], int], ...] = ()


@pytest.fixture(scope="module", autouse=True)
def _predictions_from_a_table():
    def predict(self, variables, images):
        row = images[:, 0, 0, 0].astype(jnp.int32) // GRAY_STEP
        return jax.tree.map(lambda each: each[row], Predictions(**variables))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelSpec, "predict", predict)
        yield


@functools.cache
def evaluator_of(batch_size, thresholds):
    """One compilation for all tests that ask for the same; the fixture above is in it."""
    return Evaluator(
        SPEC,
        loss_weights=WEIGHTS,
        batch_size=batch_size,
        max_boxes=4,
        workers=0,
        thresholds=thresholds,
    )


def cxcywh(xyxy):
    x1, y1, x2, y2 = xyxy
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def records_of(folder, frames):
    """The frames as image and label files, read back."""
    pair = PathPair(folder / "images", folder / "labels")
    for path in pair.image_path, pair.label_path:
        path.mkdir(parents=True)
    for index, frame in enumerate(frames):
        pixels = np.full(SPEC.image_hw, GRAY_STEP * index, np.uint8)
        Image.fromarray(pixels).save(pair.image_path / f"frame_{index}.png")
        rows = [
            f"{class_id} " + " ".join(f"{value:.6f}" for value in cxcywh(xyxy)) + "\n"
            for xyxy, class_id in frame.labels
        ]
        (pair.label_path / f"frame_{index}.txt").write_text("".join(rows))
    records, _ = read_records([pair], NAMES, on_bad_label="error")
    return records


def table_of(frames):
    """Predictions of all frames: the boxes in the first cells, the rest is empty cells.

    It always has the rows of as many frames as gray values allow, so that all tables share a
    compilation. Logits have an offset: only differences between them mean anything.
    """
    shape = (255 // GRAY_STEP + 1, GRID_HW[0] * GRID_HW[1])
    boxes = np.full((*shape, 4), 0.5, np.float32)
    objectness = np.zeros(shape, np.float32)
    probs = np.full((*shape, len(NAMES)), 1 / len(NAMES), np.float32)
    for row, frame in enumerate(frames):
        for cell, box in enumerate(frame.predicted):
            boxes[row, cell] = cxcywh(box.xyxy)
            objectness[row, cell] = box.objectness
            probs[row, cell] = box.probs
    table = {
        "boxes_cxcywh": boxes,
        "objectness": objectness,
        "class_logits": np.log(probs) + np.float32(3),
    }
    return {
        name: jnp.asarray(each.reshape(-1, *GRID_HW, *each.shape[2:]))
        for name, each in table.items()
    }


def evaluate(folder, frames, *, batch_size=4, thresholds=None):
    evaluator = evaluator_of(batch_size, thresholds)
    return evaluator.run(table_of(frames), records_of(folder, frames)).metrics


def images_of(folder, frames):
    evaluator = evaluator_of(4, None)
    records = records_of(folder, frames)
    return evaluator.run(table_of(frames), records, keep_images=True).images


def matrix(metrics):
    return metrics["confusion"]["matrix"]


@pytest.mark.parametrize(
    ("objectness", "ranked", "original", "counted"),
    [
        pytest.param(0.9, True, True, True, id="sure"),
        pytest.param(0.51, True, True, True, id="just above 0.5"),
        pytest.param(0.5, True, True, False, id="at 0.5"),
        pytest.param(0.3, True, True, False, id="unsure"),
        pytest.param(0.051, True, True, False, id="just above 0.05"),
        pytest.param(0.05, True, False, False, id="at 0.05"),
        pytest.param(0.0101, True, False, False, id="just above 0.01"),
        pytest.param(0.01, False, False, False, id="at 0.01"),
        pytest.param(0.0, False, False, False, id="nothing"),
    ],
)
def test_which_boxes_take_part_in_what(tmp_path, objectness, ranked, original, counted):
    frame = Frame((Box(A, 0.9), Box(B, objectness)), ((A, 0), (B, 0)))
    metrics = evaluate(tmp_path, [frame])
    # COCO asks for precision at 101 recalls; half of the boxes reach 0, 0.01 ... 0.5 of them.
    assert metrics["mAP50"] == pytest.approx(1.0 if ranked else 51 / 101)
    assert metrics["mAP50_original"] == pytest.approx(1.0 if original else 51 / 101)
    assert matrix(metrics)[0] == [1 + counted, 0, 0, 1 - counted]
    assert metrics["predictions"] == metrics["matched"] == 1 + counted
    assert metrics["missed_by_class"]["healthy"] == 1 - counted


@pytest.mark.parametrize(
    ("true", "false", "ap"),
    [
        # Right first: precision 1 at every recall. Wrong first: 1 of 2.
        pytest.param(Box(A, 0.6, (0.9, 0.06, 0.04)), Box(B, 0.9, (0.5, 0.3, 0.2)), 1.0, id="p"),
        pytest.param(Box(A, 0.9, (0.6, 0.3, 0.1)), Box(B, 0.5, (0.9, 0.06, 0.04)), 1.0, id="o"),
        pytest.param(Box(A, 0.9, (0.5, 0.3, 0.2)), Box(B, 0.6, (0.9, 0.06, 0.04)), 0.5, id="p-"),
        pytest.param(Box(A, 0.5, (0.9, 0.06, 0.04)), Box(B, 0.9, (0.6, 0.3, 0.1)), 0.5, id="o-"),
    ],
)
@pytest.mark.parametrize("apart", [False, True], ids=["in one image", "in two images"])
def test_the_score_is_objectness_times_probability(tmp_path, true, false, ap, apart):
    label = (A, 0)
    frames = (
        [Frame((false,)), Frame((true,), (label,))] if apart else [Frame((false, true), (label,))]
    )
    metrics = evaluate(tmp_path, frames)
    for key in ("AP50_by_class", "AP50_by_class_original"):
        assert metrics[key] == {"healthy": pytest.approx(ap), "ring": None, "wbc": None}


def test_nms_takes_all_classes_together(tmp_path):
    frame = Frame((Box(NEAR_A, 0.8, RING), Box(A, 0.9, HEALTHY)), ((NEAR_A, 1),))
    metrics = evaluate(tmp_path, [frame])
    assert matrix(metrics)[1] == [1, 0, 0, 0]
    assert metrics["predictions"] == 1
    assert metrics["AP50_by_class_original"]["ring"] == 0
    # What is left is a candidate for a ring, too.
    assert metrics["AP50_by_class"]["ring"] == 1


def test_nms_comes_before_mean_ap(tmp_path):
    # The duplicate would be wrong, in second place of three: half of the recalls at 2/3.
    frame = Frame((Box(A, 0.9), Box(NEAR_A, 0.8), Box(B, 0.7)), ((A, 0), (B, 0)))
    metrics = evaluate(tmp_path, [frame])
    assert metrics["mAP50"] == pytest.approx(1)
    assert metrics["mAP50_original"] == pytest.approx(1)
    assert metrics["predictions"] == 2


def test_each_protocol_has_an_nms_of_its_own(tmp_path):
    # 0.04 * 0.9 against 0.06 * 0.5: the first suppresses the second, unless it takes no part.
    frame = Frame((Box(A, 0.04, RING), Box(NEAR_A, 0.06, (0.5, 0.3, 0.2))), ((NEAR_A, 0),))
    metrics = evaluate(tmp_path, [frame])
    assert metrics["mAP50_95_original"] == 1
    assert metrics["mAP50_95"] == pytest.approx(0.4)  # IoU 2/3: four of ten thresholds


def test_coco_counts_every_cell_of_the_grid_and_what_is_left_of_boxes_in_the_frame(tmp_path):
    places = [(x / 4, y / 4, x / 4 + 0.25, y / 4 + 0.25) for x in range(4) for y in range(4)]
    # The first is right within the frame only.
    places[0] = (-0.3, -0.3, 0.25, 0.25)
    frame = Frame(tuple(Box(place, 0.3) for place in places), ((A, 0), ((0.75, 0.75, 1, 1), 0)))
    metrics = evaluate(tmp_path, [frame])
    # Equal scores rank by cell: first and last of 16.
    assert metrics["mAP50"] == pytest.approx((51 * 1 + 50 * 2 / 16) / 101)
    assert metrics["mAP50_original"] == pytest.approx(51 / 101 / 16)


def test_nms_keeps_the_better_score_not_the_better_objectness(tmp_path):
    # 0.6 * 0.9 against 0.9 * 0.5.
    frame = Frame((Box(A, 0.9, (0.5, 0.3, 0.2)), Box(A, 0.6, RING)), ((A, 1),))
    metrics = evaluate(tmp_path, [frame])
    assert matrix(metrics)[1] == [0, 1, 0, 0]
    assert metrics["AP50_by_class"]["ring"] == pytest.approx(1)


def test_a_box_that_does_not_count_suppresses_none_that_does(tmp_path):
    # For mean AP the first one does: 0.5 * 0.9 against 0.6 * 0.5.
    frame = Frame((Box(A, 0.5, RING), Box(A, 0.6, (0.5, 0.3, 0.2))), ((A, 0),))
    metrics = evaluate(tmp_path, [frame])
    assert matrix(metrics)[0] == [1, 0, 0, 0]
    assert metrics["AP50_by_class_original"]["healthy"] == 0


@pytest.mark.parametrize(
    ("other", "iou", "kept"),
    [
        pytest.param(NEAR_A, None, 1, id="2/3 at the default"),
        pytest.param(HALF_A, None, 2, id="1/2 at the default"),
        pytest.param(BESIDE_A, None, 2, id="3/7 at the default"),
        pytest.param(BESIDE_A, 0.4, 1, id="3/7 at 0.4"),
    ],
)
def test_the_iou_threshold(tmp_path, other, iou, kept):
    thresholds = None if iou is None else Thresholds(iou=iou)
    frame = Frame((Box(A, 0.9), Box(other, 0.8)), ((A, 0),))
    metrics = evaluate(tmp_path, [frame], thresholds=thresholds)
    assert metrics["predictions"] == kept


def test_the_objectness_threshold_leaves_mean_ap_alone(tmp_path):
    frame = Frame((Box(A, 0.9), Box(B, 0.6), Box(C, 0.3)), ((A, 0), (B, 0), (C, 0)))
    metrics = evaluate(tmp_path, [frame], thresholds=Thresholds(objectness=0.7))
    assert matrix(metrics)[0] == [1, 0, 0, 2]
    assert metrics["mAP50"] == pytest.approx(1)


def test_a_box_has_one_class_its_most_probable_one(tmp_path):
    frame = Frame((Box(A, 0.9, (0.5, 0.45, 0.05)),), ((A, 1),))
    metrics = evaluate(tmp_path, [frame])
    assert matrix(metrics) == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics["AP50_by_class_original"] == {"healthy": None, "ring": 0, "wbc": None}
    assert metrics["AP50_by_class"] == {"healthy": None, "ring": 1, "wbc": None}


def test_class_confidence_is_a_probability_and_asked_after_nms(tmp_path):
    unsure, sure = (0.6, 0.3, 0.1), (0.8, 0.1, 0.1)
    predicted = (
        Box(A, 0.95, unsure),
        Box(NEAR_A, 0.55, RING),  # surer of its class, but suppressed: 0.495 against 0.57
        Box(B, 0.85, sure),  # 0.68: a score under 0.7, a probability above
    )
    frame = Frame(predicted, ((A, 0), (B, 0)))
    metrics = evaluate(tmp_path, [frame], thresholds=Thresholds(min_class_confidence=0.7))
    assert matrix(metrics)[0] == [1, 0, 0, 1]
    assert metrics["predictions"] == 1
    assert metrics["mAP50"] == pytest.approx(1)


# The value of one cell that is spoiled: what it is of, its objectness, and its NaN or infinity.
SPOILED = {
    "objectness": ("objectness", 0.9, np.nan),
    "a class of an object": ("class_logits", 0.9, np.nan),
    "a class of one that is only ranked": ("class_logits", 0.1, np.nan),
    "a place": ("boxes_cxcywh", 0.9, np.nan),
    "a size without end": ("boxes_cxcywh", 0.9, np.inf),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_frame_with_a_value_that_is_no_number_is_refused_by_name(tmp_path, case):
    field, objectness, value = SPOILED[case]
    frames = [Frame(), Frame((Box(A, 0.8), Box(B, objectness)), ((A, 0),))]
    table = table_of(frames)
    table["objectness"] = table["objectness"].at[1, 0, 1].set(objectness)
    spoiled = table[field][1, 0, 1]
    table[field] = table[field].at[1, 0, 1].set(jnp.full_like(spoiled, value))
    records = records_of(tmp_path, frames)
    with pytest.raises(NotNumbersError, match=r"frame_1\.png: .* in 1 cell, expected numbers"):
        evaluator_of(4, None).run(table, records)
    # The other boxes of the frame are found all the same.
    one = jax.tree.map(lambda each: each[1], Predictions(**table))
    found = detect(one, Thresholds(objectness=0.05), max_detections=16)
    np.testing.assert_allclose(found.to_host(NAMES, (32, 32)).boxes_xyxy, [A], atol=1e-6)
    assert found.unusable == 1


def test_a_loss_that_is_no_number_is_refused_by_name(tmp_path):
    """A NaN among the classes is in the loss, also where no object is seen."""
    frames = [Frame(), Frame((Box(A, 0.8),), ((A, 0),))]
    table = table_of(frames)
    table["class_logits"] = table["class_logits"].at[1, 1, 1].set(jnp.nan)
    records = records_of(tmp_path, frames)
    message = r"frame_1\.png: the network gives a loss of .*classification nan, expected numbers"
    with pytest.raises(NotNumbersError, match=message):
        evaluator_of(4, None).run(table, records)


def test_a_place_that_is_no_number_is_nothing_where_no_object_is_seen(tmp_path):
    frames = [Frame((Box(A, 0.8),), ((A, 0),))]
    table = table_of(frames)
    table["boxes_cxcywh"] = table["boxes_cxcywh"].at[0, 1, 1].set(jnp.nan)
    records = records_of(tmp_path, frames)
    assert evaluator_of(4, None).run(table, records).metrics["predictions"] == 1


def test_a_validation_without_numbers_ends_a_run_as_its_loss_does(tmp_path):
    frames = [Frame((Box(A, 0.8),), ((A, 0),))]
    table = table_of(frames)
    table["objectness"] = table["objectness"].at[0, 1, 1].set(jnp.nan)
    records = records_of(tmp_path, frames)
    given = (evaluator_of(4, None), table, records, SilentTracker())
    message = r"after step 2 cannot be used: lower .*learning_rate \(.*frame_0\.png: "
    with pytest.raises(NotFiniteError, match=message):
        validate(*given, step=2, epoch=2, before_batch=lambda: None)


FRAMES = (
    # One right, one of the wrong class, one beside its label, and a label without a prediction.
    # A padding image has the gray of this one.
    Frame(
        (Box(A, 0.94), Box(B, 0.9), Box((0.6, 0.5, 0.85, 0.75), 0.8)),
        ((A, 0), (B, 1), (C, 2), (D, 0)),
    ),
    Frame(),
    Frame((Box(A, 0.7, WBC), Box(B, 0.9, RING))),
    Frame((), ((A, 1),)),
    Frame((Box(A, 0.8, RING), Box(C, 0.8, WBC), Box(D, 0.4, WBC)), ((A, 1), (C, 2))),
)


@pytest.fixture(params=[1, 4, 5], ids=lambda size: f"batches of {size}")
def metrics_of_frames(request, tmp_path):
    return evaluate(tmp_path, FRAMES, batch_size=request.param)


def test_counts_of_several_frames(metrics_of_frames):
    metrics = metrics_of_frames
    assert metrics["confusion"]["class_names"] == [*NAMES, "background"]
    assert matrix(metrics) == [[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]
    assert metrics["missed_by_class"] == {"healthy": 1, "ring": 1, "wbc": 1}
    assert metrics["extra_by_class"] == {"healthy": 1, "ring": 1, "wbc": 1}
    assert metrics["precision_by_class"] == {"healthy": 1 / 3, "ring": 1 / 2, "wbc": 1 / 2}
    assert metrics["recall_by_class"] == {"healthy": 1 / 2, "ring": 1 / 3, "wbc": 1 / 2}
    assert metrics["accuracy_by_class"] == {"healthy": 1, "ring": 1 / 2, "wbc": 1}
    # Four pairs of probability 0.9, three of them right.
    assert metrics["calibration_error"] == pytest.approx(abs(3 - 4 * 0.9) / 4)
    counts = {key: metrics[key] for key in ("images", "objects", "predictions", "matched")}
    assert counts == {"images": 5, "objects": 7, "predictions": 7, "matched": 4}


def test_mean_ap_of_several_frames(metrics_of_frames):
    expected = {
        "healthy": 51 / 101,  # right, then wrong twice: half of the recalls at precision 1
        "ring": 34 / 101 / 2,  # wrong, then right: a third of the recalls at 1/2
        "wbc": 51 / 101,  # right, then wrong twice
    }
    # As a ring, the box at the ring that is called healthy comes fourth: two thirds at 1/2.
    coco = expected | {"ring": 67 / 101 / 2}
    for suffix, by_class in (("", coco), ("_original", expected)):
        found = {key: metrics_of_frames[key + suffix] for key in ("AP50_by_class", "mAP50")}
        assert found["AP50_by_class"] == pytest.approx(by_class)
        assert found["mAP50"] == pytest.approx(sum(by_class.values()) / 3)
        # Boxes that are right are exactly right, so that a higher IoU asks for nothing more.
        assert metrics_of_frames[f"mAP50_95{suffix}"] == pytest.approx(found["mAP50"])
    assert metrics_of_frames["images_over_max_detections"] == 0


def test_the_loss_is_the_mean_over_frames_of_what_it_is_by_definition(metrics_of_frames):
    expected = np.mean([loss_terms(row, frame) for row, frame in enumerate(FRAMES)], axis=0)
    assert min(expected) > 0.1
    found = metrics_of_frames["loss_terms"]
    assert list(found) == ["objectness", "box", "classification"]
    assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-5)
    assert metrics_of_frames["loss"] == pytest.approx(sum(expected), rel=1e-5)


def loss_terms(row, frame):
    """The three terms of one frame, by loops over its cells."""
    boxes, objectness, logits = (np.float64(each[row]) for each in table_of(FRAMES).values())
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels = [(cxcywh(xyxy), class_id, True) for xyxy, class_id in frame.labels]
    columns = zip(*labels, strict=True) if labels else ((), (), ())
    filled, target_boxes, class_ids = bin_targets(*columns, GRID_HW)
    terms = np.zeros(3)
    for cell in np.ndindex(GRID_HW):
        weight = 1 if filled[cell] else WEIGHTS.no_object_weight
        terms[0] += weight * (objectness[cell] - filled[cell]) ** 2
        if filled[cell]:
            xc, yc, w, h = boxes[cell]
            corners = np.clip((xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2), 0, 1)
            target = np.full(len(NAMES), WEIGHTS.label_smoothing / len(NAMES))
            target[class_ids[cell]] += 1 - WEIGHTS.label_smoothing
            terms[1] += WEIGHTS.iou_weight * ciou_loss(corners, target_boxes[cell])
            terms[2] -= WEIGHTS.classify_weight * (target * log_probs[cell]).sum()
    return terms


def test_all_frames_empty(tmp_path):
    metrics = evaluate(tmp_path, [Frame(), Frame(), Frame()])
    assert metrics["mAP50"] is None
    assert not np.any(matrix(metrics))
    assert metrics["images"] == 3
    assert metrics["calibration_error"] is None
    assert metrics["loss"] == 0


def test_other_weights_and_records_by_the_same_evaluator(tmp_path):
    # No evaluation leaves anything over for the next one.
    first = evaluate(tmp_path / "first", FRAMES[:3])
    evaluate(tmp_path / "second", FRAMES[3:])
    assert evaluate(tmp_path / "third", FRAMES[:3]) == first


@pytest.mark.parametrize("asked", [0, 1, 3, 9])
def test_pictures_of_the_first_records(tmp_path, asked):
    folder = tmp_path / "pictures"
    write_pictures(images_of(tmp_path / "data", FRAMES), SPEC, folder, asked)
    written = sorted(folder.glob("*")) if folder.exists() else []
    assert len(written) == min(asked, len(FRAMES))
    for row, path in enumerate(written):
        assert path.name.endswith(f"frame_{row}.png")
        counted = [box for box in FRAMES[row].predicted if box.objectness > 0.5]
        counted.sort(key=lambda box: -box.objectness * max(box.probs))
        expected = draw_boxes(
            np.full((*SPEC.image_hw, 1), GRAY_STEP * row, np.uint8),
            np.reshape([box.xyxy for box in counted], (-1, 4)),
            np.asarray([np.argmax(box.probs) for box in counted], np.int32),
            NAMES,
            scores=np.asarray([box.objectness * max(box.probs) for box in counted]),
            label_boxes_xyxy=np.reshape([xyxy for xyxy, _ in FRAMES[row].labels], (-1, 4)),
            label_class_ids=np.asarray([each for _, each in FRAMES[row].labels], np.int32),
        )
        with Image.open(path) as picture:
            np.testing.assert_array_equal(picture, expected)
