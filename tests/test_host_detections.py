"""`Detections`: what it refuses, how it is indexed, and the forms that it is given in."""

import dataclasses
import io
import json
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from yogo_jax.detector.detections import Detections
from yogo_jax.drawing import draw_boxes
from yogo_jax.errors import UserError


NAMES = ("healthy", "ring", "<misc>")


def make(n: int = 4, **changes) -> Detections:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (n, 2))
    fields = {
        "boxes_xyxy": np.concatenate([low, low + 0.3], 1).astype(np.float32),
        "objectness": np.linspace(0.95, 0.6, n, dtype=np.float32),
        "class_probs": rng.dirichlet(np.ones(3), n).astype(np.float32),
        "class_names": NAMES,
        "image_hw": (700, 800),
    }
    return Detections(**{**fields, **changes})


def test_values_that_follow():
    found = make()
    assert len(found) == 4
    np.testing.assert_array_equal(found.class_ids, found.class_probs.argmax(1))
    assert found.class_ids.dtype == np.int32
    np.testing.assert_array_equal(found.scores, found.objectness * found.class_probs.max(1))
    expected = found.boxes_xyxy * np.array([800, 700, 800, 700], np.float32)
    np.testing.assert_array_equal(found.boxes_xyxy_px, expected)
    assert found.boxes_xyxy_px.dtype == np.float32
    assert found.counts() == {
        name: int((found.class_ids == i).sum()) for i, name in enumerate(NAMES)
    }


def test_class_thresholds_decide():
    probs = np.asarray([(0.6, 0.3, 0.1), (0.2, 0.1, 0.7)], np.float32)
    fields = {"class_probs": probs, "objectness": np.asarray((0.9, 0.8), np.float32)}
    found = make(2, **fields, class_thresholds=(0.5, 0.1, 0.9))
    assert found.class_ids.tolist() == [1, 1]
    assert found.class_ids.dtype == np.int32
    np.testing.assert_array_equal(found.class_confidences, probs[:, 1])
    np.testing.assert_array_equal(found.scores, found.objectness * probs[:, 1])
    np.testing.assert_array_equal(found.class_scores, found.objectness[:, None] * probs)
    assert found.counts() == {"healthy": 0, "ring": 2, "<misc>": 0}
    assert [each.class_ids.item() for each in found] == [1, 1]
    assert [each["category_id"] for each in found.to_coco(0)] == [1, 1]
    assert make(0, class_thresholds=(0.5, 0.1, 0.9)).scores.shape == (0,)


def test_of_a_strip_boxes_are_those_of_the_image():
    found = make(window_xyxy=(0.0, 0.25, 1.0, 0.75))
    whole = make()
    np.testing.assert_allclose(
        found.boxes_xyxy_px[:, 1::2], 175 + whole.boxes_xyxy_px[:, 1::2] / 2, rtol=1e-6
    )
    np.testing.assert_array_equal(found.boxes_xyxy_px[:, ::2], whole.boxes_xyxy_px[:, ::2])


INDICES = {
    "a number": (2, [2]),
    "from the end": (-1, [3]),
    "a slice": (slice(1, None), [1, 2, 3]),
    "a mask": (np.array([True, False, False, True]), [0, 3]),
    "numbers": ([3, 0], [3, 0]),
    "none": ([], []),
}


@pytest.mark.parametrize(("index", "rows"), INDICES.values(), ids=INDICES)
def test_indexed(index, rows):
    found = make(image=np.zeros((700, 800), np.uint8))
    some = found[index]
    assert isinstance(some, Detections)
    assert some.image is found.image
    for name in ("boxes_xyxy", "objectness", "class_probs"):
        np.testing.assert_array_equal(getattr(some, name), getattr(found, name)[rows])


def test_iterated():
    found = make()
    assert [len(each) for each in found] == [1] * 4
    assert [float(each.objectness[0]) for each in found] == found.objectness.tolist()
    with pytest.raises(IndexError):
        found[4]


REFUSED = {
    "boxes": ({"boxes_xyxy": np.zeros((4, 5))}, r"boxes_xyxy must be floats of shape \(4, 4\)"),
    "whole numbers": ({"objectness": np.ones(4, int)}, "objectness must be floats"),
    "classes": ({"class_probs": np.zeros((4, 2))}, r"class_probs must be .* \(4, 3\), got float64"),
    "objectness": ({"objectness": np.full(4, 1.5)}, r"objectness must be in \[0, 1\], got 1.5"),
    "a NaN": ({"class_probs": np.full((4, 3), np.nan)}, r"class_probs must be in \[0, 1\]"),
    "infinity": ({"boxes_xyxy": np.full((4, 4), np.inf)}, "boxes_xyxy must be finite"),
    "a name twice": ({"class_names": ("a", "b", "a")}, "class_names must differ"),
    "no image": ({"image_hw": (0, 5)}, "image_hw must be 1 or more"),
    "window": ({"window_xyxy": (0.0, 0.5, 1.0, 0.5)}, "window_xyxy must be a part of the image"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().objectness = np.zeros(4)


@pytest.mark.parametrize("shape", [(700, 800), (700, 800, 1), (700, 800, 3)])
def test_drawn(shape):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    found = make(window_xyxy=(0.0, 0.25, 1.0, 0.75))
    picture = found.draw(image)
    expected = draw_boxes(
        image.reshape(700, 800, -1),
        found.boxes_in_image_xyxy,
        found.class_ids,
        NAMES,
        scores=found.scores,
        label_boxes_xyxy=np.array([found.window_xyxy]),
    )
    np.testing.assert_array_equal(picture, np.asarray(expected))
    np.testing.assert_array_equal(dataclasses.replace(found, image=image).draw(), picture)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(None, "no image was kept", id="none"),
        pytest.param(np.zeros((700, 800)), "expected an image of uint8.* found float64", id="type"),
        pytest.param(np.zeros((8, 9, 4), np.uint8), r"found uint8 of shape \(8, 9, 4\)", id="RGBA"),
        pytest.param(np.zeros((8, 9), np.uint8), "expected the image of these .* 8x9", id="size"),
    ],
)
def test_not_drawn(image, message):
    with pytest.raises(UserError, match=message):
        make().draw(image)


def test_coco_loads_it():
    found = make(boxes_xyxy=np.array([[-0.1, 0.2, 0.5, 1.2]] * 4, np.float32))
    results = json.loads(json.dumps(found.to_coco(image_id=7)))
    assert results[0]["bbox"] == pytest.approx([0, 140, 400, 560])
    data = COCO()
    data.dataset = {
        "images": [{"id": 7, "width": 800, "height": 700}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [],
    }
    with redirect_stdout(io.StringIO()):
        data.createIndex()
        loaded = data.loadRes(results)
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[7]))
    assert [each["category_id"] for each in annotations] == found.class_ids.tolist()
    assert [each["score"] for each in annotations] == found.scores.tolist()


def test_as_a_data_frame():
    pandas = pytest.importorskip("pandas")
    found = make(class_thresholds=(0.9, 0.1, 0.9))
    frame = found.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert [*frame.columns[:4]] == ["x1_px", "y1_px", "x2_px", "y2_px"]
    np.testing.assert_array_equal(frame["confidence"], found.scores)
    assert [*frame["class"]] == [NAMES[i] for i in found.class_ids]


def test_a_data_frame_takes_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        make().to_dataframe()


def test_in_a_notebook():
    found = make(n=12)
    table = found._repr_html_()
    assert table.count("<tr>") == 11
    assert "and 2 more" in table
    assert "&lt;misc&gt;" in table
    assert "<misc>" not in table
    image = np.zeros((700, 800), np.uint8)
    picture = dataclasses.replace(found, image=image)._repr_html_()
    assert 'src="data:image/png;base64,' in picture


def test_described():
    found = make(class_probs=np.eye(3, dtype=np.float32)[[0, 1, 1, 0]])
    assert repr(found) == "Detections(4 in 700x800 px: 2 healthy, 2 ring)"
    assert repr(make(n=0)) == "Detections(0 in 700x800 px)"


def test_a_picture_can_be_saved(tmp_path):
    picture = make().draw(np.zeros((700, 800, 3), np.uint8))
    Image.fromarray(picture).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), picture)
