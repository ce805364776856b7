import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tiny_data import write_dataset
from yogo_jax.data.definition import PathPair, load_definition
from yogo_jax.data.records import RecordReport, Records, read_records, without_small_boxes
from yogo_jax.errors import UserError


SHARED = Path(__file__).parents[2] / "shared" / "data"
NAMES = ("healthy", "ring")
ROW = "0 0.5 0.5 0.25 0.5\n"


def write_set(folder: Path, labels: dict[str, str], images: list[str]) -> PathPair:
    """Label files with their content, and empty files for images: records do not read these."""
    pair = PathPair(folder / "images", folder / "labels")
    for path in (pair.image_path, pair.label_path):
        path.mkdir(parents=True)
    for name, content in labels.items():
        (pair.label_path / name).write_text(content)
    for name in images:
        (pair.image_path / name).touch()
    return pair


def load(*pairs, class_names=NAMES, min_box_area=0.0, on_bad_label="error"):
    everything, report = read_records(pairs, class_names, on_bad_label=on_bad_label)
    records, left_out = without_small_boxes(everything, min_box_area)
    return records, report + left_out


def error_of(*pairs, **options) -> str:
    with pytest.raises(UserError) as error:
        load(*pairs, **options)
    return str(error.value)


@pytest.fixture
def small(tmp_path):
    """Three images with 2, 0 and 1 boxes."""
    labels = {"a.txt": ROW + "1 0.1 0.2 0.3 0.4\n", "b.txt": "", "c.CSV": "1,0.6,0.7,0.8,0.9\n"}
    return write_set(tmp_path / "small", labels, ["a.png", "b.JPG", "c.tiff"])


def test_load(small):
    records, report = load(small)
    assert len(records) == 3
    assert records.class_names == NAMES
    assert records.image_paths == tuple(
        str(small.image_path / name) for name in ("a.png", "b.JPG", "c.tiff")
    )
    np.testing.assert_array_equal(records.offsets, [0, 2, 2, 3])
    np.testing.assert_array_equal(records.box_counts, [2, 0, 1])
    np.testing.assert_array_equal(records.class_ids, [0, 1, 1])
    boxes, class_ids = records.labels_of(0)
    np.testing.assert_array_equal(boxes, np.float32([[0.5, 0.5, 0.25, 0.5], [0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_array_equal(class_ids, [0, 1])
    assert records.labels_of(1)[0].shape == (0, 4)
    assert report == RecordReport(images=3, empty_frames=1, boxes=3)


def test_order_is_that_of_pairs_then_names(tmp_path):
    stems = ["b", "a10", "a2", "B", "a.x"]
    pairs = [
        write_set(tmp_path / name, {f"{s}.txt": ROW for s in stems}, [f"{s}.png" for s in stems])
        for name in ("z", "y")
    ]
    records, _ = load(*pairs)
    names = ["B.png", "a.x.png", "a10.png", "a2.png", "b.png"]
    expected = [str(pair.image_path / name) for pair in pairs for name in names]
    assert list(records.image_paths) == expected


def test_no_pairs():
    records, report = load()
    assert len(records) == 0
    assert records.boxes_cxcywh.shape == (0, 4)
    assert report == RecordReport()
    assert len(records.subset([])) == 0


def test_what_is_not_used(tmp_path):
    pair = write_set(
        tmp_path,
        {"a.txt": ROW, ".hidden.txt": "x", "._a.txt": "x", "notes.json": "{", "a.xml": "x"},
        ["a.png", "b.png", "c.jpg", ".d.png", "a.txt", "README.md"],
    )
    (pair.image_path / "folder.png").mkdir()
    (pair.label_path / "folder.txt").mkdir()
    records, report = load(pair)
    assert [os.path.basename(path) for path in records.image_paths] == ["a.png"]
    assert report == RecordReport(images=1, unlabelled_images=2, boxes=1)


def test_notes_json_is_beside_the_label_folder(tmp_path):
    pair = write_set(tmp_path, {"a.txt": "5 0.5 0.5 0.1 0.1\n"}, ["a.png"])
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 5, "name": "ring"}]}')
    other = write_set(tmp_path / "other", {"a.txt": "0 0.5 0.5 0.1 0.1\n"}, ["a.png"])
    np.testing.assert_array_equal(load(pair, other)[0].class_ids, [1, 0])


AREAS = {
    "below": ("0.1 0.0999", 0.01, 0),
    "met": ("0.1 0.1", 0.01, 1),
    "met_though_the_product_is_rounded_down": ("0.7 0.7", 0.49, 1),
    "met_in_pixels": (f"{20 / 1032!r} {10 / 772!r}", 200 / (772 * 1032), 1),
    "no_limit": ("1e-9 1e-9", 0.0, 1),
}


@pytest.mark.parametrize(("size", "min_box_area", "kept"), AREAS.values(), ids=AREAS)
def test_small_boxes(tmp_path, size, min_box_area, kept):
    content = f"0 0.5 0.5 1 1\n1 0.5 0.5 {size}\n0 0.2 0.2 1 1\n"
    pair = write_set(tmp_path, {"a.txt": content, "b.txt": "0 0.5 0.5 1 1"}, ["a.png", "b.png"])
    records, report = load(pair, min_box_area=min_box_area)
    np.testing.assert_array_equal(records.class_ids, [0, 1, 0, 0] if kept else [0, 0, 0])
    np.testing.assert_array_equal(records.offsets, [0, 2 + kept, 3 + kept])
    assert (report.small_boxes, report.boxes) == (1 - kept, 3 + kept)


def test_frame_of_small_boxes_alone_is_empty(tmp_path):
    pair = write_set(tmp_path, {"a.txt": "0 0.5 0.5 0.01 0.01\n"}, ["a.png"])
    records, report = load(pair, min_box_area=0.01)
    assert len(records) == 1
    assert report == RecordReport(images=1, empty_frames=1, small_boxes=1)


def test_bad_rows(tmp_path):
    content = ROW + "0 2 2 2 2\n" * 4
    pair = write_set(tmp_path, {"a.txt": content, "b.txt": content}, ["a.png", "b.png"])
    assert "a.txt:2: x_center is 2;" in error_of(pair)
    records, report = load(pair, on_bad_label="skip")
    np.testing.assert_array_equal(records.offsets, [0, 1, 2])
    assert report.bad_rows == 8
    assert [message.split(": ")[0].split("/")[-1] for message in report.messages] == [
        *(f"a.txt:{line}" for line in (2, 3, 4, 5)),
        "b.txt:2",
    ]
    lines = report.lines()
    assert lines[0] == "2 images with 2 boxes, 0 empty frames"
    assert lines[1] == "8 bad rows of label files skipped:"
    assert lines[-1].strip() == "and 3 more"
    assert len(lines) == 8


def test_report_sums_and_lines():
    one = RecordReport(images=1, unlabelled_images=2, boxes=3, bad_rows=4, messages=list("abcd"))
    two = RecordReport(images=10, small_boxes=5, empty_frames=6, bad_rows=2, messages=list("ef"))
    both = one + two
    assert both == RecordReport(11, 2, 6, 3, 5, 6, list("abcde"))
    assert both.lines() == [
        "11 images with 3 boxes, 6 empty frames",
        "2 images without a label file not used",
        "5 boxes smaller than data.min_box_area left out",
        "6 bad rows of label files skipped:",
        *(f"  {letter}" for letter in "abcde"),
        "  and 1 more",
    ]
    assert len(RecordReport(images=1).lines()) == 1


# The same text three times: its two accents in one letter, one apart, both apart.
FORMS = [chr(0x1ED1), chr(0xF4) + chr(0x301), "o" + chr(0x302) + chr(0x301)]
A, B, C = FORMS
assert {unicodedata.normalize("NFC", form) for form in FORMS} == {A}


@pytest.mark.parametrize(
    ("images", "labels"),
    [(A, C), (C, A), (B, A), (C, B), (A, A), (C, C)],
    ids=["nfd_label", "nfd_image", "mixed_image", "mixed_label", "both_nfc", "both_nfd"],
)
def test_names_of_another_unicode_form_go_together(tmp_path, images, labels):
    pair = write_set(
        tmp_path,
        {f"{labels}.txt": ROW, "x.txt": f"{ROW}{ROW}", f"e{chr(0x301)}.txt": ""},
        [f"{images}.png", "x.png", f"{chr(0xE9)}.png", f"{chr(0xE8)}.png"],
    )
    records, report = load(pair)
    counts = {
        os.path.basename(path): int(n)
        for path, n in zip(records.image_paths, records.box_counts, strict=True)
    }
    assert counts == {f"{images}.png": 1, "x.png": 2, f"{chr(0xE9)}.png": 0}
    assert report.unlabelled_images == 1


@pytest.mark.parametrize(
    ("images", "labels", "folder", "names"),
    [
        ([A, C], [B], "images", [A, C]),
        ([A], [B, C], "labels", [B, C]),
        ([A], [A, C], "labels", [A, C]),
        ([C], [A, B, C], "labels", [A, B, C]),
        ([A, B], [A, B, C], "labels", [B, C]),
    ],
    ids=["two_images", "two_labels", "one_label_exact", "three_labels", "one_label_more"],
)
def test_names_that_are_ambiguous_but_for_unicode_form_are_refused(
    tmp_path, images, labels, folder, names
):
    pair = write_set(
        tmp_path, {f"{form}.txt": ROW for form in labels}, [f"{form}.png" for form in images]
    )
    message = error_of(pair)
    assert message.startswith(f"{tmp_path / folder}: ")
    assert "have the same name but for the suffix or the form of Unicode" in message
    for form in FORMS:
        assert (ascii(form)[1:-1] in message) == (form in names)


def test_a_set_whose_images_came_from_another_system():
    definition = load_definition(SHARED.parent / "cases" / "nfd-names" / "d.yml")
    records, report = load(*definition.dataset_paths, class_names=definition.class_names)
    assert (len(records), report.unlabelled_images) == (4, 0)


def test_an_image_beside_one_that_has_its_label_is_unlabelled(tmp_path):
    records, report = load(write_set(tmp_path, {f"{C}.txt": ROW}, [f"{A}.png", f"{C}.png"]))
    assert [os.path.basename(path) for path in records.image_paths] == [f"{C}.png"]
    assert report.unlabelled_images == 1


REFUSED = {
    "label_without_image": (
        ["a.txt", "b.txt"],
        ["a.png"],
        "labels: 1 of 2 label files have no image in ",
        "images: b.txt; expected an image of the same name; add the images, or move these files",
    ),
    "many_labels_without_image": (
        [f"{i}.txt" for i in range(7)],
        ["6.png"],
        "labels: 6 of 7 label files",
        ": 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...; expected",
    ),
    "classes_txt": (["a.txt", "classes.txt"], ["a.png"], "no image", "(a list of names such as"),
    "two_images": (
        ["a.txt"],
        ["a.png", "a.jpg"],
        "images: a.jpg and a.png have the same name but for the suffix",
        "remove the other",
    ),
    "two_labels": (
        ["a.txt", "a.csv"],
        ["a.png"],
        "labels: a.csv and a.txt have the same",
        "remove",
    ),
    "no_labels": (["a.json"], ["a.png"], "labels: holds no label file; expected .txt or .csv", ""),
}


@pytest.mark.parametrize(("labels", "images", "start", "rest"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, labels, images, start, rest):
    message = error_of(write_set(tmp_path, dict.fromkeys(labels, ROW), images))
    assert message.startswith(str(tmp_path))
    assert start in message
    assert rest in message


def test_two_unlabelled_images_of_one_name_are_fine(tmp_path):
    pair = write_set(tmp_path, {"a.txt": ROW}, ["a.png", "b.png", "b.jpg"])
    assert load(pair)[1].unlabelled_images == 2


def test_broken_links_are_not_passed_over(tmp_path):
    pair = write_set(tmp_path, {"a.txt": ROW}, ["a.png", "b.png"])
    (pair.label_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert "b.txt: No such file or directory" in error_of(pair)


def test_missing_folder(tmp_path):
    assert "No such file or directory; expected a readable folder" in error_of(
        PathPair(tmp_path / "no", tmp_path / "no")
    )


def random_records(rng, n) -> Records:
    counts = rng.integers(0, 4, n)
    total = counts.sum()
    return Records(
        NAMES,
        tuple(f"{i}.png" for i in range(n)),
        np.concatenate([[0], np.cumsum(counts)]),
        rng.random((total, 4)).astype(np.float32),
        rng.integers(0, 2, total).astype(np.int32),
    )


@pytest.mark.parametrize("seed", range(5), ids=str)
def test_subset_is_that_of_a_list(seed):
    rng = np.random.default_rng(seed)
    records = random_records(rng, 9)
    indices = rng.integers(0, 9, rng.integers(0, 12))
    subset = records.subset(indices)
    assert len(subset) == len(indices)
    assert subset.offsets[0] == 0
    for i, index in enumerate(indices):
        assert subset.image_paths[i] == records.image_paths[index]
        for ours, expected in zip(subset.labels_of(i), records.labels_of(index), strict=True):
            np.testing.assert_array_equal(ours, expected)


def fingerprint(folder: Path) -> str:
    return load(*load_definition(folder / "definition.yml").dataset_paths)[0].fingerprint()


def test_fingerprint(tmp_path):
    """It follows content, not place or time."""
    write_dataset(tmp_path / "a", images=3)
    first = fingerprint(tmp_path / "a")
    assert len(bytes.fromhex(first)) == 32
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for file in (tmp_path / "b" / "images" / "all").iterdir():
        os.utime(file, (0, 0))
    assert fingerprint(tmp_path / "b") == first


def longer_image(folder):
    path = sorted((folder / "images" / "all").iterdir())[1]
    path.write_bytes(path.read_bytes() + b"\0")


def other_name(folder):
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        path = folder / kind / "all" / f"all_0002.{suffix}"
        path.rename(path.with_stem("zzz"))


def edit_label(old, new):
    def edit(folder):
        path = folder / "labels" / "all" / "all_0001.txt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def box_moved_to_next_image(folder):
    paths = [folder / "labels" / "all" / f"all_000{i}.txt" for i in (0, 1)]
    *rows, last = paths[0].read_text().splitlines(keepends=True)
    paths[0].write_text("".join(rows))
    paths[1].write_text(last + paths[1].read_text())


CHANGES = {
    "image_size": longer_image,
    "image_name": other_name,
    "class": edit_label("0 ", "1 "),
    "box": edit_label("0.", "0.0"),
    "box_of_another_image": box_moved_to_next_image,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fingerprint_changes(tmp_path, change):
    write_dataset(tmp_path, images=3)
    first = fingerprint(tmp_path)
    change(tmp_path)
    assert fingerprint(tmp_path) != first


def test_fingerprint_has_the_class_names(tmp_path):
    write_dataset(tmp_path, images=2)
    pairs = load_definition(tmp_path / "definition.yml").dataset_paths
    one, other = (
        load(*pairs, class_names=names)[0].fingerprint()
        for names in (("healthy", "ring"), ("ring", "healthy"))
    )
    assert one != other


def test_fingerprint_of_a_lost_image(tmp_path):
    write_dataset(tmp_path, images=2)
    records, _ = load(*load_definition(tmp_path / "definition.yml").dataset_paths)
    os.remove(records.image_paths[1])
    with pytest.raises(UserError, match=r"all_0001\.png: No such file"):
        records.fingerprint()


@pytest.mark.parametrize(
    ("name", "images", "by_class"),
    [
        ("bccd", 205 + 87 + 72, (2381 + 967 + 805, 214 + 87 + 71, 209 + 83 + 69)),
        ("lfm", 13, (173, 44, 35, 0, 4, 0, 79)),
    ],
    ids=["bccd", "lfm"],
)
def test_real_data_has_the_published_counts(name, images, by_class):
    path = SHARED / name / "dataset.yml"
    if not path.exists():
        pytest.skip(f"no {path}")
    definition = load_definition(path)
    records, report = load(*definition.dataset_paths, class_names=definition.class_names)
    assert report == RecordReport(images=images, boxes=sum(by_class))
    np.testing.assert_array_equal(np.bincount(records.class_ids, minlength=len(by_class)), by_class)
