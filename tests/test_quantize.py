"""INT8 exports: what is quantized, how it is judged, and on which parts of which images."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bridge.frames import Strips, verification_frames
from bridge.quiet_openvino import ov
from bridge.verify import outputs_and_ranges
from drawn_models import make_spec, write_random_checkpoint
from exports import refused_export, run_export
from yogo_jax.checkpoint.store import restore_variables
from yogo_jax.data.definition import load_definition
from yogo_jax.data.splits import load_splits
from yogo_jax.detector.boxes import xyxy_to_cxcywh
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.postprocess import select_cells


DEFINITION = """\
class_names: [healthy, ring, misc]
dataset_paths:
  only: {image_path: images, label_path: labels}
dataset_split_fractions: {train: 0.5, val: 0.5, test: 0.0}
"""


def write_data(folder: Path, frames: np.ndarray, boxes: list[np.ndarray], ids: list) -> Path:
    """A data set of these gray frames and boxes (cxcywh)."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame[..., 0]).save(folder / "images" / f"{i}.png")
        rows = [
            " ".join(map(str, [class_id, *box.tolist()]))
            for class_id, box in zip(ids[i], boxes[i], strict=True)
        ]
        (folder / "labels" / f"{i}.txt").write_text("\n".join(rows) + "\n")
    path = folder / "definition.yml"
    path.write_text(DEFINITION)
    return path


@pytest.fixture(scope="module")
def seen_by_itself(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint, and frames whose true boxes are what it detects: its own mean AP is 1."""
    folder = tmp_path_factory.mktemp("int8")
    spec = make_spec("quarter_filters")
    checkpoint = write_random_checkpoint(folder / "checkpoint")
    variables = restore_variables(checkpoint, spec)
    frames = verification_frames(spec, count=12)
    boxes, ids = [], []
    for output in outputs_and_ranges(spec, variables, frames)[0]:
        corners, _, class_probs, _ = select_cells(output, Thresholds(objectness=0.05))
        cxcywh = np.asarray(xyxy_to_cxcywh(jnp.asarray(corners.clip(0, 1))))
        kept = (cxcywh[:, 2:] > 0.01).all(-1)
        boxes.append(cxcywh[kept])
        ids.append(class_probs.argmax(-1)[kept])
    assert sum(map(len, boxes)) > 50
    return checkpoint, write_data(folder / "data", frames, boxes, ids)


@pytest.mark.parametrize("more", [[], ["--batch", 5, "--crop-height", 0.5]])
def test_convolutions_are_int8_but_for_the_first_and_the_last(
    seen_by_itself, tmp_path, capsys, more
):
    checkpoint, definition = seen_by_itself
    flags = ["--target", "cpu", "--int8", definition, "--max-map-loss", 1, *more]
    run_export(checkpoint, "--output", tmp_path, *flags)
    assert "validation images: mAP50" in capsys.readouterr().out
    verification = json.loads((tmp_path / "verification.json").read_text())
    scores = verification["mean_ap"]
    assert scores["images"] == 6
    assert scores["loss"] == scores["before"]["mAP50"] - scores["after"]["mAP50"]
    assert scores["after"]["mAP50"] > 0
    if not more:
        # Its own boxes, each of which is nearly as sure of another class.
        assert scores["before"]["mAP50"] > 0.6
    assert [row["passed"] for row in verification["models"]] == [True, None]

    model = ov.Core().read_model(tmp_path / "model.xml")
    convolutions = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    kinds = []
    for each in convolutions:
        kernel = each.input_value(1).get_node()
        while kernel.get_type_name() != "Constant":
            kernel = kernel.input_value(0).get_node()
        kinds.append(kernel.get_element_type())
    assert kinds == [ov.Type.f32, *6 * [ov.Type.i8], ov.Type.f32]
    quantizers = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert len(quantizers) == 6
    assert model.get_rt_info(["yogo", "precision"]).astype(str) == "int8"


def test_more_loss_than_allowed_leaves_no_model(seen_by_itself, tmp_path, capsys):
    checkpoint, definition = seen_by_itself
    flags = ["--target", "cpu", "--int8", definition, "--max-map-loss", 0]
    error = refused_export(capsys, checkpoint, "--output", tmp_path, *flags)
    assert "of mAP50 on 6 validation images, more than --max-map-loss 0" in error
    assert [path.name for path in tmp_path.iterdir()] == ["verification.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--int8", "x.yml"], "add --target cpu", id="stick"),
        pytest.param(["--max-map-loss", 0.1], "give both or neither", id="alone"),
        pytest.param(
            ["--int8", "x.yml", "--target", "cpu", "--max-map-loss", 2],
            "--max-map-loss must be in [0, 1]",
            id="range",
        ),
        pytest.param(["--int8", "nowhere.yml", "--target", "cpu"], "nowhere.yml", id="missing"),
    ],
)
def test_flags_are_refused(seen_by_itself, tmp_path, capsys, flags, message):
    assert message in refused_export(capsys, seen_by_itself[0], "--output", tmp_path, *flags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(("train: 0.5, val: 0.5", "train: 1.0, val: 0.0"), "found 12 and 0", id="val"),
        pytest.param(("healthy, ring, misc", "a, b, c"), "must be the same", id="classes"),
    ],
)
def test_data_that_cannot_judge_is_refused(seen_by_itself, tmp_path, capsys, change, message):
    checkpoint, definition = seen_by_itself
    other = definition.with_name("other.yml")
    other.write_text(definition.read_text().replace(*change))
    flags = ["--target", "cpu", "--int8", other]
    assert message in refused_export(capsys, checkpoint, "--output", tmp_path / "out", *flags)


def test_strips_without_a_box_cannot_judge(seen_by_itself, tmp_path, capsys):
    """All boxes of the validation images lie above the strip that is served."""
    checkpoint, _ = seen_by_itself
    frames = verification_frames(make_spec("quarter_filters"), count=4)
    box = np.asarray([[0.5, 0.05, 0.1, 0.1]])
    definition = write_data(tmp_path / "data", frames, [box] * 4, [[0]] * 4)
    flags = ["--target", "cpu", "--int8", definition, "--crop-height", 0.25]
    error = refused_export(capsys, checkpoint, "--output", tmp_path / "out", *flags)
    assert "expected a labelled box in the 24x128 px that are served of the 2 validation" in error
    assert not (tmp_path / "out").exists()


def test_strips_hold_the_boxes_whose_centre_they_hold(tmp_path):
    frames = np.arange(96 * 128, dtype=np.uint32).astype(np.uint8).reshape(1, 96, 128, 1)
    # In px: one in the middle, one that reaches out of the strip, one with its centre above it.
    px = np.asarray([[64, 48, 10, 8], [20, 30, 16, 20], [100, 20, 10, 30]], np.float32)
    boxes = px / np.asarray([128, 96, 128, 96], np.float32)
    path = write_data(tmp_path, frames.repeat(2, axis=0), [boxes, boxes], [[0, 1, 2]] * 2)
    splits = load_splits(load_definition(path), min_box_area=0.0, on_bad_label="error")
    trained = make_spec("quarter_filters")
    strips = Strips(splits.train, trained, make_spec("quarter_filters", image_hw=(48, 64)))
    assert len(strips) == 1
    # 24 rows above and 32 columns to the left are cut.
    np.testing.assert_array_equal(strips.frame(0), frames[0, 24:72, 32:96])
    corners, ids = strips.labels_of(0)
    np.testing.assert_array_equal(ids, [0])
    np.testing.assert_allclose(corners * [64, 48, 64, 48], [[27, 20, 37, 28]], atol=1e-4)
    wide = Strips(splits.train, trained, make_spec("quarter_filters", image_hw=(48, 128)))
    corners, ids = wide.labels_of(0)
    np.testing.assert_array_equal(ids, [0, 1])
    np.testing.assert_allclose(
        corners * [128, 48, 128, 48], [[59, 20, 69, 28], [12, -4, 28, 16]], atol=1e-4
    )
    whole = Strips(splits.train, trained, trained)
    corners, ids = whole.labels_of(0)
    expected = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    np.testing.assert_allclose(corners, expected, atol=1e-6)
