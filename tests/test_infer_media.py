"""`yogo_jax.infer` on files that hold less, or other pixels, than they seem to."""

import json

import numpy as np
import pytest
from PIL import Image

from drawn_models import make_spec, write_random_checkpoint
from inferences import (
    THRESHOLD,
    detections,
    export_unverified,
    read_rows,
    refused_infer,
    run_infer,
    write_frames,
)
from test_frame_sources import save_video
from yogo_jax.checkpoint.store import read_metadata, rewrite_metadata
from yogo_jax.inference.models import ModelOptions, load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "checkpoint")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data") / "run", count=3)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_cut_video_is_counted_and_named_and_strict_stops(checkpoint, frames, tmp_path, capsys):
    path = tmp_path / "run.mkv"
    pixels = np.stack([np.asarray(Image.open(each)) for each in sorted(frames.iterdir())] * 3)
    save_video(path, pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    given = (checkpoint, "--video", path, "--output")
    run_infer(*given, tmp_path / "a", "--count")
    said = capsys.readouterr().out
    summary = summary_of(tmp_path / "a")
    assert summary["skipped"] == 1
    assert 4 <= summary["frames"] <= 6
    (row,) = read_rows(tmp_path / "a" / "skipped.csv")
    assert "the file declares 0.90 s" in row["reason"]
    assert row["reason"] in said
    message = refused_infer(capsys, *given, tmp_path / "b", "--count", "--strict")
    assert "the file declares 0.90 s" in message
    # The frames before it are kept, for whoever takes what is there.
    run_infer(*given, tmp_path / "b", "--count", "--resume")
    assert summary_of(tmp_path / "b")["skipped"] == 1


def sideways(frames, folder):
    """The same pictures, stored as a camera that was held sideways stores them."""
    folder.mkdir()
    tag = Image.Exif()
    tag[0x0112] = 6
    for path in sorted(frames.iterdir()):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(folder / path.name, exif=tag)
    return folder


def test_images_are_turned_unless_the_flag_or_the_model_says_no(
    checkpoint, frames, tmp_path, capsys
):
    stored = sideways(frames, tmp_path / "stored")

    def found(folder, name, *flags):
        given = ("--csv", "--obj-thresh", THRESHOLD, *flags)
        run_infer(checkpoint, "--images", folder, "--output", tmp_path / name, *given)
        return detections(tmp_path / name)

    upright = found(frames, "a")
    assert len(upright) > 5
    assert "orientation" not in capsys.readouterr().out
    np.testing.assert_array_equal(found(stored, "b"), upright)
    said = capsys.readouterr().out
    assert "3 images have an orientation (EXIF or TIFF tag), by which the pixels are turned" in said
    assert summary_of(tmp_path / "b")["settings"]["orientation"] == "3 files turned"
    squeezed = found(stored, "c", "--no-apply-orientation", "--crop-height", "1")
    assert len(squeezed) != len(upright) or (squeezed != upright).any()
    assert "that is not applied" in capsys.readouterr().out


def test_the_record_of_a_checkpoint_goes_into_what_is_exported(checkpoint, tmp_path):
    own = write_random_checkpoint(tmp_path / "own")
    metadata = read_metadata(own)
    values = {**make_spec("quarter_filters").to_dict(), "apply_orientation": False}
    rewrite_metadata(own, type(metadata).from_dict({**metadata.to_dict(), "model": values}, own))
    assert load_model(checkpoint, ModelOptions()).serving.apply_orientation
    export_unverified(own, tmp_path / "exported")
    for path in (own, *(tmp_path / "exported" / name for name in ("model.xml", "model.onnx"))):
        assert not load_model(path, ModelOptions()).serving.apply_orientation


def test_the_flag_is_of_images(checkpoint, tmp_path, capsys):
    message = refused_infer(
        capsys, checkpoint, "--video", "x.mkv", "--output", tmp_path, "--no-apply-orientation"
    )
    assert "--apply-orientation is of --images" in message
