import numpy as np
import pytest

from yogo_jax.drawing import draw_crop, shrink, side_by_side


def frame_with_a_spot(height, width, x, y, size):
    """A gray frame that is white in one square, and the box of the square as xyxy."""
    frame = np.full((height, width, 1), 100, np.uint8)
    frame[y : y + size, x : x + size] = 255
    box = np.array([x / width, y / height, (x + size) / width, (y + size) / height])
    return frame, box


PLACES = {
    "middle": (200, 150, 40),
    "corner": (0, 0, 40),
    "other corner": (360, 260, 40),
    "tiny": (100, 100, 2),
    "large": (10, 10, 280),
}


@pytest.mark.parametrize(("x", "y", "size"), PLACES.values(), ids=PLACES)
def test_a_crop_shows_the_box_and_its_surroundings(x, y, size):
    frame, box = frame_with_a_spot(300, 400, x, y, size)
    picture = draw_crop(frame, box, np.zeros((0, 4)))
    assert max(picture.size) <= 360
    pixels = np.asarray(picture.convert("L")).astype(int)
    side = min(max(int(np.ceil(2.5 * size)), 64), 300)
    expected = size**2 / (side * min(max(int(np.ceil(2.5 * size)), 64), 400))
    assert (pixels > 178).mean() == pytest.approx(expected, rel=0.25)
    # The dashes lie on the border of the spot: some are black, so some pixels get darker.
    drawn = np.asarray(draw_crop(frame, box, box[None]).convert("L")).astype(int)
    changed = np.argwhere(np.abs(drawn - pixels) > 60)
    spot = np.argwhere(pixels > 178)
    np.testing.assert_allclose(changed.min(0), spot.min(0), atol=3)
    np.testing.assert_allclose(changed.max(0), spot.max(0), atol=3)


def test_shrink():
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert shrink(frame, 80) is frame
    half = shrink(frame, 40)
    assert half.shape == (30, 40, 3)
    means = frame.reshape(30, 2, 40, 2, 3).mean((1, 3))
    np.testing.assert_allclose(half, means, atol=1)
    assert shrink(frame[..., :1], 10).shape == (8, 10, 1)


def test_frames_side_by_side_have_one_height():
    frames = [np.full((50, 100, 1), 0, np.uint8), np.full((200, 100, 3), 90, np.uint8)]
    sheet = side_by_side(frames, height=100)
    assert sheet.size == (200 + 6 + 50, 100)
    pixels = np.asarray(sheet)
    assert (pixels[:, :200] == 0).all()
    assert (pixels[:, 200:206] == 255).all()
    assert (pixels[:, 206:] == 90).all()
