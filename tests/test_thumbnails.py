"""Cut-out cells: how they are read, and where and how they are pasted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runs import tiny_config
from tiny_data import add_thumbnails, write_dataset
from yogo_jax.checkpoint.run_data import prepare_data
from yogo_jax.config.schema import AugmentConfig
from yogo_jax.data.thumbnails import Thumbnails, load_thumbnails
from yogo_jax.errors import UserError
from yogo_jax.training.augment import augment_batch
from yogo_jax.training.pasting import FEATHER_PX, on_device, paste


FRAME_HW = (60, 80)


@pytest.fixture
def folder(tmp_path):
    """A frame of 60x80 px, and thumbnails of two classes, the second of which has three."""
    for name, sizes in {"a": [(12, 10)], "c": [(8, 8), (6, 20), (2, 2)]}.items():
        (tmp_path / name).mkdir()
        for i, (height, width) in enumerate(sizes):
            Image.new("L", (width, height), 50 * i).save(tmp_path / name / f"{i}.png")
        (tmp_path / name / "notes.txt").write_text("no image")
    Image.new("L", FRAME_HW[::-1]).save(tmp_path / "frame.png")
    return tmp_path


def load(folder, **fields):
    arguments = {
        "image_paths": [str(folder / "frame.png")],
        "image_hw": FRAME_HW,
        "rgb": False,
        "min_box_area": 10 / (60 * 80),
        **fields,
    }
    return load_thumbnails({"a": [folder / "a"], "c": [folder / "c"]}, ("a", "b", "c"), **arguments)


def test_thumbnails_lie_in_the_top_left_corner_and_small_ones_are_counted(folder):
    found = load(folder)
    assert found.images.shape == (3, 12, 20, 1)
    np.testing.assert_array_equal(found.sizes_hw, [(12, 10), (8, 8), (6, 20)])
    np.testing.assert_array_equal(found.class_ids, [0, 2, 2])
    assert found.left_out == 1
    np.testing.assert_array_equal(found.images[2, :6, :, 0], np.full((6, 20), 50))
    assert found.images[2, 6:].max() == 0
    # Classes alike, and alike within a class.
    np.testing.assert_allclose(found.shares(), [0.5, 0.25, 0.25])


def test_thumbnails_are_resized_as_the_frames_are(folder):
    found = load(folder, image_hw=(30, 160), rgb=True)
    np.testing.assert_array_equal(found.sizes_hw, [(6, 20), (4, 16), (3, 40)])
    assert found.images.shape[-1] == 3


def test_fingerprints_tell_thumbnails_apart(folder):
    before = load(folder).fingerprint()
    assert load(folder).fingerprint() == before
    Image.new("L", (8, 8), 1).save(folder / "c" / "0.png")
    assert load(folder).fingerprint() != before


def test_thumbnails_that_do_not_fit_are_named(folder):
    with pytest.raises(UserError, match="all 4 thumbnails are smaller"):
        load(folder, min_box_area=0.5)
    Image.new("L", (12, 40)).save(folder / "c" / "3.png")
    with pytest.raises(UserError, match=r"c/3\.png: 40x12 px; expected one cell, at most half"):
        load(folder)
    (folder / "c" / "3.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"c/3\.png: not an image"):
        load(folder)
    Image.new("L", (99, 60)).save(folder / "wide.png")
    paths = [str(folder / "frame.png"), str(folder / "wide.png")]
    with pytest.raises(UserError, match=r"has 60x80 px and .*wide\.png 60x99; expected .* one"):
        load(folder, image_paths=paths)


def test_a_run_says_what_it_does_with_thumbnails(tmp_path):
    definition = write_dataset(tmp_path)
    config = tiny_config(definition, augment__thumbnails=0.5)
    with pytest.raises(UserError, match=r"definition\.yml has no thumbnail_augmentation: add it"):
        prepare_data(config.data, config.augment)
    without = prepare_data(config.data)
    assert without.thumbnails is None
    assert not any("thumbnails" in line for line in without.lines)
    add_thumbnails(definition)
    unused = prepare_data(config.data)
    assert unused.thumbnails is None
    assert "thumbnails: those of the definition are not used" in unused.lines[-1]
    assert unused.fingerprint == without.fingerprint
    used = prepare_data(config.data, config.augment)
    assert used.lines[-1] == "thumbnails: 12 healthy, 12 ring"
    assert used.fingerprint != without.fingerprint


# Pasting ----------------------------------------------------------------------------------------


def ringed(height: int, width: int, *, ground: int, middle: int) -> np.ndarray:
    """A thumbnail: its middle on a ground that fills its corners."""
    cell = np.full((height, width, 1), ground, np.uint8)
    cell[height // 4 : -(height // 4), width // 4 : -(width // 4)] = middle
    return cell


def drawn_thumbnails() -> Thumbnails:
    cells = [
        ringed(12, 12, ground=100, middle=40),
        ringed(8, 16, ground=180, middle=250),
        ringed(16, 8, ground=60, middle=90),
    ]
    images = np.zeros((3, 16, 16, 1), np.uint8)
    for image, cell in zip(images, cells, strict=True):
        image[: cell.shape[0], : cell.shape[1]] = cell
    sizes = np.asarray([cell.shape[:2] for cell in cells], np.int32)
    return Thumbnails(images, sizes, np.asarray([0, 1, 1], np.int32), 0)


# Middle less ground of each, by its size.
CONTRASTS = {(12, 12): -60, (8, 16): 70, (16, 8): 30}
OWN_BOX = np.asarray([[0.5, 0.5, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0]], np.float32)
OWN_VALID = np.asarray([True, False])


@functools.cache
def pasting(probability: float = 1.0, plain: float = 0.0, flips: tuple[float, float] = (0.5, 0.5)):
    return jax.jit(
        functools.partial(
            paste,
            thumbnails=on_device(drawn_thumbnails()),
            probability=probability,
            plain=plain,
            tries=10,
            flips=flips,
        )
    )


def paste_into(image: np.ndarray, seed: int, **fields):
    found = pasting(**fields)(
        jax.random.key(seed),
        jnp.asarray(image),
        jnp.asarray(OWN_BOX),
        jnp.asarray([5, 0]),
        jnp.asarray(OWN_VALID),
    )
    return [np.asarray(each) for each in found]


def corners_px(boxes: np.ndarray) -> np.ndarray:
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    return corners * (80, 60, 80, 60)


def shaded() -> np.ndarray:
    """A frame that is darker on its left."""
    return np.broadcast_to(np.linspace(120, 160, 80, dtype=np.float32)[:, None], (60, 80, 1)).copy()


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_pasted_cells_lie_in_the_frame_apart_from_all_boxes_and_their_boxes_fit(seed):
    frame = shaded()
    image, boxes, class_ids, valid = paste_into(frame, seed)
    np.testing.assert_array_equal(boxes[:2], OWN_BOX)
    np.testing.assert_array_equal(valid[:2], OWN_VALID)
    np.testing.assert_array_equal(class_ids[:2], [5, 0])
    corners = corners_px(boxes)[valid]
    assert corners.min() >= -1e-3
    assert (corners[:, 2] <= 80 + 1e-3).all()
    assert (corners[:, 3] <= 60 + 1e-3).all()
    for i, a in enumerate(corners):
        for b in corners[:i]:
            shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            assert shared.min() <= 1e-3
    # Nothing but the boxes has changed, and each shows its thumbnail, as bright as its place.
    outside = np.ones((60, 80), bool)
    for (x1, y1, x2, y2), class_id in zip(
        np.round(corners[1:]).astype(int), class_ids[valid][1:], strict=True
    ):
        outside[y1:y2, x1:x2] = False
        contrast = CONTRASTS[y2 - y1, x2 - x1]
        assert class_id == (0 if contrast == -60 else 1)
        middle = image[(y1 + y2) // 2, (x1 + x2) // 2, 0]
        # Between the corners the frame grows by half a unit a px.
        assert middle == pytest.approx(frame[0, (x1 + x2) // 2, 0] + contrast, abs=6)
    np.testing.assert_array_equal(image[outside], frame[outside])


def test_edges_blend():
    thumbnails = on_device(drawn_thumbnails())
    flat = jnp.full((60, 80, 1), 100.0)
    cell = jnp.full((1, 12, 12, 1), 100.0).at[:, 2:10].set(200.0)
    one = thumbnails._replace(
        images=cell,
        sizes_hw=jnp.asarray([(12, 12)]),
        class_ids=jnp.zeros(1, int),
        shares=jnp.ones(1),
    )
    image, boxes, _, valid = paste(
        jax.random.key(0),
        flat,
        jnp.zeros((1, 4)),
        jnp.zeros(1, int),
        jnp.zeros(1, bool),
        one,
        probability=1.0,
        plain=0.0,
        tries=1,
        flips=(0.0, 0.0),
    )
    assert valid.tolist() == [False, True]
    x1, y1, _, _ = np.round(corners_px(np.asarray(boxes[1:])))[0].astype(int)
    row = np.asarray(image)[y1 + 5, x1 : x1 + 12, 0]
    steps = np.arange(1, FEATHER_PX + 1) / (FEATHER_PX + 1)
    np.testing.assert_allclose(row[:FEATHER_PX], 100 + 100 * steps, rtol=1e-6)
    np.testing.assert_allclose(row[FEATHER_PX:-FEATHER_PX], 200)
    np.testing.assert_allclose(row[-FEATHER_PX:], 100 + 100 * steps[::-1], rtol=1e-6)


def test_cells_are_mirrored_in_place():
    cell = np.zeros((1, 16, 16, 1), np.uint8)
    cell[0, :12, :12, 0] = np.arange(12) * 10  # brighter on its right
    thumbnails = Thumbnails(cell, np.asarray([(12, 12)], np.int32), np.zeros(1, np.int32), 0)

    def slope(flips):
        image, boxes, _, _ = paste(
            jax.random.key(1),
            jnp.full((60, 80, 1), 100.0),
            jnp.zeros((1, 4)),
            jnp.zeros(1, int),
            jnp.zeros(1, bool),
            on_device(thumbnails),
            probability=1.0,
            plain=0.0,
            tries=1,
            flips=flips,
        )
        x1, y1, x2, _ = np.round(corners_px(np.asarray(boxes[1:])))[0].astype(int)
        row = np.asarray(image)[y1 + 6, x1:x2, 0]
        return row[8] - row[3]

    assert slope((0.0, 1.0)) == pytest.approx(50)
    assert slope((1.0, 0.0)) == pytest.approx(-50)


def test_on_a_plain_ground_nothing_is_left_of_the_frame():
    frame = shaded()
    frame[25:35, 35:45] = 0
    image, boxes, _, valid = paste_into(frame, 3, plain=1.0)
    assert not valid[:2].any()
    assert valid.any()
    outside = np.ones((60, 80), bool)
    for x1, y1, x2, y2 in np.round(corners_px(boxes)[valid]).astype(int):
        outside[y1:y2, x1:x2] = False
    assert np.unique(image[outside]).size == 1
    assert abs(float(image[outside].mean()) - 140) < 3


def test_so_many_images_and_each_class_as_often():
    frame = shaded()
    seeds = range(200)
    pasted = [paste_into(frame, seed, probability=0.3)[2:] for seed in seeds]
    share = np.mean([valid[2:].any() for _, valid in pasted])
    assert 0.2 < share < 0.4
    first = np.concatenate([ids[2:][valid[2:]] for ids, valid in pasted])
    # Class 1 has two thumbnails, class 0 one.
    assert 0.4 < np.mean(first == 1) < 0.6
    untouched = paste_into(frame, 0, probability=0.0)
    np.testing.assert_array_equal(untouched[0], frame)
    assert untouched[3].tolist() == [True] + [False] * 11


def test_pasted_cells_move_with_their_images():
    frames = jnp.asarray(np.broadcast_to(shaded(), (4, 60, 80, 1)), jnp.uint8)
    boxes = jnp.asarray(np.broadcast_to(OWN_BOX, (4, 2, 4)))
    labels = (boxes, jnp.zeros((4, 2), int), jnp.zeros((4, 2), bool))
    fields = {"horizontal_flip": 1.0, "vertical_flip": 0.0, "thumbnails": 1.0}
    images, (boxes, _, valid) = augment_batch(
        jax.random.key(0),
        frames,
        labels,
        AugmentConfig(**fields, thumbnails_tried=3),
        thumbnails=on_device(drawn_thumbnails()),
    )
    mirrored = np.asarray(frames[0, :, ::-1, 0], np.float32)
    for image, its_boxes, its_valid in zip(images, boxes, valid, strict=True):
        assert its_valid.sum() >= 1
        for x1, y1, x2, y2 in np.round(corners_px(np.asarray(its_boxes)[its_valid])).astype(int):
            middle = (y1 + y2) // 2, (x1 + x2) // 2
            assert abs(float(image[*middle, 0]) - mirrored[middle]) > 15
