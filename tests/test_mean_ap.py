"""AP against pycocotools, against hand counts, and what must not change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_coco import crowded_images, pycocotools_ap
from yogo_jax.metrics.mean_ap import MeanAveragePrecision


NAMES = ("healthy", "ring", "wbc")
IMAGE_HW = (100, 200)
# Places far enough apart that only boxes at the same one overlap.
PLACES = np.array([[x, 0.0, x + 0.1, 0.5] for x in (0.0, 0.2, 0.4, 0.6, 0.8)], np.float32)
ELSEWHERE = PLACES + np.array([0.0, 0.5, 0.0, 0.5], np.float32)


def ids(*class_ids):
    return np.array(class_ids, np.int32)


def scored(*scores):
    return np.array(scores, np.float32)


def evaluated(*images, **options):
    metrics = MeanAveragePrecision(NAMES, **options)
    for image in images:
        metrics.update(*image)
    return metrics.compute()


def one_class(predicted, scores, labels):
    """An image whose boxes are all `healthy`."""
    return predicted, scored(*scores), ids(*[0] * len(scores)), labels, ids(*[0] * len(labels))


def ap_at_recalls(*steps):
    """COCO's AP from (highest recall reached, precision kept up to it) in order of recall."""
    recalls = np.linspace(0, 1, 101)
    precision = np.zeros(101)
    for recall, value in reversed(steps):
        precision[recalls <= recall + 1e-12] = value
    return precision.mean()


@pytest.mark.parametrize(
    ("predicted", "scores", "labels", "expected"),
    [
        pytest.param(PLACES, [0.9, 0.8, 0.7, 0.6, 0.5], PLACES, 1.0, id="perfect"),
        pytest.param(PLACES[:0], [], PLACES, 0.0, id="no-predictions"),
        pytest.param(ELSEWHERE, [0.9] * 5, PLACES, 0.0, id="all-in-the-wrong-place"),
        pytest.param(PLACES[:1], [0.9], PLACES[:2], ap_at_recalls((0.5, 1.0)), id="one-of-two"),
        pytest.param(
            PLACES[[0, 0, 1]],
            [0.9, 0.8, 0.7],
            PLACES[:2],
            ap_at_recalls((0.5, 1.0), (1.0, 2 / 3)),
            id="duplicate-is-false",
        ),
        pytest.param(
            PLACES[[0, 1, 0]],
            [0.9, 0.8, 0.7],
            PLACES[:2],
            1.0,
            id="duplicate-after-all-is-found-costs-nothing",
        ),
        pytest.param(
            np.concatenate([ELSEWHERE[:1], PLACES[:1]]),
            [0.9, 0.8],
            PLACES[:1],
            0.5,
            id="false-before-true",
        ),
        pytest.param(
            np.concatenate([PLACES[:1], ELSEWHERE[:1]]),
            [0.8, 0.8],
            PLACES[:1],
            1.0,
            id="tie-true-given-first",
        ),
        pytest.param(
            np.concatenate([ELSEWHERE[:1], PLACES[:1]]),
            [0.8, 0.8],
            PLACES[:1],
            0.5,
            id="tie-true-given-last",
        ),
    ],
)
def test_hand_counted_ap(predicted, scores, labels, expected):
    found = evaluated(one_class(predicted, scores, labels))
    assert found["AP50_by_class"] == {
        "healthy": pytest.approx(expected, abs=1e-6),
        "ring": None,
        "wbc": None,
    }
    assert found["mAP50"] == pytest.approx(expected, abs=1e-6)
    # Boxes here either agree exactly or not at all, so the threshold makes no difference.
    assert found["mAP50_95"] == pytest.approx(expected, abs=1e-6)


def test_overlap_decides_at_which_thresholds_a_box_is_found():
    # Overlap 0.72: right at 0.5, 0.55, 0.6, 0.65 and 0.7, wrong at the five above.
    shorter = PLACES[:1] * np.array([1, 1, 1, 0.72], np.float32)
    found = evaluated(one_class(shorter, [0.9], PLACES[:1]))
    assert found["mAP50"] == pytest.approx(1.0)
    assert found["mAP50_95"] == pytest.approx(0.5)


def test_classes_are_kept_apart_and_those_without_a_true_box_left_out():
    label_ids = ids(0, 0, 1)
    predicted_ids = ids(0, 1, 1, 2)
    image = (PLACES[:4], scored(0.9, 0.8, 0.7, 0.6), predicted_ids, PLACES[:3], label_ids)
    found = evaluated(image)
    assert found["AP50_by_class"]["healthy"] == pytest.approx(ap_at_recalls((0.5, 1.0)))
    assert found["AP50_by_class"]["ring"] == pytest.approx(0.5)
    assert found["AP50_by_class"]["wbc"] is None
    assert found["mAP50"] == pytest.approx((ap_at_recalls((0.5, 1.0)) + 0.5) / 2)


def test_nothing_to_find_is_not_a_score():
    false_alarm = (PLACES[:1], scored(0.9), ids(0), PLACES[:0], ids())
    for images in ((), (false_alarm,)):
        found = evaluated(*images)
        assert found["mAP50"] is None
        assert found["mAP50_95"] is None
        assert set(found["AP50_by_class"].values()) == {None}


def test_a_false_alarm_on_an_empty_frame_counts():
    labelled = one_class(PLACES[:1], [0.5], PLACES[:1])
    empty_frame = one_class(PLACES[:1], [0.9], PLACES[:0])
    assert evaluated(labelled)["mAP50"] == pytest.approx(1.0)
    assert evaluated(labelled, empty_frame)["mAP50"] == pytest.approx(0.5)


def test_detections_over_the_limit_are_the_worst_ones_and_are_counted():
    full = one_class(PLACES, [0.5, 0.6, 0.7, 0.8, 0.9], PLACES)
    assert evaluated(full)["images_over_max_detections"] == 0
    assert evaluated(full, max_detections=5)["mAP50"] == pytest.approx(1.0)
    found = evaluated(full, full, max_detections=2)
    assert found["images_over_max_detections"] == 2
    assert found["mAP50"] == pytest.approx(ap_at_recalls((0.4, 1.0)))
    # The worst two of the places are gone, not the last two of the array.
    found = evaluated(one_class(PLACES, [0.5, 0.6, 0.7, 0.8, 0.9], PLACES[2:]), max_detections=3)
    assert found["mAP50"] == pytest.approx(1.0)


def test_nothing_is_printed(capfd):
    evaluated(one_class(PLACES, [0.9] * 5, PLACES))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("score", "class_id", "message"),
    [
        pytest.param(np.nan, 0, "finite", id="nan"),
        pytest.param(0.5, 3, "class ids", id="class-too-large"),
        pytest.param(0.5, -1, "class ids", id="class-negative"),
    ],
)
def test_values_that_would_be_misread_are_refused(score, class_id, message):
    with pytest.raises(ValueError, match=message):
        evaluated((PLACES[:1], scored(score), ids(class_id), PLACES[:1], ids(0)))


# --- Against pycocotools ---


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_pycocotools(seed):
    images = crowded_images(seed)
    assert min((image[2] == 0).sum() for image in images) > 100
    expected = pycocotools_ap(images, IMAGE_HW, len(NAMES))
    found = evaluated(*images)
    for class_id in (0, 1):
        name = NAMES[class_id]
        assert found["AP50_by_class"][name] == pytest.approx(expected[0, class_id], abs=1e-9)
        assert found["AP50_95_by_class"][name] == pytest.approx(
            expected[:, class_id].mean(), abs=1e-9
        )
    assert (expected[:, 2] == -1).all()
    assert found["AP50_by_class"]["wbc"] is None
    assert found["mAP50_95"] == pytest.approx(expected[:, :2].mean(), abs=1e-9)
    # What COCO's own limit would have made of it: the test would not notice a cap otherwise.
    assert (
        abs(pycocotools_ap(images, IMAGE_HW, len(NAMES), max_detections=100)[0, 0] - expected[0, 0])
        > 0.01
    )


def test_agrees_with_pycocotools_up_to_2000_boxes_a_frame():
    images = [
        crowded_images(predictions, images=1, labels=80, predictions=predictions)[0]
        for predictions in (500, 2000)
    ]
    expected = pycocotools_ap(images, IMAGE_HW, len(NAMES))
    found = evaluated(*images)
    assert found["images_over_max_detections"] == 0
    assert found["mAP50"] == pytest.approx(expected[0, :2].mean(), abs=1e-9)
    assert found["mAP50_95"] == pytest.approx(expected[:, :2].mean(), abs=1e-9)


# --- What must not change it ---


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    images = [distinct_scores(rng, image) for image in small_images(rng)]
    shuffled = []
    for i in rng.permutation(len(images)):
        boxes_xyxy, scores, class_ids, label_boxes_xyxy, label_ids = images[i]
        order = rng.permutation(len(scores))
        label_order = rng.permutation(len(label_ids))
        shuffled.append(
            (
                boxes_xyxy[order],
                scores[order],
                class_ids[order],
                label_boxes_xyxy[label_order],
                label_ids[label_order],
            )
        )
    expected, found = evaluated(*images), evaluated(*shuffled)
    for key in ("AP50_by_class", "AP50_95_by_class"):
        for name, value in expected[key].items():
            assert found[key][name] == (value if value is None else pytest.approx(value))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_false_alarms_never_help_and_the_last_ones_cost_nothing(seed):
    rng = np.random.default_rng(seed)
    images = small_images(rng)
    before = evaluated(*images)["AP50_by_class"]
    # Outside the unit square, where no true box is.
    outside = ELSEWHERE[:3] + np.float32(2.0)
    lowest, anywhere = np.full(3, -1.0, np.float32), rng.uniform(size=3).astype(np.float32)
    for scores in (lowest, anywhere):
        more = [with_predictions(image, outside, scores) for image in images]
        after = evaluated(*more)["AP50_by_class"]
        for name, value in before.items():
            if value is None:
                assert after[name] is None
            elif scores is lowest:
                assert after[name] == pytest.approx(value)
            else:
                assert after[name] <= value + 1e-12


def small_images(rng):
    return crowded_images(int(rng.integers(2**32)), images=3, labels=8, predictions=14)


def distinct_scores(rng, image):
    """Equal scores rank in the order given, so without them the order is free to change."""
    scores = rng.permutation(len(image[1])) + rng.uniform(0, 0.9)
    return (image[0], scores.astype(np.float32), *image[2:])


def with_predictions(image, boxes_xyxy, scores):
    predicted, old_scores, class_ids, *labels = image
    return (
        np.concatenate([predicted, boxes_xyxy]),
        np.concatenate([old_scores, scores]),
        np.concatenate([class_ids, ids(0, 1, 2)]),
        *labels,
    )
