"""Cells that replace others: drawn frames in which every cell of a class has its own gray level."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yogo_jax.data.records import Records
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.errors import UserError
from yogo_jax.training.augment import augment_batch, restain
from yogo_jax.training.rare_cells import (
    CELLS_PER_CLASS,
    cut_cells,
    light_of,
    rare_cells_line,
    rare_classes,
    replace_cells,
)


HEIGHT, WIDTH = 120, 160
RADIUS = 10
COMMON, SELDOM = 0, 1
NAMES = ("common", "seldom", "absent")
# Optical density of a cell, and of the spot that only the seldom class has in its middle.
DENSITY, SPOT = 0.5, 1.5


def draw(cells, light=(200.0, 180.0, 220.0), density=DENSITY) -> np.ndarray:
    """Discs of (x, y, class) in an image of that light."""
    y, x = np.indices((HEIGHT, WIDTH)) + 0.5
    od = np.zeros((HEIGHT, WIDTH))
    for cx, cy, class_id in cells:
        distance = np.hypot(x - cx, y - cy)
        od[distance < RADIUS] = density
        if class_id == SELDOM:
            # Not in the middle, so that a turn can be seen.
            od[np.hypot(x - cx - 4, y - cy) < 2.5] = SPOT
    return (np.asarray(light) * np.exp(-od)[..., None]).round().astype(np.uint8)


def boxes_of(cells) -> np.ndarray:
    boxes = [(x / WIDTH, y / HEIGHT, 2 * RADIUS / WIDTH, 2 * RADIUS / HEIGHT) for x, y, _ in cells]
    return np.asarray(boxes, np.float32).reshape(-1, 4)


GRID = [(x, y) for y in range(20, 110, 40) for x in range(20, 150, 30)]
FRAMES = [
    [(x, y, COMMON) for x, y in GRID],
    [(*GRID[0], SELDOM), *((x, y, COMMON) for x, y in GRID[1:])],
    [(x, y, COMMON) for x, y in GRID],
]
LIGHTS = [(200.0, 180.0, 220.0), (120.0, 200.0, 240.0), (230.0, 230.0, 230.0)]


def make_records(frames) -> Records:
    return Records(
        NAMES,
        tuple(f"{index}.png" for index in range(len(frames))),
        np.cumsum([0, *map(len, frames)]),
        np.concatenate([boxes_of(frame) for frame in frames]),
        np.asarray([class_id for frame in frames for *_, class_id in frame], np.int32),
    )


RECORDS = make_records(FRAMES)
IMAGES = [draw(frame, light) for frame, light in zip(FRAMES, LIGHTS, strict=True)]


def padded(frame, rows=20):
    """Boxes, classes and `valid` of a frame, as the step gets them."""
    fill = rows - len(frame)
    boxes = np.concatenate([boxes_of(frame), np.zeros((fill, 4), np.float32)])
    ids = np.asarray([*(class_id for *_, class_id in frame), *[0] * fill], np.int32)
    return jnp.asarray(boxes), jnp.asarray(ids), jnp.arange(rows) < len(frame)


@functools.partial(jax.jit, static_argnames=("most", "turned", "frequent"))
def compiled(key, image, boxes, ids, valid, cells, *, frequent, **options):
    return replace_cells(
        key, image, boxes, ids, valid, cells._replace(frequent=frequent), **options
    )


def replaced(seed, frame, image, cells, *, share=1.0, most=1.0, turned=True):
    boxes, ids, valid = padded(frame)
    image, new_boxes, new_ids = compiled(
        jax.random.key(seed),
        jnp.asarray(image, jnp.float32),
        boxes,
        ids,
        valid,
        cells,
        share=share,
        most=most,
        turned=turned,
        frequent=cells.frequent,
    )
    return np.asarray(image), np.asarray(new_boxes), np.asarray(new_ids)


@pytest.fixture(scope="module")
def cells():
    return cut_cells(RECORDS, lambda index: IMAGES[index])


@pytest.mark.parametrize(
    ("counts", "rare"),
    [
        ((100, 4, 5, 0), (False, True, False, False)),
        ((0, 0), (False, False)),
        ((3, 3), (False, False)),
        ((1000, 1), (False, True)),
    ],
)
def test_rare_classes(counts, rare):
    assert tuple(rare_classes(np.asarray(counts)).tolist()) == rare


def test_cut_cells_know_their_box_light_and_density(cells):
    counts = np.bincount(cells.class_ids, minlength=3)
    assert counts.tolist() == [len(GRID) * 3 - 1, 1, 0]
    assert cells.frequent == COMMON
    # Each class as often, and their sum is 1.
    assert cells.shares[cells.class_ids == SELDOM].sum() == pytest.approx(0.5)
    assert cells.shares.sum() == pytest.approx(1)
    seldom = int(np.flatnonzero(cells.class_ids == SELDOM)[0])
    np.testing.assert_allclose(cells.boxes_px[seldom], (-10, -10, 10, 10), atol=0.01)
    np.testing.assert_allclose(cells.light[seldom], LIGHTS[1], atol=1)
    np.testing.assert_allclose(cells.density[seldom], [DENSITY] * 3, atol=0.03)
    half = cells.images.shape[1] // 2
    # The spot lies right of the middle, as drawn.
    assert cells.images[seldom, half, half + 4, 0] == pytest.approx(120 * np.exp(-SPOT), abs=1)
    line = rare_cells_line(RECORDS, cells, 0.2)
    assert "20% of the cells of common" in line
    assert line.endswith(": 50% common (44 of 44 boxes), 50% seldom (1 of 1 boxes)")


@pytest.mark.parametrize(
    ("weights", "seldom"), [((1, 1, 1), 0.5), ((1, 3, 0), 0.75), ((0.1, 0.3, 9), 0.75)]
)
def test_weights_say_how_often_a_class_is_taken(weights, seldom):
    cells = cut_cells(RECORDS, lambda index: IMAGES[index], weights)
    shares = np.bincount(cells.class_ids, cells.shares, minlength=3)
    np.testing.assert_allclose(shares, [1 - seldom, seldom, 0], atol=1e-6)
    for k in (COMMON, SELDOM):
        assert len(np.unique(cells.shares[cells.class_ids == k])) == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 2), "has 2 numbers, expected 3, one for each class in this order: common, seldom"),
        ((0, 1, 1), r"must be above 0 for common \(.* and for one of seldom, got \(0, 1, 1\)"),
        ((1, 0, 1), r"must be above 0 for common \(.* and for one of seldom, got \(1, 0, 1\)"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(weights, message):
    with pytest.raises(UserError, match=message):
        cut_cells(RECORDS, lambda index: IMAGES[index], weights)


@pytest.mark.parametrize("frame", [[(20, 20, COMMON), (60, 60, SELDOM)], []])
def test_without_a_rare_class_nothing_is_read_or_cut(frame):
    balanced = make_records([frame])
    assert cut_cells(balanced, lambda index: pytest.fail("an image is read")) is None
    assert "nothing is put in" in rare_cells_line(balanced, None, 0.2)


def test_cells_of_overexposed_images_leave_numbers():
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    cells = cut_cells(RECORDS, lambda index: white)
    assert (cells.density == 0).all()
    image, _, ids = replaced(0, FRAMES[0], white, cells)
    assert (ids == SELDOM).any()
    assert (image == 255).all()


def test_cells_at_an_edge_and_huge_ones_are_not_cut():
    frames = [[(5, 20, SELDOM), *((x, y, COMMON) for x, y in GRID[1:])], *FRAMES[::2] * 2]
    assert cut_cells(make_records(frames), lambda index: draw(frames[index])) is None
    records = make_records([FRAMES[1], *FRAMES[::2] * 2])
    boxes = records.boxes_cxcywh.copy()
    boxes[0, 2:] = 0.5
    huge = dataclasses.replace(records, boxes_cxcywh=boxes)
    assert cut_cells(huge, lambda index: IMAGES[0]) is None


@pytest.mark.parametrize("weights", [(), (1, 2, 1)])
def test_frequent_cells_that_are_all_at_an_edge_are_no_error(weights):
    frames = [[(60, 60, SELDOM), *((5, y, COMMON) for y in range(20, 41))]]
    cells = cut_cells(make_records(frames), lambda index: draw(frames[index]), weights)
    assert cells.class_ids.tolist() == [SELDOM]
    np.testing.assert_allclose(cells.shares, [1.0])


def test_no_more_cells_are_kept_than_the_limit():
    frames = [FRAMES[1], *[FRAMES[0]] * 30]
    cells = cut_cells(make_records(frames), lambda index: draw(frames[index]))
    counts = np.bincount(cells.class_ids)
    assert counts.tolist() == [CELLS_PER_CLASS, 1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("density", [0.4, 0.8])
def test_a_new_cell_has_the_light_and_the_density_of_its_place(cells, seed, density):
    light = (180.0, 140.0, 160.0)
    before = draw(FRAMES[0], light, density)
    image, boxes, ids = replaced(seed, FRAMES[0], before, cells, share=0.5)
    rows = np.flatnonzero(ids == SELDOM)
    assert len(rows) > 0
    for row in rows:
        x, y = GRID[row]
        patch = image[y - 8 : y + 8, x - 8 : x + 8].astype(np.float64)
        od = -np.log(patch / light)
        # The new cell is as dense as the one before, its spot in proportion.
        assert np.median(od) == pytest.approx(density, rel=0.08)
        assert od.max() == pytest.approx(SPOT * density / DENSITY, rel=0.12)
        np.testing.assert_allclose(boxes[row], padded(FRAMES[0])[0][row], atol=0.01)
    untouched = np.asarray(ids) == COMMON
    np.testing.assert_allclose(
        boxes[untouched][:, 2:], np.asarray(padded(FRAMES[0])[0])[untouched][:, 2:], rtol=1e-5
    )
    # Between the cells nothing has changed.
    outside = (draw(FRAMES[0]) == draw([])).all(-1)
    np.testing.assert_allclose(image[outside], before[outside], atol=1e-3)


def test_cells_are_turned_with_their_box_only_if_asked(cells):
    positions = set()
    for turned in (False, True):
        found = set()
        for seed in range(12):
            image, _, ids = replaced(seed, FRAMES[0], IMAGES[0], cells, share=0.5, turned=turned)
            for row in np.flatnonzero(ids == SELDOM):
                x, y = GRID[row]
                patch = image[y - 10 : y + 10, x - 10 : x + 10, 0]
                spot_y, spot_x = np.unravel_index(patch.argmin(), patch.shape)
                found.add(
                    (
                        int(np.sign(round((spot_x - 9.5) / 4))),
                        int(np.sign(round((spot_y - 9.5) / 4))),
                    )
                )
        if not turned:
            assert found == {(1, 0)}
        positions = found
    assert positions == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_boxes_turn_with_their_window():
    # A cell that is wider than high, and right of the middle of its window.
    records = make_records([FRAMES[1], FRAMES[0], FRAMES[0]])
    boxes = records.boxes_cxcywh.copy()
    boxes[0] = ((20 + 0.4) / WIDTH, 20 / HEIGHT, 24 / WIDTH, 16 / HEIGHT)
    wide = dataclasses.replace(records, boxes_cxcywh=boxes)
    cells = cut_cells(wide, lambda index: IMAGES[0])
    seen = set()
    for seed in range(10):
        _, boxes, ids = replaced(seed, FRAMES[0], IMAGES[0], cells, share=0.5)
        for row in np.flatnonzero(ids == SELDOM):
            x1, y1, x2, y2 = cxcywh_to_xyxy(boxes[row]) * (WIDTH, HEIGHT, WIDTH, HEIGHT)
            x, y = GRID[row]
            sides = tuple(np.round((x2 - x1, y2 - y1)).astype(int).tolist())
            shift = tuple(np.round(((x1 + x2) / 2 - x, (y1 + y2) / 2 - y), 1).tolist())
            seen.add((sides, shift))
    for sides, (dx, dy) in seen:
        assert (sides, abs(dx) > abs(dy)) in {((24, 16), True), ((16, 24), False)}
    assert {sides for sides, _ in seen} == {(24, 16), (16, 24)}


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ([(8, 60, COMMON)], "the new cell would reach over the edge"),
        ([(60, 60, COMMON), (71, 60, SELDOM)], "it would cover much of another cell"),
        ([(60, 60, SELDOM)], "there is no cell of the frequent class"),
        ([], "there is no cell at all"),
    ],
)
def test_cells_stay_where_no_other_fits(cells, frame, why):
    image = draw(frame)
    for seed in range(5):
        after, boxes, ids = replaced(seed, frame, image, cells)
        np.testing.assert_array_equal(after, image, why)
        np.testing.assert_array_equal(boxes, padded(frame)[0])
        np.testing.assert_array_equal(ids, padded(frame)[1])


def test_a_cell_that_would_stand_out_around_a_smaller_one_stays(cells):
    boxes = np.asarray(padded([(80, 60, COMMON)])[0]).copy()
    boxes[0, 2:] *= 1.5
    _, ids, valid = padded([(80, 60, COMMON)])
    image = jnp.asarray(draw([(80, 60, COMMON)]), jnp.float32)
    for seed in range(5):
        after, _, new_ids = replace_cells(
            jax.random.key(seed),
            image,
            jnp.asarray(boxes),
            ids,
            valid,
            cells,
            share=1.0,
            most=1.0,
            turned=True,
        )
        assert (after == image).all()
        assert (new_ids == ids).all()


def test_the_share_is_that_of_the_cells_that_are_tried(cells):
    # Half of what is put in is of the seldom class.
    seldom = {
        share: sum(
            (replaced(seed, FRAMES[0], IMAGES[0], cells, share=share, most=0.4)[2] == SELDOM).sum()
            for seed in range(60)
        )
        for share in (0.0, 0.1, 0.4)
    }
    assert seldom[0.0] == 0
    # A place that is drawn a second time does not count twice.
    for share in (0.1, 0.4):
        assert seldom[share] == pytest.approx(60 * len(GRID) * share / 2, rel=0.3)


def test_gray_images_and_batches(cells):
    gray = [image[..., :1] for image in IMAGES]
    cut = cut_cells(RECORDS, lambda index: gray[index])
    augment = augment_config(rare_cells=0.5)
    boxes, ids, valid = padded(FRAMES[0])
    images, (_, new_ids, new_valid) = augment_batch(
        jax.random.key(0),
        jnp.asarray(np.stack([gray[0]] * 3)),
        tuple(jnp.stack([each] * 3) for each in (boxes, ids, valid)),
        augment,
        rare_cells=cut,
    )
    assert images.shape == (3, HEIGHT, WIDTH, 1)
    assert ((new_ids == SELDOM).sum(1) > 0).all()
    assert (new_valid == jnp.stack([valid] * 3)).all()
    # The last epochs are without.
    _, (_, new_ids, _) = augment_batch(
        jax.random.key(0),
        jnp.asarray(np.stack([gray[0]] * 3)),
        tuple(jnp.stack([each] * 3) for each in (boxes, ids, valid)),
        augment,
        paste_enabled=jnp.asarray(False),
        rare_cells=cut,
    )
    assert (new_ids == jnp.stack([ids] * 3)).all()


def augment_config(**fields):
    from configs import base
    from yogo_jax.config.schema import AugmentConfig

    values = base.get_config().augment.to_dict()
    return AugmentConfig(**{**values, "horizontal_flip": 0.0, "vertical_flip": 0.0, **fields})


@pytest.mark.parametrize("light", LIGHTS)
def test_another_stain_scales_the_density_and_keeps_the_light(light):
    image = draw(FRAMES[0], light)
    stain = 0.5
    found = []
    for seed in range(30):
        after = np.asarray(
            restain(jax.random.key(seed), jnp.asarray(image, jnp.float32), stain=stain)
        )
        np.testing.assert_allclose(after[0, 0], light, atol=0.01)
        x, y = GRID[0]
        od = -np.log(after[y, x].astype(np.float64) / light)
        found.append(od / DENSITY)
    found = np.asarray(found)
    assert found.min() > 1 / 1.5**2 - 0.02
    assert found.max() < 1.5**2 + 0.02
    # All colours together, and each on its own.
    assert np.ptp(found.mean(1)) > 0.5
    assert np.ptp(found, axis=1).max() > 0.3


def test_the_light_is_that_of_the_ground():
    np.testing.assert_allclose(light_of(jnp.asarray(IMAGES[1], jnp.float32)), LIGHTS[1], atol=1)
    assert (light_of(jnp.zeros((16, 16, 1))) == 1).all()
