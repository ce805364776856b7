"""Exported models in the runtimes that know the stick, loaded as the instrument loads them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bridge import to_openvino
from oracles.make_environments import RELEASES, is_made, python_of
from parity import REMOSCOPE
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.postprocess import select_cells


ORACLES = Path(__file__).parent / "oracles"
STRIPS = (0, 193, 290, 386, 579)


def oracle(release: str) -> str:
    """The interpreter with that OpenVINO; "here" is the one that runs the tests."""
    if release == "here":
        return sys.executable
    if not is_made(release):
        pytest.skip(
            f"openvino {release} is not here (it needs Python {RELEASES[release]}): "
            "python tests/oracles/make_environments.py"
        )
    return str(python_of(release))


def run_oracle(release: str, script: str, *arguments: object) -> str:
    command = [oracle(release), str(ORACLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def exported(elated_smoke, tmp_path_factory) -> Path:
    """The instrument's network, read in and exported for its strip of the frame."""
    folder = tmp_path_factory.mktemp("exported")
    to_openvino.main([str(elated_smoke), "--output", str(folder), "--crop-height", "193"])
    return folder


@pytest.fixture(scope="module")
def strips() -> np.ndarray:
    from PIL import Image

    frame = np.asarray(Image.open(REMOSCOPE / "remoscope_frame.png").convert("L"))
    return np.stack([frame[row : row + 193, :, None] for row in STRIPS])


def scope_array(outputs: np.ndarray, image_id: int, image_hw: tuple[int, int]) -> np.ndarray:
    """The instrument's 15xN array of one output, by our own detections."""
    rows, columns = image_hw
    boxes, objectness, class_probs, _ = select_cells(outputs.astype(np.float32), Thresholds())
    corners = boxes * np.array([columns, rows, columns, rows])
    best = class_probs.argmax(-1)
    parts = [np.full(len(boxes), image_id), *corners.T, objectness, best, class_probs.max(-1)]
    return np.stack([*parts, *class_probs.T]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("release", ["here", "2022.3.2", "2022.1.0"])
def test_the_instrument_finds_the_recorded_cells(release, exported, strips, tmp_path):
    np.save(tmp_path / "frames.npy", strips)
    run_oracle(
        release,
        "instrument.py",
        exported / "model.xml",
        tmp_path / "frames.npy",
        tmp_path / "outputs.npy",
    )
    outputs = np.load(tmp_path / "outputs.npy")
    assert outputs.dtype == np.float16
    assert outputs.shape == (5, 12, 25, 129)
    recorded = np.load(REMOSCOPE / "elated-smoke-4492_reference.npz")
    for index, row in enumerate(STRIPS):
        array = scope_array(outputs[index], index, (193, 1032))
        boxes = recorded[f"boxes_{row}"]
        assert array.shape == (15, len(boxes))
        assert (array[0] == index).all()
        corners = array[1:5].T / np.array([1032, 193, 1032, 193])
        distance = np.abs(corners[:, None] - boxes[None, :, :4]).max(-1)
        matched = distance.argmin(1)
        assert sorted(matched) == list(range(len(boxes)))
        # f16 has steps of 1/2048 below 1, and kernels of 11 bits.
        assert distance.min(1).max(initial=0) <= 3e-3
        np.testing.assert_array_equal(array[6], boxes[matched, 5:].argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["elated smoke", "base_model", "silu_model", "flow"])
def test_the_sticks_plugin_takes_every_layer(model, request, tmp_path):
    if model == "elated smoke":
        folder = request.getfixturevalue("exported")
    else:
        from drawn_models import write_random_checkpoint

        # Drawn weights of a network as deep as that of `strong.py` leave the range of FP16.
        is_ready = model == "flow"
        checkpoint = model if is_ready else write_random_checkpoint(tmp_path / "checkpoint", model)
        to_openvino.main([str(checkpoint), "--output", str(tmp_path)])
        folder = tmp_path
    answer = json.loads(run_oracle("2021.4.2", "query_myriad.py", folder / "model.onnx"))
    assert answer["layers"] > 20
    assert answer["refused"] == {}


@pytest.mark.slow
def test_the_whole_frame_shows_the_cells_of_its_strips(elated_smoke, tmp_path):
    """The picture is left in the test's folder, to be looked at."""
    from PIL import Image

    from bridge.runtime import OpenVinoModel
    from yogo_jax.drawing import draw_boxes
    from yogo_jax.synthetic.cells import CLASS_NAMES

    to_openvino.main([str(elated_smoke), "--output", str(tmp_path)])
    frame = np.asarray(Image.open(REMOSCOPE / "remoscope_frame.png").convert("L"))[..., None]
    outputs = OpenVinoModel(tmp_path / "model.xml").run(frame[None])
    assert outputs.shape == (1, 12, 97, 129)
    boxes, objectness, class_probs, _ = select_cells(outputs[0], Thresholds())
    picture = draw_boxes(frame, boxes, class_probs.argmax(-1), CLASS_NAMES, scores=objectness)
    picture.save(tmp_path / "whole_frame.png")

    # Cells that lie whole in a strip were found there; but for some that overlap, so they are here.
    recorded = np.load(REMOSCOPE / "elated-smoke-4492_reference.npz")
    distances: list[float] = []
    for row in STRIPS:
        strip = recorded[f"boxes_{row}"][:, :4] * np.array([1, 193, 1, 193])
        whole = strip[(strip[:, 1] > 16) & (strip[:, 3] < 193 - 16)]
        expected = (whole + np.array([0, row, 0, row])) / np.array([1, 772, 1, 772])
        distances += np.abs(boxes[:, None] - expected[None]).max(-1).min(0).tolist()
    assert len(distances) == 34
    assert np.mean(np.array(distances) < 0.01) > 0.95
    assert len(boxes) == 40
