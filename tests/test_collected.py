import numpy as np
import pytest

from tiny_data import write_dataset
from yogo_jax.data.definition import load_definition
from yogo_jax.data.splits import load_splits
from yogo_jax.errors import UserError
from yogo_jax.inspection.collected import collect


@pytest.mark.parametrize("published", [False, True])
def test_clean_data_is_that_of_a_training(tmp_path, published):
    definition = load_definition(write_dataset(tmp_path, images=13, published=published))
    data = collect(definition)
    splits = load_splits(definition, min_box_area=0, on_bad_label="error")
    assert data.findings == []
    assert data.unlabelled == []
    for name, images in data.splits.items():
        records = getattr(splits, name)
        assert images.records.image_paths == records.image_paths
        np.testing.assert_array_equal(images.records.boxes_cxcywh, records.boxes_cxcywh)
        np.testing.assert_array_equal(images.records.class_ids, records.class_ids)
        for i, path in enumerate(images.label_paths):
            assert (
                path.replace("labels", "images").replace(".txt", ".png") == (records.image_paths[i])
            )
            assert images.lines_of(i) == list(range(1, 7))


@pytest.mark.parametrize("broken", [[0], [11], [3, 4, 7], range(12)], ids=str)
def test_every_file_that_cannot_be_read_is_noted_and_the_others_are_read(tmp_path, broken):
    definition = load_definition(write_dataset(tmp_path, images=12))
    files = sorted((tmp_path / "labels" / "all").iterdir())
    for i in broken:
        files[i].write_bytes(b"\xff\xfe0 0.5")
    data = collect(definition)
    noted = [each for each in data.findings if each.kind == "unreadable_label_file"]
    assert [finding.place for finding in noted] == [str(files[i]) for i in broken]
    assert all(finding.message.startswith("not UTF-8 text") for finding in noted)
    read = sorted(path for images in data.splits.values() for path in images.label_paths)
    assert read == [str(file) for i, file in enumerate(files) if i not in broken]
    rest = {each.kind for each in data.findings} - {"unreadable_label_file"}
    assert rest == ({"empty_training_split"} if len(broken) == 12 else set())


def test_all_bad_rows_have_their_line(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=4))
    file = tmp_path / "labels" / "all" / "all_0001.txt"
    good = file.read_text().splitlines()
    rows = ["9 0.5 0.5 0.1 0.1", *good[:2], "", "0 0.5: 0.5 0.1 0.1", "0 0.5", *good[2:]]
    file.write_text("\n".join(rows))
    data = collect(definition)
    assert [finding.place for finding in data.findings] == [f"{file}:{i}" for i in (1, 5, 6)]
    assert [finding.message.split(";")[0] for finding in data.findings] == [
        "class is 9",
        "x_center is '0.5:'",
        "found 2 columns (0 0.5)",
    ]
    (images,) = [one for one in data.splits.values() if str(file) in one.label_paths]
    assert images.lines_of(images.label_paths.index(str(file))) == [2, 3, 7, 8, 9, 10]


def test_notes_that_cannot_be_read_stop(tmp_path):
    definition = load_definition(write_dataset(tmp_path, images=4))
    (tmp_path / "labels" / "notes.json").write_text("{")
    with pytest.raises(UserError, match=r"notes\.json: expected"):
        collect(definition)
