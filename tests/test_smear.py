"""Synthetic smears: stages that differ inside the cell, slides, dirt, and honest labels."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from yogo_jax.synthetic import smear, smear_cells
from yogo_jax.synthetic.dataset import DOMAINS, default_spec, ensure_dataset, render_frame
from yogo_jax.synthetic.shapes import plane_around
from yogo_jax.synthetic.smear_cells import CELL_RADIUS, CLASS_NAMES, STAIN_NAMES, draw_cell


SMEAR = default_spec((480, 640), domain="smear")
SMALL = default_spec((144, 192), domain="smear")
HEALTHY = CLASS_NAMES.index("healthy")


def boxes_px(boxes_cxcywh, image_hw):
    """Left, top, right, bottom in pixels."""
    sides = np.array([image_hw[1], image_hw[0]])
    centre, size = boxes_cxcywh[:, :2] * sides, boxes_cxcywh[:, 2:] * sides
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def drawn(class_name, count=40):
    """Sprites of one class, all of one size."""
    rng = np.random.default_rng(3)
    draw = partial(draw_cell, class_name, rng, radius=21.0, offset_yx=(0.3, -0.2), pallor=0.3)
    return [draw() for _ in range(count)]


# Cells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_every_class_is_drawn_whole_and_in_its_size(class_name):
    rng = np.random.default_rng(5)
    for radius in (*CELL_RADIUS[class_name], *rng.uniform(*CELL_RADIUS[class_name], 30).tolist()):
        sprite = draw_cell(class_name, rng, radius=radius, offset_yx=(0.5, -0.5), pallor=0.6)
        assert sprite.density.shape == (4, *sprite.coverage.shape)
        assert sprite.density.dtype == np.float32
        border = np.ones(sprite.coverage.shape, bool)
        border[2:-2, 2:-2] = False
        assert np.abs(sprite.density[:, border]).max() < 0.01
        extents = [np.ptp(axis) + 1 for axis in np.nonzero(sprite.density.sum(axis=0) > 0.25)]
        # Bananas are thin, and the outline may bend outwards a little.
        assert 1.4 * radius < max(extents) < 2.2 * radius


def test_stages_differ_by_what_is_in_the_cell():
    """The mean amount of each stain, in the area of one pixel, for cells of one size."""
    amounts = {
        name: dict(
            zip(
                STAIN_NAMES,
                np.mean([sprite.density.sum(axis=(1, 2)) for sprite in drawn(name)], axis=0),
                strict=True,
            )
        )
        for name in CLASS_NAMES
    }
    azure, chromatin, pigment = (
        [amounts[name][stain] for name in CLASS_NAMES] for stain in STAIN_NAMES[1:]
    )
    healthy, ring, trophozoite, schizont, gametocyte, leukocyte = range(6)
    assert azure[healthy] == 0
    assert 10 < azure[ring] < azure[trophozoite] / 2 < azure[schizont] / 2
    assert azure[trophozoite] < azure[gametocyte]
    assert chromatin[healthy] < 1
    assert 4 < chromatin[ring] < chromatin[trophozoite] < chromatin[schizont] / 2
    assert chromatin[schizont] < chromatin[leukocyte]
    assert pigment[ring] == pigment[leukocyte] == 0
    assert pigment[healthy] < 1
    assert min(pigment[trophozoite], pigment[schizont], pigment[gametocyte]) > 5


def test_a_schizont_has_many_dots_and_a_gametocyte_none():
    def peaks(sprite):
        """Pixels of much chromatin that are the greatest among their neighbours."""
        chromatin = sprite.density[2]
        shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        higher = [np.roll(chromatin, shift, axis=(0, 1)) > chromatin for shift in shifts]
        return ((chromatin > 0.55) & ~np.any(higher, axis=0)).sum()

    counts = {name: [peaks(each) for each in drawn(name)] for name in CLASS_NAMES}
    assert max(counts["healthy"]) <= 1
    assert 1 <= np.median(counts["ring"]) <= 2
    assert min(counts["ring"]) >= 1
    assert min(counts["schizont"]) >= 5
    assert 9 < np.mean(counts["schizont"]) < 18
    assert np.mean(counts["gametocyte"]) < 1.5


def test_looks_within_a_class():
    """Bananas among gametocytes; dots of chromatin and bright spots in a few healthy cells."""
    bananas = [sprite.coverage.astype(bool).sum() < 900 for sprite in drawn("gametocyte", 80)]
    assert 10 < sum(bananas) < 45
    healthy = drawn("healthy", 1500)
    dotted = [sprite.density[2].max() > 0.5 for sprite in healthy]
    assert 1 <= sum(dotted) < 12
    refractile = [sprite.density[3].max() > 0 for sprite in healthy]
    assert 20 <= sum(refractile) < 75


@pytest.mark.parametrize("on_cell", [False, True], ids=["beside", "on a cell"])
def test_platelets_are_small_and_purple(on_cell):
    rng = np.random.default_rng(8)
    sprites = [
        smear_cells.draw_platelet(rng, offset_yx=(0.2, 0.4), on_cell=on_cell) for _ in range(60)
    ]
    widths = [max(np.ptp(axis) + 1 for axis in np.nonzero(s.density[1] > 0.05)) for s in sprites]
    assert 5 <= min(widths) < max(widths) <= 17
    halos = sum(sprite.density[0].min() < 0 for sprite in sprites)
    assert 15 < halos < 45 if on_cell else halos == 0
    assert not any(sprite.coverage.any() for sprite in sprites)


# Frames ------------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_frame():
    for first, again in zip(
        render_frame(SMEAR, "train", 3), render_frame(SMEAR, "train", 3), strict=True
    ):
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("cells", "platelets"), [(None, 3.0), (20.0, 1.0), (80.0, 4.0)])
def test_platelets_follow_the_cells(cells, platelets, monkeypatch):
    drawn = []
    draw_platelet = smear_cells.draw_platelet

    def counted(rng, **options):
        if not options.get("on_cell"):
            drawn.append(options)
        return draw_platelet(rng, **options)

    monkeypatch.setattr(smear, "draw_platelet", counted)
    spec = default_spec((480, 640), domain="smear", cells=cells)
    for index in range(20):
        render_frame(spec, "val", index)
    # Poisson: four deviations of the sum.
    assert abs(len(drawn) - 20 * platelets) < 4 * np.sqrt(20 * platelets)


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


def test_ten_frames_come_from_one_slide(monkeypatch):
    slides = []
    draw_frame = smear.draw_frame

    def record(rng, slide, *args, **kwargs):
        slides.append((slide.gamma, slide.defocus, *slide.light))
        return draw_frame(rng, slide, *args, **kwargs)

    monkeypatch.setattr(smear, "draw_frame", record)
    held_back = dataclasses.replace(SMALL, seed=1)
    for spec, split in ((SMALL, "train"), (SMALL, "val"), (SMALL, "test"), (held_back, "train")):
        for index in (0, 9, 10, 19, 20):
            render_frame(spec, split, index)
    first = np.array(slides).reshape(4, 5, -1)
    np.testing.assert_array_equal(first[:, 0], first[:, 1])
    np.testing.assert_array_equal(first[:, 2], first[:, 3])
    assert len({slide for slide in slides}) == 4 * 3


def test_slides_differ_in_stain_and_light():
    slides = [smear.draw_slide(np.random.default_rng(seed)) for seed in range(40)]
    light = np.array([slide.light for slide in slides])
    assert (light <= 0.99).all()
    assert (light.std(axis=0) > 0.02).all()
    eosin = np.array([slide.stain_density[0] for slide in slides])
    assert (eosin > 0).all()
    assert (eosin.std(axis=0) / eosin.mean(axis=0) > 0.15).all()
    assert (eosin[:, 1] > eosin[:, 0]).all()  # red cells are pink: they take green, not red


def test_labels_are_legal():
    for index in range(4):
        image, boxes, class_ids = render_frame(SMEAR, "train", index)
        assert image.shape == (480, 640, 3)
        assert image.dtype == np.uint8
        edges = boxes_px(boxes, SMEAR.image_hw)
        assert (edges[:, :2] > -1e-3).all()
        assert (edges[:, 2:] < np.array([640, 480]) + 1e-3).all()
        # The edges of a drawn extent are edges of pixels.
        np.testing.assert_allclose(edges, np.rint(edges), atol=1e-3)
        assert set(class_ids.tolist()) <= set(range(len(CLASS_NAMES)))


def test_boxes_are_tight_around_lone_cells(monkeypatch):
    """Oracle: outlines of what takes green light in the finished image, noise, blur and all."""
    monkeypatch.setattr(smear, "_draw_dirt", lambda *_, **__: None)
    compared = 0
    for index in range(0, 60, 10):
        image, boxes, _ = render_frame(SMEAR, "val", index)
        green = image[..., 1].astype(float)
        dark = green < 0.87 * np.median(green[green > np.percentile(green, 60)])
        edges = boxes_px(boxes, SMEAR.image_hw)
        for box in edges:
            left, top, right, bottom = np.rint(box).astype(int)
            near = (edges[:, :2] < box[2:] + 8).all(axis=1) & (edges[:, 2:] > box[:2] - 8).all(
                axis=1
            )
            if near.sum() > 1 or min(left, top) < 6 or right > 634 or bottom > 474:
                continue
            rows, columns = np.nonzero(dark[top - 6 : bottom + 6, left - 6 : right + 6])
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(
                np.array(found) + [left - 6, top - 6] * 2, box, atol=3, err_msg=f"{index}: {box}"
            )
            compared += 1
    assert compared > 40


def test_cells_overlap_are_cut_and_crowd():
    counts, closest, cut = [], [], 0
    for index in range(12):
        _, boxes, _ = render_frame(SMEAR, "val", index)
        edges = boxes_px(boxes, SMEAR.image_hw)
        whole = (edges[:, :2] > 0.5).all(axis=1) & (edges[:, 2:] < [639.5, 479.5]).all(axis=1)
        cut += (~whole).sum()
        centres = ((edges[:, :2] + edges[:, 2:]) / 2)[whole]
        distances = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
        np.fill_diagonal(distances, np.inf)
        closest.append(distances.min(axis=1))
        counts.append(len(boxes))
    closest = np.concatenate(closest)
    # Two of 36 px at 0.6 of their sum, less what an outline may be off its centre.
    assert closest.min() > 18
    assert 0.2 < (closest < 36).mean() < 0.7
    assert cut > 12
    assert min(counts) < 45 < 70 < max(counts)
    assert 45 < np.mean(counts) < 72


def test_a_cell_out_of_the_frame_may_carry_a_platelet():
    """What lies wholly outside is not drawn, at no side."""
    stains = np.zeros((4, 96, 96), np.float32)
    rng = np.random.default_rng(0)
    for y, x in ((-40, 50), (50, -40), (140, 50), (50, 140), (140, 140)):
        smear._lay(stains, smear_cells.draw_platelet, rng, y, x)
    assert not stains.any()


def test_leukocytes_do_not_hide_parasites(monkeypatch):
    order = []
    draw = smear.draw_cell

    def record(name, *args, **kwargs):
        order.append(name)
        return draw(name, *args, **kwargs)

    monkeypatch.setattr(smear, "draw_cell", record)
    shares = (0.5, 0.0, 0.0, 0.0, 0.0, 0.5)
    render_frame(dataclasses.replace(SMEAR, class_proportions=shares), "val", 0)
    whites = order.count("leukocyte")
    assert 0 < whites < len(order)
    assert set(order[:whites]) == {"leukocyte"}


# The data set ------------------------------------------------------------------------------------


def test_labels_are_missing_in_training_only():
    complete = dataclasses.replace(SMEAR, unlabelled_healthy=0.0)
    half = dataclasses.replace(SMEAR, unlabelled_healthy=0.5)
    lost = healthy = 0
    for index in range(4):
        image, boxes, class_ids = render_frame(complete, "train", index)
        fewer_image, fewer, fewer_ids = render_frame(half, "train", index)
        np.testing.assert_array_equal(image, fewer_image)
        every = {(*box, each) for box, each in zip(boxes.tolist(), class_ids, strict=True)}
        kept = {(*box, each) for box, each in zip(fewer.tolist(), fewer_ids, strict=True)}
        assert kept <= every
        assert {box[-1] for box in every - kept} == {HEALTHY}
        lost, healthy = lost + len(every - kept), healthy + (class_ids == HEALTHY).sum()
        for split in ("val", "test"):
            for part, same in zip(
                render_frame(complete, split, index), render_frame(half, split, index), strict=True
            ):
                np.testing.assert_array_equal(part, same)
    assert 0.35 < lost / healthy < 0.65
    assert SMEAR.unlabelled_healthy == 0.03


def test_the_files_are_rgb_and_the_definition_has_the_classes(tmp_path):
    spec = default_spec((96, 128), domain="smear", train=2, val=1, test=1, cells=2)
    path = ensure_dataset(spec, cache_folder=tmp_path)
    assert path.parent.name.startswith("synthetic-smear-96x128-")
    assert YAML(typ="safe").load(path)["class_names"] == list(CLASS_NAMES)
    with Image.open(path.parent / "images" / "train" / "frame_1.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), render_frame(spec, "train", 1).image)


def test_a_new_drawing_of_smears_leaves_flow_frames_in_use(monkeypatch):
    before = SMEAR.folder_name, default_spec((96, 96)).folder_name
    newer = DOMAINS["smear"]._replace(version=DOMAINS["smear"].version + 1)
    monkeypatch.setitem(DOMAINS, "smear", newer)
    assert SMEAR.folder_name != before[0]
    assert default_spec((96, 96)).folder_name == before[1]


def test_defaults_of_the_usual_frame():
    assert SMEAR.image_counts == {"train": 240, "val": 44, "test": 160}
    assert SMEAR.cells_per_frame == 60
    # At half the side a quarter of the cells, on as many frames; larger frames are fewer.
    quarter = default_spec((240, 320), domain="smear")
    assert (quarter.cells_per_frame, quarter.train_images) == (15, 240)
    assert default_spec((960, 1280), domain="smear").train_images == 120


def test_no_distance_is_divided_by_zero():
    """The middle of a patch has no direction."""
    with np.errstate(divide="raise"):
        rho = smear_cells.outline(
            plane_around(4, (0.0, 0.0)), np.random.default_rng(0), 3.0, eccentricity=0.2, wobble=0.1
        )
    assert np.isfinite(rho).all()
