"""The instrument's network finds the same in real frames as checkpoint, ONNX and IR."""

import sys
from pathlib import Path

import numpy as np
import pytest

from inferences import detections, export_unverified, largest_differences, run_infer
from parity import REMOSCOPE, data_set, load
from runs import run_command
from yogo_jax.detector.detections import Detections, Thresholds
from yogo_jax.detector.postprocess import detections_of
from yogo_jax.inference.journal import FrameRecord
from yogo_jax.inference.writers import scope_array


# Of FP32 by three libraries; boxes in px of 772x1032, all else as it is.
PX, REST = 2e-3, 2e-5
SEVEN = "healthy,ring,trophozoite,schizont,gametocyte,wbc,misc"


@pytest.fixture(scope="module")
def exported(elated_smoke, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_unverified(elated_smoke, folder)
    return folder


def found_by(model, images, output) -> np.ndarray:
    run_infer(model, "--images", images, "--output", output, "--csv")
    return detections(output)


@pytest.mark.slow
@pytest.mark.optimized
def test_three_engines_find_the_same(elated_smoke, exported, tmp_path):
    images = [REMOSCOPE / "remoscope_frame.png"]
    images += sorted((data_set("lfm").parent / "images" / "val").iterdir())
    folder = tmp_path / "frames"
    folder.mkdir()
    for image in images:
        (folder / image.name).symlink_to(image)
    ours = found_by(elated_smoke, folder, tmp_path / "jax")
    assert len(np.unique(ours[:, 0])) == 3
    assert len(ours) > 80
    for name in ("model.onnx", "model.xml"):
        px, rest = largest_differences(ours, found_by(exported / name, folder, tmp_path / name))
        print(f"{name}: {len(ours)} boxes, {px:.1e} px, {rest:.1e} elsewhere")
        assert px <= PX
        assert rest <= REST


def test_the_instruments_own_file_sees_the_middle_of_the_frame(elated_smoke, tmp_path):
    network = REMOSCOPE / "elated-smoke-4492.onnx"
    frame = REMOSCOPE / "remoscope_frame.png"
    told = ["--class-names", SEVEN, "--no-normalize-images", "--crop-height", 0.25]
    run_infer(network, "--images", frame, "--output", tmp_path / "a", "--csv", "--save-npy", *told)
    found = detections(tmp_path / "a")
    recorded = np.load(REMOSCOPE / "elated-smoke-4492_reference.npz")["boxes_290"]
    assert len(found) == len(recorded)
    corners = (found[:, 1:5] - np.array([0, 290, 0, 290])) / np.array([1032, 193, 1032, 193])
    distance = np.abs(corners[:, None] - recorded[None, :, :4]).max(-1)
    assert distance.min(1).max() < 1e-5
    np.testing.assert_array_equal(found[:, 6], recorded[distance.argmin(1), 5:].argmax(-1))
    array = np.load(tmp_path / "a" / "remoscope_frame.npy")
    np.testing.assert_allclose(array[1:5].T / [1032, 193, 1032, 193], corners, atol=1e-6)


@pytest.mark.parametrize("image", range(6))
def test_recorded_predictions_as_the_instruments_array(image, tmp_path):
    recorded = load("format_preds.npz")
    outputs = recorded["raw"][image].astype(np.float32)
    rows = recorded[f"xyxy_{image}"]
    classes = outputs.shape[0] - 5
    names = tuple(f"class {i}" for i in range(classes))
    found = detections_of(outputs, Thresholds(), class_names=names, image_hw=(96, 128))
    record = FrameRecord(image, "x", None, found)
    with scope_array(tmp_path / "x.npy", len(rows), classes, (96, 128)) as add:
        add(record)
    array = np.load(tmp_path / "x.npy")
    probs = rows[:, 5:]
    expected = np.column_stack(
        [
            np.full(len(rows), image),
            rows[:, :4] * np.array([128, 96, 128, 96]),
            rows[:, 4],
            probs.argmax(1),
            probs.max(1),
            probs,
        ]
    )
    np.testing.assert_allclose(array.T, expected, atol=2e-3)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_as_many_detections_as_there_are(count):
    """Nothing is cut off, whatever the number of candidates; a NaN of another cell is nothing."""
    outputs = np.zeros((6, 10, 20), np.float32)
    rows, columns = np.divmod(np.arange(200), 20)
    outputs[0], outputs[1] = (
        ((columns + 0.5) / 20).reshape(10, 20),
        ((rows + 0.5) / 10).reshape(10, 20),
    )
    outputs[2:4] = 0.01
    outputs[5] = 1
    outputs.reshape(6, -1)[4, :count] = np.linspace(0.9, 0.6, count)
    outputs.reshape(6, -1)[2, count:] = np.nan
    found = detections_of(outputs, Thresholds(), class_names=("a",), image_hw=(96, 128))
    assert isinstance(found, Detections)
    assert len(found.objectness) == count
    np.testing.assert_allclose(found.objectness, np.linspace(0.9, 0.6, count), rtol=1e-6)


@pytest.mark.slow
def test_one_command_for_someone_with_frames_and_the_ir(exported, tmp_path):
    """The first example of --help, with the folders that this person has."""
    help_text = run_command([sys.executable, "-m", "yogo_jax.infer", "--help"]).stdout
    (line,) = [
        each for each in help_text.splitlines() if "exported/model.xml --images frames/" in each
    ]
    (tmp_path / "frames").symlink_to(data_set("lfm").parent / "images" / "val")
    (tmp_path / "exported").symlink_to(exported)
    words = line.split()
    assert words[0] == "python"
    done = run_command([sys.executable, *words[1:]], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "healthy" in done.stdout
    assert (tmp_path / "found" / "counts.csv").exists()
    assert len(list((tmp_path / "found" / "pictures").glob("*.png"))) == 2
