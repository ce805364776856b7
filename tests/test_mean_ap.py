"""AP against pycocotools, against hand counts, and what must not change it."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_coco import crowded_images, pycocotools_ap
from yogo_jax.metrics.mean_ap import MeanAveragePrecision, OriginalMeanAveragePrecision


NAMES = ("healthy", "ring", "wbc")
IMAGE_HW = (100, 200)
# Places far enough apart that only boxes at the same one overlap.
PLACES = np.array([[x, 0.0, x + 0.1, 0.5] for x in (0.0, 0.2, 0.4, 0.6, 0.8)], np.float32)
ELSEWHERE = PLACES + np.array([0.0, 0.5, 0.0, 0.5], np.float32)


def ids(*class_ids):
    return np.array(class_ids, np.int32)


def scored(*scores):
    return np.array(scores, np.float32)


COCO, ORIGINAL = MeanAveragePrecision, OriginalMeanAveragePrecision
BOTH = pytest.mark.parametrize("protocol", [COCO, ORIGINAL], ids=["coco", "original"])


def evaluated(*images, protocol=COCO, **options):
    """Metrics, by the names of COCO's, of images whose boxes are sure of their class."""
    sure = [
        (boxes, scores, np.eye(len(NAMES), dtype=np.float32)[class_ids], *labels)
        for boxes, scores, class_ids, *labels in images
    ]
    return evaluated_probs(*sure, protocol=protocol, **options)


def evaluated_probs(*images, protocol=COCO, **options):
    """The same of images with the probabilities of their classes."""
    metrics = protocol(NAMES, **options)
    for image in images:
        metrics.update(*image)
    found = metrics.compute()
    if protocol is ORIGINAL:
        assert all(name.endswith("_original") or name.startswith("images_") for name in found)
    return {name.removesuffix("_original"): value for name, value in found.items()}


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
@BOTH
def test_hand_counted_ap(predicted, scores, labels, expected, protocol):
    found = evaluated(one_class(predicted, scores, labels), protocol=protocol)
    assert found["AP50_by_class"] == {
        "healthy": pytest.approx(expected, abs=1e-6),
        "ring": None,
        "wbc": None,
    }
    assert found["mAP50"] == pytest.approx(expected, abs=1e-6)
    # Boxes here either agree exactly or not at all, so the threshold makes no difference.
    assert found["mAP50_95"] == pytest.approx(expected, abs=1e-6)


@BOTH
def test_overlap_decides_at_which_thresholds_a_box_is_found(protocol):
    # Overlap 0.72: right at 0.5, 0.55, 0.6, 0.65 and 0.7, wrong at the five above.
    shorter = PLACES[:1] * np.array([1, 1, 1, 0.72], np.float32)
    found = evaluated(one_class(shorter, [0.9], PLACES[:1]), protocol=protocol)
    assert found["mAP50"] == pytest.approx(1.0)
    assert found["mAP50_95"] == pytest.approx(0.5)


@BOTH
def test_classes_are_kept_apart_and_those_without_a_true_box_left_out(protocol):
    label_ids = ids(0, 0, 1)
    predicted_ids = ids(0, 1, 1, 2)
    image = (PLACES[:4], scored(0.9, 0.8, 0.7, 0.6), predicted_ids, PLACES[:3], label_ids)
    found = evaluated(image, protocol=protocol)
    assert found["AP50_by_class"]["healthy"] == pytest.approx(ap_at_recalls((0.5, 1.0)))
    assert found["AP50_by_class"]["ring"] == pytest.approx(0.5)
    assert found["AP50_by_class"]["wbc"] is None
    assert found["mAP50"] == pytest.approx((ap_at_recalls((0.5, 1.0)) + 0.5) / 2)


@BOTH
def test_nothing_to_find_is_not_a_score(protocol):
    false_alarm = (PLACES[:1], scored(0.9), ids(0), PLACES[:0], ids())
    for images in ((), (false_alarm,)):
        found = evaluated(*images, protocol=protocol)
        assert found["mAP50"] is None
        assert found["mAP50_95"] is None
        assert set(found["AP50_by_class"].values()) == {None}


@BOTH
def test_a_false_alarm_on_an_empty_frame_counts(protocol):
    labelled = one_class(PLACES[:1], [0.5], PLACES[:1])
    empty_frame = one_class(PLACES[:1], [0.9], PLACES[:0])
    assert evaluated(labelled, protocol=protocol)["mAP50"] == pytest.approx(1.0)
    assert evaluated(labelled, empty_frame, protocol=protocol)["mAP50"] == pytest.approx(0.5)


def candidate(boxes, objectness, class_probs, labels, label_ids):
    """An image with the probabilities of its classes, as float32."""
    arrays = (np.asarray(each, np.float32) for each in (objectness, class_probs))
    corners = (np.asarray(each, np.float32).reshape(-1, 4) for each in (boxes, labels))
    boxes, labels = corners
    return (boxes, *arrays, labels, ids(*label_ids))


UNDECIDED = (0.5, 0.45, 0.05)


def test_a_box_is_a_candidate_of_every_class_with_the_score_of_each():
    # The second box is surer of a ring than the first, but surer still of a healthy cell.
    rows = [(0.9, (0.6, 0.3, 0.1)), (0.8, UNDECIDED)]
    image = candidate(PLACES[:2], *zip(*rows, strict=True), PLACES[:2], [0, 1])
    found = evaluated_probs(image)
    assert found["AP50_by_class"] == {"healthy": 1.0, "ring": 1.0, "wbc": None}
    original = evaluated_probs(image, protocol=ORIGINAL)
    assert original["AP50_by_class"] == {"healthy": 1.0, "ring": 0.0, "wbc": None}


def test_a_class_that_a_box_does_not_have_costs_it_precision():
    # Two rings, ranked below a healthy cell's probability of being one.
    rows = [(0.9, (0.55, 0.45, 0)), (0.8, (0.5, 0.5, 0)), (0.7, (0.5, 0.5, 0))]
    image = candidate(PLACES[:3], *zip(*rows, strict=True), PLACES[:3], [0, 1, 1])
    expected = ap_at_recalls((1.0, 2 / 3))
    assert evaluated_probs(image)["AP50_by_class"]["ring"] == pytest.approx(expected)


@pytest.mark.parametrize(("score", "takes_part"), [(0.0011, True), (0.0009, False)])
def test_a_very_low_score_of_a_class_takes_no_part(score, takes_part):
    image = candidate(PLACES[:1], [1.0], [(1 - score, score, 0)], PLACES[:1], [1])
    assert evaluated_probs(image)["AP50_by_class"]["ring"] == float(takes_part)


@pytest.mark.parametrize(
    ("box", "label", "coco", "original"),
    [
        pytest.param((-0.2, 0, 0.1, 0.5), (0, 0, 0.1, 0.5), 1, 0, id="over the left edge"),
        pytest.param((0.8, 0.5, 1.4, 1.2), (0.8, 0.5, 1, 1), 1, 0, id="over two edges"),
        pytest.param((0.9, 0, 1.0, 0.5), (0.9, 0, 1.3, 0.5), 1, 0, id="label over the edge"),
        pytest.param((0.9, 0, 1.3, 0.5), (0.9, 0, 1.3, 0.5), 1, 1, id="both over the edge"),
        pytest.param((-0.2, 0, 1.4, 0.5), (0, 0, 0.1, 0.5), 0, 0, id="too wide anyway"),
    ],
)
def test_boxes_are_cut_at_the_frame(box, label, coco, original):
    image = candidate([box], [0.9], [(1, 0, 0)], [label], [0])
    assert evaluated_probs(image)["mAP50"] == coco
    assert evaluated_probs(image, protocol=ORIGINAL)["mAP50"] == original


def test_a_box_outside_the_frame_is_dropped():
    boxes = [(1.0, 0, 1.2, 0.5), (-0.3, 0, 0.0, 0.5), (0, 1.1, 0.3, 1.4), PLACES[0]]
    image = candidate(boxes, [0.9, 0.9, 0.9, 0.5], [(1, 0, 0)] * 4, PLACES[:1], [0])
    assert evaluated_probs(image)["mAP50"] == 1
    assert evaluated_probs(image, protocol=ORIGINAL)["mAP50"] == pytest.approx(0.25)


def test_detections_over_the_limit_are_the_worst_ones_and_are_counted():
    full = one_class(PLACES, [0.5, 0.6, 0.7, 0.8, 0.9], PLACES)
    original = functools.partial(evaluated, protocol=ORIGINAL)
    assert original(full)["images_over_max_detections"] == 0
    assert original(full, max_detections=5)["mAP50"] == pytest.approx(1.0)
    found = original(full, full, max_detections=2)
    assert found["images_over_max_detections"] == 2
    assert found["mAP50"] == pytest.approx(ap_at_recalls((0.4, 1.0)))
    # The worst two of the places are gone, not the last two of the array.
    found = original(one_class(PLACES, [0.5, 0.6, 0.7, 0.8, 0.9], PLACES[2:]), max_detections=3)
    assert found["mAP50"] == pytest.approx(1.0)


def test_nothing_is_printed(capfd):
    evaluated(one_class(PLACES, [0.9] * 5, PLACES))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("objectness", "probs", "label_id", "message"),
    [
        pytest.param(np.nan, (1, 0, 0), 0, "finite", id="objectness"),
        pytest.param(0.5, (np.nan, 0, 0), 0, "finite", id="probability"),
        pytest.param(0.5, (1, 0, 0), 3, "class ids", id="class-too-large"),
        pytest.param(0.5, (1, 0, 0), -1, "class ids", id="class-negative"),
        pytest.param(0.5, (1, 0), 0, r"3 classes, but class_probs is \(1, 2\)", id="classes"),
    ],
)
@BOTH
def test_values_that_would_be_misread_are_refused(objectness, probs, label_id, message, protocol):
    image = candidate(PLACES[:1], [objectness], [probs], PLACES[:1], [label_id])
    with pytest.raises(ValueError, match=message):
        evaluated_probs(image, protocol=protocol)


# --- Against pycocotools ---


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_pycocotools(seed):
    images = with_class_probs(crowded_images(seed), seed)
    flat = [by_class(image) for image in images]
    # Boxes are over the edges and outside, scores are equal, and classes are without a box.
    assert sum(((image[0] < 0) | (image[0] > 1)).any(1).sum() for image in images) > 20
    assert min(len(set(image[1])) < len(image[1]) for image in flat)
    expected = pycocotools_ap(flat, IMAGE_HW, len(NAMES), max_detections=10**6)
    found = evaluated_probs(*images)
    for class_id in (0, 1):
        name = NAMES[class_id]
        assert 0.1 < expected[0, class_id] < 1
        assert found["AP50_by_class"][name] == pytest.approx(expected[0, class_id], abs=1e-9)
        assert found["AP50_95_by_class"][name] == pytest.approx(
            expected[:, class_id].mean(), abs=1e-9
        )
    assert found["AP50_by_class"]["wbc"] is None
    assert found["mAP50"] == pytest.approx(expected[0, :2].mean(), abs=1e-9)
    assert found["mAP50_95"] == pytest.approx(expected[:, :2].mean(), abs=1e-9)


def with_class_probs(images, seed):
    """Images of (boxes, objectness, probabilities, labels, their classes), many over an edge."""
    rng = np.random.default_rng(seed)
    made = []
    for boxes, scores, class_ids, labels, label_ids in images:
        logits = rng.normal(0, 1, (len(boxes), len(NAMES)))
        logits[np.arange(len(boxes)), class_ids] += 1
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        boxes, labels = boxes.copy(), labels.copy()
        far = rng.uniform(size=len(boxes)) < 0.1
        boxes[far] += rng.choice([-0.5, 0.5], (far.sum(), 1)).astype(np.float32)
        made.append((boxes, scores, probs.round(2).astype(np.float32), labels, label_ids))
    return made


def by_class(image):
    """The candidates of an image in loops: (boxes, scores, classes), and its labels."""
    boxes, objectness, probs, *labels = image
    candidates = []
    for box, sure, row in zip(boxes, objectness, probs, strict=True):
        x1, y1, x2, y2 = np.clip(box, 0, 1)
        if x1 >= x2 or y1 >= y2:
            continue
        candidates += [
            ((x1, y1, x2, y2), sure * prob, class_id)
            for class_id, prob in enumerate(row)
            if sure * prob >= 0.001
        ]
    corners, scores, class_ids = zip(*candidates, strict=True)
    return np.asarray(corners), np.asarray(scores), np.asarray(class_ids), *labels


@pytest.mark.parametrize("seed", range(4))
def test_the_originals_protocol_agrees_with_pycocotools(seed):
    images = crowded_images(seed)
    assert min((image[2] == 0).sum() for image in images) > 100
    expected = pycocotools_ap(images, IMAGE_HW, len(NAMES))
    found = evaluated(*images, protocol=ORIGINAL)
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


def test_the_originals_protocol_agrees_up_to_2000_boxes_a_frame():
    images = [
        crowded_images(predictions, images=1, labels=80, predictions=predictions)[0]
        for predictions in (500, 2000)
    ]
    expected = pycocotools_ap(images, IMAGE_HW, len(NAMES))
    found = evaluated(*images, protocol=ORIGINAL)
    assert found["images_over_max_detections"] == 0
    assert found["mAP50"] == pytest.approx(expected[0, :2].mean(), abs=1e-9)
    assert found["mAP50_95"] == pytest.approx(expected[:, :2].mean(), abs=1e-9)


# --- What must not change it ---


@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_changes_nothing(protocol, seed):
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
    expected, found = (evaluated(*each, protocol=protocol) for each in (images, shuffled))
    for key in ("AP50_by_class", "AP50_95_by_class"):
        for name, value in expected[key].items():
            assert found[key][name] == (value if value is None else pytest.approx(value))


@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_false_alarms_never_help_and_the_last_ones_cost_nothing(protocol, seed):
    rng = np.random.default_rng(seed)
    # No score of theirs is as low as those of the false alarms below.
    images = [(image[0], image[1] + np.float32(0.01), *image[2:]) for image in small_images(rng)]
    # A corner that the true boxes are kept out of.
    labels = [np.minimum(image[3], np.float32(0.89)) for image in images]
    images = [(*image[:3], each, image[4]) for image, each in zip(images, labels, strict=True)]
    before = evaluated(*images, protocol=protocol)["AP50_by_class"]
    corner = np.repeat(np.array([[0.9, 0.9, 1, 1]], np.float32), 3, axis=0)
    lowest, anywhere = np.full(3, 0.002, np.float32), rng.uniform(size=3).astype(np.float32)
    for scores in (lowest, anywhere):
        more = [with_predictions(image, corner, scores) for image in images]
        after = evaluated(*more, protocol=protocol)["AP50_by_class"]
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
