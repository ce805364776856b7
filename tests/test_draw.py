import numpy as np
import pytest

from yogo_jax.drawing import (
    EXTRA,
    FOUND,
    MISNAMED,
    MISSED,
    PALETTE,
    draw_boxes,
    draw_outcomes,
)


NAMES = ("healthy", "ring", "Größe 赤")
LARGE_HW = (500, 700)
GRAY = 200


def frame(hw=LARGE_HW, channels=1):
    return np.full((*hw, channels), GRAY, np.uint8)


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def ids(*class_ids):
    return np.array(class_ids, np.int32)


def pixels_of(picture, colour):
    """Rows and columns that have exactly this colour."""
    return np.nonzero((np.asarray(picture) == np.array(colour, np.uint8)).all(axis=-1))


MIDDLE = (0.2, 0.4, 0.6, 0.8)  # pixels 140 to 420 and 200 to 400 of the large frame


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "rgb"])
@pytest.mark.parametrize("class_id", [0, 1])
def test_box_is_where_it_should_be_in_the_colour_of_its_class(channels, class_id):
    picture = draw_boxes(frame(channels=channels), boxes(MIDDLE), ids(class_id), NAMES)
    assert picture.mode == "RGB"
    assert picture.size == LARGE_HW[::-1]
    rows, columns = pixels_of(picture, PALETTE[class_id])
    assert (columns.min(), columns.max(), rows.max()) == (140, 420, 400)
    pixels = np.asarray(picture)
    assert (pixels[200, 140:421] == PALETTE[class_id]).all()
    assert (pixels[200:401, 420] == PALETTE[class_id]).all()
    assert (pixels[220:380, 160:400] == GRAY).all()


def test_colours_of_an_rgb_image_are_kept():
    image = frame(channels=3)
    image[..., 0] = 10
    picture = draw_boxes(image, boxes(), ids(), NAMES)
    np.testing.assert_array_equal(np.asarray(picture), image)


@pytest.mark.parametrize(
    ("hw", "factor"),
    [
        pytest.param((240, 320), 2, id="small"),
        pytest.param((640, 300), 1, id="long-side-decides"),
        pytest.param((772, 1032), 1, id="microscope"),
    ],
)
def test_small_frames_are_doubled(hw, factor):
    picture = draw_boxes(frame(hw), boxes(MIDDLE), ids(0), NAMES)
    assert picture.size == (factor * hw[1], factor * hw[0])
    _, columns = pixels_of(picture, PALETTE[0])
    assert columns.min() == round(0.2 * factor * hw[1])


def test_score_and_name_are_written():
    def text_of(names, scores):
        options = {} if scores is None else {"scores": np.array(scores, np.float32)}
        picture = np.asarray(draw_boxes(frame(), boxes(MIDDLE), ids(0), names, **options))
        return picture[170:200]  # the strip above the box

    plain, with_score = text_of(NAMES, None), text_of(NAMES, [0.934])
    assert (plain != GRAY).any()
    assert (with_score != GRAY).sum() > (plain != GRAY).sum()
    np.testing.assert_array_equal(with_score, text_of(("healthy 0.93",), None))
    assert (text_of(NAMES, [0.5]) != with_score).any()


def test_true_boxes_are_thin_and_dashed():
    picture = draw_boxes(
        frame(),
        boxes(),
        ids(),
        NAMES,
        label_boxes_xyxy=boxes(MIDDLE),
        label_class_ids=ids(1),
    )
    pixels = np.asarray(picture)
    top = pixels[200, 140:421]
    coloured, black = (top == PALETTE[1]).all(-1), (top == 0).all(-1)
    assert (coloured | black).all()
    assert 0.4 < coloured.mean() < 0.6
    assert (pixels[201, 145:400] == GRAY).all()
    # No name is written for them.
    assert (pixels[:200] == GRAY).all()


def test_true_boxes_without_classes_are_white():
    picture = draw_boxes(frame(), boxes(), ids(), NAMES, label_boxes_xyxy=boxes(MIDDLE))
    assert len(pixels_of(picture, (255, 255, 255))[0]) > 100


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((0.0, 0.0, 1.0, 1.0), id="whole-frame"),
        pytest.param((0.9, 0.0, 1.0, 0.1), id="corner"),
        pytest.param((-0.5, -0.5, 0.1, 0.1), id="partly-outside"),
        pytest.param((1.5, 1.5, 1.7, 1.7), id="outside"),
        pytest.param((0.5, 0.5, 0.5, 0.5), id="no-area"),
        pytest.param((0.6, 0.6, 0.4, 0.4), id="inside-out"),
    ],
)
def test_boxes_at_the_edge_keep_their_text_in_the_picture(box):
    picture = draw_boxes(
        frame(),
        boxes(box),
        ids(2),
        NAMES,
        scores=np.array([0.5], np.float32),
        label_boxes_xyxy=boxes(box),
        label_class_ids=ids(2),
    )
    rows, _ = pixels_of(picture, PALETTE[2])
    # A plate of text is some 60 x 12 pixels.
    assert len(rows) > 300


def test_more_classes_than_colours():
    names = [str(i) for i in range(20)]
    picture = draw_boxes(frame(), boxes(MIDDLE), ids(len(PALETTE) + 1), names)
    assert len(pixels_of(picture, PALETTE[1])[0]) > 0


def test_the_image_itself_is_not_drawn_on():
    image = frame(channels=3)
    draw_boxes(image, boxes(MIDDLE), ids(0), NAMES)
    assert (image == GRAY).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_refused(channels):
    with pytest.raises(ValueError, match=f"{channels} channels"):
        draw_boxes(frame(channels=channels), boxes(), ids(), NAMES)


LEFT, RIGHT, BELOW = (0.1, 0.1, 0.3, 0.4), (0.6, 0.1, 0.8, 0.4), (0.6, 0.6, 0.8, 0.9)


def outcomes(predicted=(), class_ids=(), labels=(), label_ids=(), pairs=()):
    return np.asarray(
        draw_outcomes(
            frame(),
            boxes(*predicted),
            ids(*class_ids),
            np.full(len(predicted), 0.5, np.float32),
            boxes(*labels),
            ids(*label_ids),
            NAMES,
            pairs=np.array(pairs, np.int64).reshape(-1, 2),
        )
    )


def share_of_top(picture, box, colour):
    """Share of the upper line of a box that has the colour, and its thickness."""
    rows, columns = LARGE_HW
    x1, y1, x2 = round(box[0] * columns), round(box[1] * rows), round(box[2] * columns)
    strip = (picture[y1 : y1 + 8, x1 : x2 + 1] == np.array(colour)).all(-1)
    # The lines to the left and to the right are in the strip, too, but are a small share of it.
    return strip[0].mean(), int((strip.mean(1) > 0.2).sum())


@pytest.mark.parametrize(
    ("case", "line", "share"),
    [
        pytest.param(dict(predicted=[LEFT]), EXTRA, 0.5, id="extra"),
        pytest.param(dict(labels=[LEFT], label_ids=[1]), MISSED, 0.5, id="missed"),
        pytest.param(
            dict(predicted=[LEFT], labels=[RIGHT], label_ids=[0], pairs=[(0, 0)]),
            FOUND,
            1.0,
            id="found",
        ),
        pytest.param(
            dict(predicted=[LEFT], labels=[RIGHT], label_ids=[1], pairs=[(0, 0)]),
            MISNAMED,
            1.0,
            id="misnamed",
        ),
    ],
)
def test_outcomes_differ_in_colour_and_line(case, line, share):
    colour, width, _ = line
    picture = outcomes(**{"class_ids": [0] * len(case.get("predicted", [])), **case})
    found, thick = share_of_top(picture, LEFT, colour)
    assert found == pytest.approx(share, abs=0.05)
    assert thick == width
    for other, _, _ in {FOUND, MISNAMED, MISSED, EXTRA} - {line}:
        assert len(pixels_of(picture, other)[0]) == 0
    # What was found has its true box in thin black and white dashes.
    assert (share_of_top(picture, RIGHT, (255, 255, 255))[0] > 0.4) == bool(case.get("pairs"))


def test_lines_of_outcomes_are_all_different():
    lines = (FOUND, MISNAMED, MISSED, EXTRA)
    assert len({colour for colour, _, _ in lines}) == 4
    assert len({(width, dash) for _, width, dash in lines}) == 4


def test_only_what_went_wrong_is_named():
    right = outcomes([LEFT], [0], [LEFT], [0], [(0, 0)])
    wrong = outcomes([LEFT], [0], [LEFT], [1], [(0, 0)])
    above = np.s_[: round(0.1 * LARGE_HW[0])]
    assert (right[above] == GRAY).all()
    assert (wrong[above] != GRAY).any()


def test_outcomes_of_an_empty_frame_and_of_boxes_outside():
    assert (outcomes() == GRAY).all()
    outcomes([(1.5, 1.5, 1.7, 1.7), (0.6, 0.6, 0.4, 0.4)], [0, 1], [(0, 0, 0, 0)], [2], [(1, 0)])
