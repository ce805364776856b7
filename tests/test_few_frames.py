"""The benchmark of training on few frames: subsets of frames, and the table over seeds."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.few_frames import DRAWN, first_frames, format_figures
from tiny_data import write_dataset
from yogo_jax.data.definition import load_definition
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.data.splits import load_splits
from yogo_jax.errors import UserError


def splits_of(definition):
    return load_splits(load_definition(definition), min_box_area=MIN_BOX_AREA, on_bad_label="error")


@pytest.mark.parametrize("published", [True, False])
def test_the_first_frames_are_taken_and_the_other_splits_stay(tmp_path, published):
    definition = write_dataset(tmp_path / "data", images=12, published=published)
    whole = splits_of(definition)
    few = splits_of(first_frames(str(definition), 3, tmp_path / "few"))
    for split, expected in (
        ("train", whole.train.subset([0, 1, 2])),
        ("val", whole.val),
        ("test", whole.test),
    ):
        found = getattr(few, split)
        pixels = [[Path(path).resolve() for path in each.image_paths] for each in (found, expected)]
        assert pixels[0] == pixels[1]
        np.testing.assert_array_equal(found.box_counts, expected.box_counts)
        np.testing.assert_array_equal(found.boxes_cxcywh, expected.boxes_cxcywh)
        np.testing.assert_array_equal(found.class_ids, expected.class_ids)


def test_more_frames_than_there_are_is_an_error(tmp_path):
    definition = write_dataset(tmp_path / "data", images=12, published=True)
    with pytest.raises(UserError, match=r"--frames 7: .* has 6 training images"):
        first_frames(str(definition), 7, tmp_path / "few")


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("synthetic", "synthetic:train=8"),
        ("synthetic:smear,seed=3", "synthetic:smear,seed=3,train=8"),
    ],
)
def test_synthetic_frames_are_drawn_in_that_number(tmp_path, definition, expected):
    assert first_frames(definition, 8, tmp_path) == expected


def test_the_table_has_mean_and_standard_deviation():
    runs = [{"mAP50": 0.5, "mAP50_95": 0.25}, {"mAP50": 0.7, "mAP50_95": 0.25}]
    lines = format_figures({(8, DRAWN): runs, (8, "smear"): runs[:1]})
    assert lines[0] == "| training frames | start | mAP50 | mAP50-95 |"
    assert lines[2:] == [
        "| 8 | drawn weights | 0.600 ± 0.141 | 0.250 ± 0.000 |",
        "| 8 | smear | 0.500 | 0.250 |",
    ]
