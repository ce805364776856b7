"""The benchmark of training on few frames: subsets of frames, and the table over seeds."""

from pathlib import Path

import numpy as np
import pytest

import yogo_jax
from benchmarks.few_frames import DRAWN, first_frames, format_figures, main
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


def test_a_definition_that_was_written_before_is_replaced(tmp_path):
    for images in (16, 12):
        definition = write_dataset(tmp_path / f"{images}", images=images, published=True)
        few = splits_of(first_frames(str(definition), 2, tmp_path / "few"))
        assert (len(few.train), len(few.val), len(few.test)) == (2, images // 4, images // 4)


def test_every_start_gets_the_same_steps(tmp_path, monkeypatch, capsys):
    calls = []

    def trained(config, workdir):
        calls.append((config, workdir.name))
        score = 0.5 if config.train.from_pretrained else 0.25
        return yogo_jax.Run(workdir, {"mAP50": score, "mAP50_95": score}, workdir)

    monkeypatch.setattr(yogo_jax, "train", trained)
    definition = write_dataset(tmp_path / "data", images=12, published=True)
    arguments = f"--definition {definition} --image-hw 64 96 --workdir {tmp_path} --start smear"
    main([*arguments.split(), "--frames", "3", "6", "--steps", "12", "--seeds", "2"])
    names = [name for _, name in calls]
    starts = ("drawn_weights", "smear")
    assert names == [f"{n}_{start}_{seed}" for n in (3, 6) for start in starts for seed in (0, 1)]
    for config, name in calls:
        assert config.train.epochs == config.train.eval_every_epochs == (6 if name[0] == "3" else 4)
        assert config.optim.warmup_epochs == pytest.approx(config.train.epochs / 20)
        assert config.train.from_pretrained == ("smear" if "smear" in name else "")
        assert str(config.seed) == name[-1]
        assert f"{name[0]}_frames" in config.data.definition
    assert "| 6 | smear | 0.500 ± 0.000 | 0.500 ± 0.000 |" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--frames", "--steps", "--seeds"])
def test_a_number_of_0_is_refused(flag, capsys):
    with pytest.raises(SystemExit):
        main(["--definition", "synthetic", "--image-hw", "64", "96", "--workdir", "w", flag, "0"])
    assert "expected a number of 1 or more, got '0'" in capsys.readouterr().err


def test_the_number_of_synthetic_frames_is_given_once(tmp_path):
    with pytest.raises(UserError, match="leave out train=, --frames says how many"):
        first_frames("synthetic:smear,train=32", 8, tmp_path)
