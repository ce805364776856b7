"""The command `yogo_jax.infer` in this process, small models for it, and what it leaves."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bridge import to_openvino
from bridge.serving import make_serving
from bridge.to_ir import convert_to_ir, save_ir
from bridge.to_onnx import export_onnx
from drawn_models import write_random_checkpoint
from yogo_jax import infer
from yogo_jax.checkpoint.store import read_metadata, restore_variables
from yogo_jax.detector.spec import served_spec
from yogo_jax.synthetic.flow import CLASS_PROPORTIONS, draw_frame


# Of the random networks some cells, and none of them close to it, have an objectness above this.
THRESHOLD = 0.492
CLASS_NAMES = ("healthy", "ring", "misc")


def run_infer(*arguments: object) -> None:
    infer.main([str(argument) for argument in arguments])


def refused_infer(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of the command when it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_infer(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def export_unverified(checkpoint: Path, folder: Path, crop_height: float | None = None) -> None:
    """As the command exports, in FP32; without the verification, which takes most of its time."""
    metadata = read_metadata(checkpoint)
    variables = restore_variables(checkpoint, metadata.model)
    spec = served_spec(metadata.model, crop_height=crop_height)
    said = to_openvino._describe(metadata, spec, checkpoint)
    model = export_onnx(make_serving(spec, variables), spec, metadata=said)
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    save_ir(convert_to_ir(model, half_precision=False, metadata=said), folder / "model.xml")


def write_models(folder: Path) -> dict[str, Path]:
    """A checkpoint of 96x128 px, and what is exported of it: whole, and its middle half."""
    checkpoint = write_random_checkpoint(folder / "checkpoint")
    export_unverified(checkpoint, folder / "whole")
    export_unverified(checkpoint, folder / "half", crop_height=0.5)
    return {
        "checkpoint": checkpoint,
        "onnx": folder / "whole" / "model.onnx",
        "ir": folder / "whole" / "model.xml",
        "half": folder / "half" / "model.xml",
        "half_onnx": folder / "half" / "model.onnx",
    }


def write_frames(folder: Path, count: int = 6, image_hw: tuple[int, int] = (96, 128)) -> Path:
    """PNG files of drawn frames."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        frame = draw_frame(
            rng, image_hw, cells_per_frame=6, class_proportions=CLASS_PROPORTIONS
        ).image
        Image.fromarray(frame).save(folder / f"f{i}.png")
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def detections(folder: Path) -> np.ndarray:
    """Rows of detections.csv as numbers: image, corners in px, objectness, class, all probs."""
    rows = read_rows(folder / "detections.csv")
    left_out = {"image", "class"}
    return np.asarray(
        [[float(value) for key, value in row.items() if key not in left_out] for row in rows]
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the time that is in one of them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if b"write_date" in data:
                data = json.dumps({**json.loads(data), "write_date": ""}).encode()
            found[str(path.relative_to(folder))] = data
    return found


def largest_differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Of two tables of `detections` that have the same boxes: in px, and in objectness or a prob.

    Boxes of nearly one score may stand in another order.
    """
    assert len(ours) == len(theirs) > 0
    px, rest = [], []
    for image in np.unique(ours[:, 0]):
        a, b = (table[table[:, 0] == image] for table in (ours, theirs))
        assert len(a) == len(b)
        distance = np.abs(a[:, None, 1:5] - b[None, :, 1:5]).max(-1)
        nearest = distance.argmin(1)
        assert sorted(nearest) == list(range(len(b)))
        px.append(distance.min(1).max())
        np.testing.assert_array_equal(a[:, 6], b[nearest, 6])
        rest.append(np.abs(np.delete(a - b[nearest], (1, 2, 3, 4), axis=1)).max())
    return max(px), max(rest)
