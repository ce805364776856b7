"""The part of a frame that the network sees, and the place of its boxes in the frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yogo_jax.data.images import resize_image
from yogo_jax.detector.detections import Detections, Thresholds
from yogo_jax.detector.grid import whole_frame_hw
from yogo_jax.errors import UserError
from yogo_jax.inference.pipeline import ServingSpec, view_of


def served(image_hw, frame_hw) -> ServingSpec:
    return ServingSpec(
        class_names=("a",),
        image_hw=image_hw,
        frame_hw=frame_hw,
        rgb=False,
        thresholds=Thresholds(),
    )


def numbered(rows: int, columns: int) -> np.ndarray:
    """A frame whose pixels tell their row."""
    return np.repeat((np.arange(rows) % 256).astype(np.uint8)[:, None, None], columns, axis=1)


def test_the_strip_is_the_instruments():
    frame = numbered(772, 1032)
    view = view_of(frame, served((193, 1032), (772, 1032)))
    np.testing.assert_array_equal(view.image, frame[290:483])
    assert view.window_xyxy == (0.0, 290 / 772, 1.0, 483 / 772)


@pytest.mark.parametrize(
    ("image_hw", "frame_hw"), [((48, 96), (48, 96)), ((48, 96), None), ((48, 96), (192, 96))]
)
def test_a_frame_of_the_size_served_goes_in_as_it_is(image_hw, frame_hw):
    frame = numbered(*image_hw)
    view = view_of(frame, served(image_hw, frame_hw))
    assert view.image is frame
    assert view.window_xyxy == (0.0, 0.0, 1.0, 1.0)


def test_other_frames_are_resized_before_they_are_cut():
    frame = numbered(200, 300)
    view = view_of(frame, served((31, 100), (101, 150)))
    resized = resize_image(frame, (101, 150))
    np.testing.assert_array_equal(view.image, resized[35:66, 25:125])
    assert view.window_xyxy == (25 / 150, 35 / 101, 125 / 150, 66 / 101)


@pytest.mark.parametrize(("height", "refused"), [(96, False), (97, False), (48, True), (192, True)])
def test_frames_of_another_shape_are_not_squeezed_unasked(height, refused):
    model = served((48, 64), None)
    frame = numbered(height, 128)
    if refused:
        with pytest.raises(UserError, match=f"the frame is {height}x128: say how much"):
            view_of(frame, model)
    else:
        assert view_of(frame, model).image.shape == (48, 64, 1)


@pytest.mark.parametrize(
    ("image_hw", "multiplier_wh", "expected"),
    [
        pytest.param((193, 1032), (1.0, 4.0), (772, 1032), id="strip"),
        pytest.param((193, 1032), (1.0, 772 / 193), (772, 1032), id="strip, by division"),
        pytest.param((772, 1032), (1.0, 1.0), (772, 1032), id="whole"),
        pytest.param((800, 1100), (1032 / 1100, 772 / 800), (800, 1100), id="larger than trained"),
        pytest.param((300, 1100), (1032 / 1100, 772 / 300), (772, 1100), id="strip of a wide one"),
    ],
)
def test_the_whole_frame_of_a_crop(image_hw, multiplier_wh, expected):
    assert whole_frame_hw(image_hw, multiplier_wh) == expected


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
)
def test_boxes_of_the_crop_lie_there_in_the_frame(image_hw, more_hw, box):
    frame_hw = (image_hw[0] + more_hw[0], image_hw[1] + more_hw[1])
    view = view_of(numbered(*frame_hw), served(image_hw, frame_hw))
    found = Detections(
        boxes_xyxy=np.asarray([box], np.float32),
        objectness=np.ones(1),
        class_probs=np.ones((1, 1)),
        class_names=("a",),
        image_hw=frame_hw,
        window_xyxy=view.window_xyxy,
    )
    top_left = [(more_hw[1] + 1) // 2, (more_hw[0] + 1) // 2]
    expected = np.asarray(box) * np.tile(image_hw[::-1], 2) + np.tile(top_left, 2)
    np.testing.assert_allclose(found.boxes_xyxy_px[0], expected, atol=1e-3)
