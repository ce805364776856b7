"""Near duplicates: what counts as one, what does not, and hashing against comparing all."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity import data_set
from yogo_jax import progress
from yogo_jax.inspection import duplicates
from yogo_jax.inspection.duplicates import (
    COARSE_CORRELATION,
    DuplicateGroup,
    candidate_pairs,
    centred,
    identical_groups,
    linked_groups,
    near_groups,
)
from yogo_jax.inspection.scan import (
    ScannedImages,
    in_threads,
    reduce_pixels,
    scan_image,
    scan_images,
)


IMAGE_HW = (120, 160)


def draw_frame(seed: int, *, cells: int = 12, dirt: bool = False, moved: int = 0) -> np.ndarray:
    """Dark discs on a bright ground, moved by so many pixels; with dirt, the same dark spots and
    vignetting on each."""
    y, x = np.mgrid[: IMAGE_HW[0], : IMAGE_HW[1]]
    pixels = np.random.default_rng(seed).normal(200, 4, IMAGE_HW)

    def stamp(rng, count, radius, depth, moved=0):
        for cx, cy in rng.uniform((0, 0), (IMAGE_HW[1], IMAGE_HW[0]), (count, 2)):
            pixels[np.hypot(y - cy - moved, x - cx - moved) < radius] -= depth

    stamp(np.random.default_rng(seed), cells, 7, 60, moved)
    if dirt:
        stamp(np.random.default_rng(999), 8, 12, 110)
        pixels -= 60 * np.hypot(y / IMAGE_HW[0] - 0.5, x / IMAGE_HW[1] - 0.5)
    return pixels.clip(0, 255).astype(np.uint8)


def save(folder: Path, frames: dict[str, np.ndarray | Image.Image]) -> list[str]:
    paths = []
    for name, frame in frames.items():
        image = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
        image.save(folder / name)
        paths.append(str(folder / name))
    return paths


def groups_of(paths: list[str]) -> list[DuplicateGroup]:
    return near_groups(scan_images(paths, workers=2), workers=2)


def as_jpeg(frame: np.ndarray) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def noisy(frame: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, frame.shape)
    return (frame + noise).clip(0, 255).astype(np.uint8)


ALTERED = {
    "jpeg": as_jpeg,
    "darker": lambda frame: (frame * 0.7 + 5).astype(np.uint8),
    "half size": lambda frame: Image.fromarray(frame).resize((80, 60)),
    "noise": noisy,
    "colour": lambda frame: Image.fromarray(frame).convert("RGB"),
}


@pytest.mark.parametrize("dirt", [False, True], ids=["clean", "dirt"])
@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_an_altered_copy_is_found_among_others(tmp_path, alter, dirt):
    frames = {f"{seed}.png": draw_frame(seed, dirt=dirt) for seed in range(10)}
    frames["copy.png"] = alter(frames["3.png"])
    (group,) = groups_of(save(tmp_path, frames))
    assert group.indices == (3, 10)
    assert 0.85 <= group.correlation <= 1 + 1e-6


@pytest.mark.parametrize("dirt", [False, True], ids=["clean", "dirt"])
@pytest.mark.parametrize(("moved", "found"), [(1, True), (8, False)])
def test_the_same_cells_a_little_later(tmp_path, moved, found, dirt):
    """They have moved, the dirt has not."""
    frames = {f"{seed}.png": draw_frame(seed, dirt=dirt) for seed in range(10)}
    frames["later.png"] = draw_frame(3, dirt=dirt, moved=moved)
    groups = groups_of(save(tmp_path, frames))
    assert [group.indices for group in groups] == ([(3, 10)] if found else [])


@pytest.mark.parametrize("cells", [1, 4, 40])
def test_frames_with_the_same_dirt_are_not_duplicates(tmp_path, cells):
    frames = {f"{seed}.png": draw_frame(seed, cells=cells, dirt=True) for seed in range(24)}
    paths = save(tmp_path, frames)
    scanned = scan_images(paths, workers=2)
    raw = scanned.coarse.astype(np.float32)
    # What is common to them would be enough to take them for the same.
    assert cells == 40 or np.triu(raw @ raw.T, 1).max() > COARSE_CORRELATION
    assert near_groups(scanned, workers=2) == []


def test_two_images_alone_are_compared_as_they_are(tmp_path):
    frame = draw_frame(0)
    same = save(tmp_path, {"a.png": frame, "b.png": noisy(frame)})
    assert [group.indices for group in groups_of(same)] == [(0, 1)]
    other = save(tmp_path, {"c.png": draw_frame(1)})
    assert groups_of([same[0], *other]) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lfm", []), ("bccd", [{"BloodImage_00037.jpg", "BloodImage_00038.jpg"}])],
    ids=["lfm", "bccd"],
)
def test_real_frames(name, expected):
    """Those of one microscope share its dirt; of BCCD two are the same cells at another focus."""
    paths = sorted(map(str, (data_set(name).parent / "images").rglob("*.*")))
    groups = groups_of(paths)
    assert [{Path(paths[i]).name for i in group.indices} for group in groups] == expected


def test_flat_and_broken_images_are_left_out(tmp_path):
    flat = np.full(IMAGE_HW, 200, np.uint8)
    paths = save(tmp_path, {"a.png": flat, "b.png": flat + 1, "c.png": draw_frame(0)})
    (tmp_path / "d.png").write_bytes(b"")
    scanned = scan_images([*paths, str(tmp_path / "d.png")], workers=2)
    assert scanned.comparable.tolist() == [False, False, True, False]
    assert list(scanned.problems) == [3]
    assert scanned.problems[3].startswith("the file is empty")
    assert near_groups(scanned, workers=1) == []
    assert identical_groups(scanned.digests) == []


def test_an_image_that_goes_away_meanwhile_is_no_duplicate(tmp_path):
    frame = draw_frame(0)
    paths = save(tmp_path, {"a.png": frame, "b.png": noisy(frame)})
    scanned = scan_images(paths, workers=1)
    Path(paths[1]).unlink()
    assert near_groups(scanned, workers=1) == []


def test_of_identical_files_the_first_stands_for_all(tmp_path):
    frame = draw_frame(0)
    frames = {"a.png": draw_frame(1), "b.png": frame, "c.png": frame, "d.png": noisy(frame)}
    scanned = scan_images(save(tmp_path, frames), workers=2)
    assert identical_groups(scanned.digests) == [DuplicateGroup((1, 2), 1.0)]
    assert [group.indices for group in near_groups(scanned, workers=2)] == [(1, 3)]


def test_a_chain_is_one_group(tmp_path):
    """Each frame is nearly the next, the first and the last are not alike."""
    frame = draw_frame(0, cells=20)
    frames = {f"{i:02}.png": np.roll(frame, i, 1) for i in range(7)}
    (group,) = groups_of(save(tmp_path, frames))
    assert group.indices == tuple(range(7))
    scanned = scan_images([str(tmp_path / "00.png"), str(tmp_path / "06.png")], workers=1)
    assert near_groups(scanned, workers=1) == []


def test_a_long_chain_of_links():
    links = [(i, i + 1, 0.9 if i == 7 else 0.95) for i in reversed(range(5000))]
    assert linked_groups(links) == [DuplicateGroup(tuple(range(5001)), 0.9)]


def pairs_by_comparing(vectors):
    products = vectors @ vectors.T
    return {(a, b) for a, b in np.argwhere(products >= COARSE_CORRELATION).tolist() if a < b}


@pytest.mark.parametrize("seed", range(3), ids=str)
def test_candidates_are_those_of_comparing_all_pairs(seed):
    """With clusters, whose vectors are alike to several degrees."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((150, 256))
    noise = rng.standard_normal((600, 256)) * rng.choice([0.05, 0.1, 0.2, 0.6], (600, 1))
    vectors = centred((centres[rng.integers(0, 150, 600)] + noise).astype(np.float32))
    expected = pairs_by_comparing(vectors)
    pairs, products = candidate_pairs(vectors)
    found = {(a, b) for a, b in pairs.tolist()}
    assert len(found) == len(pairs)
    assert found <= expected
    # Pairs at the very limit may be missed, each with a small probability.
    assert len(expected - found) <= 0.005 * len(expected)
    assert len(expected) > 200
    assert all(vectors[a] @ vectors[b] < 0.97 for a, b in expected - found)
    assert (np.diff(products) <= 0).all()
    np.testing.assert_allclose(products, [vectors[a] @ vectors[b] for a, b in pairs], rtol=1e-5)


def test_a_film_of_one_scene_is_one_group_without_all_pairs(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_NEIGHBOURS", 3)
    monkeypatch.setattr(duplicates, "MOST_PARTNERS", 5)
    rng = np.random.default_rng(0)
    scene = rng.standard_normal(256)
    vectors = (scene + 0.02 * rng.standard_normal((400, 256))).astype(np.float32)
    pairs, _ = candidate_pairs(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert len(pairs) <= 5 * 400
    assert np.bincount(pairs[:, 0]).max() == 5
    groups = linked_groups([(a, b, 1.0) for a, b in pairs.tolist()])
    assert [len(group.indices) for group in groups] == [400]


def test_the_best_partners_are_kept(monkeypatch):
    rng = np.random.default_rng(0)
    n = 9
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)] * 2
    keys = np.array([a * n + b for a, b in pairs])
    products = np.tile(rng.permutation(len(pairs) // 2), 2).astype(np.float32)
    best = {}
    for (a, b), product in zip(pairs, products, strict=True):
        best.setdefault(a, {})[b] = product
    monkeypatch.setattr(duplicates, "MOST_PARTNERS", 3)
    found_keys, found_products = duplicates._best_partners(keys, products, n)
    expected = {
        a * n + b: product
        for a, partners in best.items()
        for b, product in sorted(partners.items(), key=lambda item: -item[1])[:3]
    }
    assert dict(zip(found_keys.tolist(), found_products.tolist(), strict=True)) == expected


def test_images_that_are_alike_in_vain_are_not_read_for_ever(tmp_path, monkeypatch):
    """Sparse frames: all are candidates of all."""
    frame = draw_frame(0)
    paths = save(tmp_path, {f"{i:02}.png": np.roll(frame, i % 2, 1) for i in range(7)})
    scanned = scan_images(paths, workers=1)
    # Of identical files only the first takes part, so these are told to differ.
    images = [image._replace(digest=bytes([i])) for i, image in enumerate(scanned.images)]
    scanned = dataclasses.replace(scanned, images=images)
    read = []
    monkeypatch.setattr(duplicates, "PAIRS_AT_ONCE", 1)
    monkeypatch.setattr(
        duplicates, "fine_correlation", lambda first, *_, **__: read.append(first) or 0.5
    )
    assert near_groups(scanned, workers=1) == []
    assert 6 <= len(read) <= 4 * duplicates.MOST_FAILURES


@pytest.mark.parametrize("n", [0, 1])
def test_no_pairs_of_few(n):
    pairs, products = candidate_pairs(np.ones((n, 256), np.float32) / 16)
    assert pairs.shape == (0, 2)
    assert products.shape == (0,)


def test_hashes_of_correlated_vectors_differ_in_the_angle():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 400, 256)).astype(np.float32)
    for correlation in (0.0, 0.5, 0.9, 0.99):
        mixed = correlation * a + np.float32(np.sqrt(1 - correlation**2)) * b
        different = np.bitwise_count(duplicates.hash_bands(a) ^ duplicates.hash_bands(mixed))
        share = different.sum() / (len(a) * 512)
        assert share == pytest.approx(np.arccos(correlation) / np.pi, abs=0.01)


def test_scan_image_an_image(tmp_path):
    frame = draw_frame(0)
    (path,) = save(tmp_path, {"a.jpg": Image.fromarray(frame).convert("RGB")})
    scan = scan_image(path)
    assert scan.problem is None
    assert scan.image_hw == IMAGE_HW
    assert scan.stored_as == "JPEG RGB"
    assert scan.fine.shape == (64 * 64,)
    assert scan.fine.mean() == pytest.approx(0, abs=1e-6)
    assert np.linalg.norm(scan.fine) == pytest.approx(1, abs=1e-5)


def test_reduced_pixels_are_means_of_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (128, 192), np.uint8)
    means = pixels.reshape(64, 2, 64, 3).mean((1, 3)).reshape(-1)
    expected = (means - means.mean()) / np.linalg.norm(means - means.mean())
    np.testing.assert_allclose(reduce_pixels(Image.fromarray(pixels)), expected, atol=1e-6)


def test_scan_keeps_the_order_and_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    paths = save(tmp_path, {f"{i}.png": draw_frame(i)[: 60 + i] for i in range(9)})
    scanned = scan_images(paths, workers=3)
    assert isinstance(scanned, ScannedImages)
    assert scanned.paths == tuple(paths)
    assert [each.image_hw for each in scanned.images] == [(60 + i, IMAGE_HW[1]) for i in range(9)]
    assert "9 of 9 images" in capsys.readouterr().err
    assert scan_images([], workers=2).coarse.shape == (0, 256)


def test_threads_give_results_in_order_and_pass_errors_on():
    assert [*in_threads(lambda x: x * x, range(100), 3)] == [x * x for x in range(100)]
    with pytest.raises(ZeroDivisionError):
        [*in_threads(lambda x: 1 / x, [1, 0], 2)]
