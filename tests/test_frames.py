"""Synthetic frames: the same each time, honestly labelled, and like the real ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from yogo_jax.synthetic import cells
from yogo_jax.synthetic.cells import CLASS_NAMES
from yogo_jax.synthetic.dataset import default_spec, render_frame


REAL_FRAMES = Path(__file__).parents[2] / "shared" / "data" / "lfm" / "images" / "train"
SMALL = default_spec((240, 320))
NATIVE = default_spec((772, 1032))
SMALLEST_BOX_AREA = 200 / (772 * 1032)


def boxes_px(boxes_cxcywh, image_hw):
    """Left, top, right, bottom in pixels."""
    sides = np.array([image_hw[1], image_hw[0]])
    centre, size = boxes_cxcywh[:, :2] * sides, boxes_cxcywh[:, 2:] * sides
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


@pytest.mark.parametrize("spec", [SMALL, NATIVE], ids=["240x320", "772x1032"])
def test_same_arguments_give_the_same_frame(spec):
    for first, again in zip(
        render_frame(spec, "val", 3), render_frame(spec, "val", 3), strict=True
    ):
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "other",
    [
        (SMALL, "val", 4),
        (SMALL, "test", 3),
        (dataclasses.replace(SMALL, seed=1), "val", 3),
    ],
    ids=["index", "split", "seed"],
)
def test_frames_differ_in(other):
    image, boxes, _ = render_frame(SMALL, "val", 3)
    other_image, other_boxes, _ = render_frame(*other)
    assert (image != other_image).mean() > 0.5
    assert boxes.shape != other_boxes.shape or (boxes != other_boxes).any()


@pytest.mark.parametrize("spec", [SMALL, NATIVE], ids=["240x320", "772x1032"])
def test_labels_are_legal(spec):
    for index in range(12 if spec is SMALL else 3):
        image, boxes, class_ids = render_frame(spec, "train", index)
        assert image.shape == spec.image_hw
        assert image.dtype == np.uint8
        edges = boxes_px(boxes, spec.image_hw)
        assert (edges[:, :2] > -1e-3).all()
        assert (edges[:, 2:] < np.array([spec.image_hw[1], spec.image_hw[0]]) + 1e-3).all()
        # The edges of a drawn extent are edges of pixels.
        np.testing.assert_allclose(edges, np.rint(edges), atol=1e-3)
        assert (boxes[:, 2] * boxes[:, 3] > SMALLEST_BOX_AREA).all()
        assert set(class_ids.tolist()) <= set(range(len(CLASS_NAMES)))


def test_boxes_are_tight_around_lone_cells():
    """Oracle: outlines of the dark regions of the finished image, noise and all."""
    compared = 0
    for index in range(4):
        image, boxes, class_ids = render_frame(NATIVE, "train", index)
        edges = boxes_px(boxes, NATIVE.image_hw)
        dark = image < 0.86 * np.median(image)
        regions, _ = ndimage.label(dark)
        outlines = ndimage.find_objects(regions)
        for box, class_id in zip(edges, class_ids, strict=True):
            if CLASS_NAMES[class_id] == "misc":
                continue  # in pieces
            reach = box + np.array([-6, -6, 6, 6])
            near = (edges[:, :2] < reach[2:]).all(axis=1) & (edges[:, 2:] > reach[:2]).all(axis=1)
            if near.sum() > 1:
                continue
            left, top, right, bottom = np.rint(box).astype(int)
            ids, sizes = np.unique(regions[top:bottom, left:right], return_counts=True)
            region = ids[1:][np.argmax(sizes[1:])]
            rows, columns = outlines[region - 1]
            found = [columns.start, rows.start, columns.stop, rows.stop]
            np.testing.assert_allclose(found, box, atol=2.5, err_msg=f"frame {index}, {box}")
            compared += 1
    assert compared > 40


def test_every_dark_region_has_a_label():
    """Nothing as dark and large as half a cell goes without a box, at the frame's edge or not."""
    for index in range(3):
        image, boxes, _ = render_frame(NATIVE, "val", index)
        regions, count = ndimage.label(image < 130)
        sizes = ndimage.sum_labels(np.ones_like(image), regions, np.arange(1, count + 1))
        centres = ndimage.center_of_mass(regions > 0, regions, np.arange(1, count + 1))
        edges = boxes_px(boxes, NATIVE.image_hw)
        for size, (y, x) in zip(sizes, centres, strict=True):
            holds = (
                (edges[:, 0] <= x) & (x <= edges[:, 2]) & (edges[:, 1] <= y) & (y <= edges[:, 3])
            )
            assert size < 500 or holds.any(), f"frame {index}: {size:.0f} px at {y:.0f}, {x:.0f}"


def test_cells_lie_apart_touch_and_are_cut():
    touching = cut = 0
    for index in range(4):
        _, boxes, _ = render_frame(NATIVE, "train", index)
        edges = boxes_px(boxes, NATIVE.image_hw)
        centres = (edges[:, :2] + edges[:, 2:]) / 2
        distances = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
        np.fill_diagonal(distances, np.inf)
        # 0.6 of a cell's 40 px; boxes cut by the edge have their centres moved a little.
        assert distances.min() > 20
        touching += (distances.min(axis=1) < 42).sum()
        cut += (
            ((edges[:, :2] < 0.5) | (edges[:, 2:] > np.array([1032, 772]) - 0.5)).any(axis=1).sum()
        )
    assert touching >= 10
    assert cut >= 5


def test_size_of_cells_does_not_depend_on_the_frame():
    heights = {}
    for spec, frames in ((SMALL, 24), (NATIVE, 3)):
        found = [render_frame(spec, "train", index) for index in range(frames)]
        boxes = np.concatenate([frame[1][frame[2] == 0] for frame in found])
        heights[spec.image_hw] = np.median(boxes[:, 3]) * spec.image_hw[0]
    assert all(36 <= height <= 46 for height in heights.values()), heights


def test_class_proportions_are_kept():
    shares = (0.5, 0.0, 0.0, 0.3, 0.0, 0.0, 0.2)
    spec = dataclasses.replace(NATIVE, class_proportions=shares)
    ids = np.concatenate([render_frame(spec, "train", index)[2] for index in range(5)])
    found = np.bincount(ids, minlength=7) / len(ids)
    # Three standard deviations of about 220 cells.
    np.testing.assert_allclose(found, shares, atol=0.1)
    assert set(ids.tolist()) == {0, 3, 6}


def test_frames_may_be_empty():
    spec = dataclasses.replace(SMALL, cells_per_frame=1e-6)
    _, boxes, class_ids = render_frame(spec, "train", 0)
    assert boxes.shape == (0, 4)
    assert class_ids.shape == (0,)


def test_frames_look_like_the_real_ones():
    paths = sorted(REAL_FRAMES.glob("*.png"))
    if not paths:
        pytest.skip(f"no real frames in {REAL_FRAMES}")
    real = [np.asarray(Image.open(path)).astype(float) for path in paths]
    ours = [render_frame(NATIVE, "train", index)[0].astype(float) for index in range(6)]

    def numbers(image):
        bright = image[:, 1:] > np.median(image) - 12
        return (
            np.median(image),
            (image < 120).mean(),
            np.percentile(image, 0.5),
            np.diff(image, axis=1)[bright].std() / np.sqrt(2),
        )

    median, dark, darkest, noise = np.array([numbers(image) for image in ours]).T
    real_median, real_dark, real_darkest, real_noise = np.array([numbers(im) for im in real]).T
    assert abs(median.mean() - real_median.mean()) < 10
    assert real_dark.min() / 2 < dark.mean() < real_dark.max() * 2
    assert abs(darkest.mean() - real_darkest.mean()) < 15
    assert 0.7 < noise.mean() / real_noise.mean() < 1.4


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_every_class_is_drawn_whole(class_name):
    """Nothing of a cell is lost at the border of its patch."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        radius = rng.uniform(*cells.CELL_RADIUS[class_name])
        sprite = cells.draw_cell(
            class_name, rng, radius=radius, offset_yx=(0.5, -0.5), defocus=1.85
        )
        border = np.ones(sprite.density.shape, bool)
        border[2:-2, 2:-2] = False
        assert np.abs(sprite.density[border]).max() < 0.01
        assert sprite.density.max() > 0.12
