"""Boxes of other forms are named by an inspection, and by a training that reads them."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tiny_data import spoil_labels, write_dataset
from yogo_jax.data.definition import load_definition
from yogo_jax.data.labels import Labels
from yogo_jax.data.records import boxes_look_like
from yogo_jax.inspect_data import main
from yogo_jax.inspection.collected import collect, guess_findings


GUESSES = {"boxes_in_pixels", "other_box_form", "classes_from_one"}
CENTRE_IN_PIXELS, CORNERS_IN_PIXELS = "centres and sizes in pixels", "x1 y1 x2 y2 in pixels"
LOOK = {
    "corners": {"other_box_form": "all of its 72 boxes look like corners x1 y1 x2 y2"},
    "upper_left": {"other_box_form": "look like the upper left corner and the size"},
    "pixels": {"boxes_in_pixels": f"72 of 72 boxes have numbers up to 8.*{CENTRE_IN_PIXELS}"},
    "pixel_corners": {"boxes_in_pixels": CORNERS_IN_PIXELS},
    "from_one": {"classes_from_one": "36 of 72 boxes are of class 2, none is of class 0"},
    "from_one_in_pixels": {
        "boxes_in_pixels": CENTRE_IN_PIXELS,
        "classes_from_one": "expected 0 to 1",
    },
    "right": {},
    "names": {},
    "notes": {},
    "one_bad_class": {},
    "some_pixels": {},
}


@pytest.mark.parametrize(("kind", "expected"), LOOK.items(), ids=LOOK)
def test_other_forms_are_named(tmp_path, kind, expected):
    definition = write_dataset(tmp_path, images=12)
    spoil_labels(definition, kind)
    found = [each for each in collect(load_definition(definition)).findings if each.kind in GUESSES]
    assert {each.kind for each in found} == expected.keys()
    for each in found:
        assert each.place == str(tmp_path / "labels" / "all")
        assert re.search(expected[each.kind], each.message), each.message


def test_the_command_says_how_to_mend_it(tmp_path, capsys):
    definition = write_dataset(tmp_path, images=4)
    spoil_labels(definition, "corners")
    main([str(definition), "--grid-hw", "8", "12"])
    output = capsys.readouterr().out
    assert f"{tmp_path / 'labels' / 'all'}: all of its 24 boxes look like corners" in output
    assert "with `class xmin ymin xmax ymax` as the first row" in output


@pytest.mark.slow
def test_rows_of_many_bad_files_are_held_as_numbers(tmp_path):
    """Two arrays of 20 bytes a row at most; lists take more than 200."""
    paths = [str(tmp_path / f"{i}.txt") for i in range(20)]
    for path in paths:
        Path(path).write_text("0 300.5 200.25 40.125 30.0625\n" * 500)
    nothing = Labels(np.zeros(0, np.int32), np.zeros((0, 4), np.float32), ("bad",))
    tracemalloc.start()
    (found,) = guess_findings(tmp_path, paths, [nothing] * 20, ("a", "b"), None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "10,000 of 10,000 boxes have numbers up to 300.5" in found.message
    assert peak < 100 * 10_000


@pytest.mark.parametrize("seed", range(20))
def test_boxes_that_are_right_are_never_named(seed):
    """Of any size, cut at the edge or not, few or many."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(size=(200, 2)), rng.uniform(0.01, rng.uniform(0.02, 1), (200, 2))], axis=1
    )
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    cut = np.concatenate([(low + high) / 2, high - low], 1)
    low, high = low.clip(0, 1), high.clip(0, 1)
    at_edge = np.concatenate([(low + high) / 2, high - low], 1)
    for each in (boxes, cut, at_edge, at_edge[:5], at_edge[:0]):
        assert boxes_look_like(each.astype(np.float32)) is None
    whole = np.float32([[0.5, 0.5, 1, 1]] * 20)
    assert boxes_look_like(whole) is None
    corners = np.concatenate([low, high], axis=1).astype(np.float32)
    corners = corners[(corners > 0).all(axis=1)]
    assert "corners x1 y1 x2 y2" in boxes_look_like(corners)
