"""Exported models: what their graphs hold, that they compute what the checkpoint does, refusals."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from bridge import from_torch, to_openvino, verify
from bridge.converted import write_converted
from bridge.quiet_openvino import opset8, ov
from bridge.runtime import OnnxModel, OpenVinoModel
from bridge.serving import make_serving
from bridge.to_ir import check_for_ncs2
from bridge.to_onnx import export_onnx
from drawn_models import make_spec, random_variables, write_random_checkpoint
from exports import refused_export, run_export
from mounts import mounted
from parity import RECORDED_NAMES, REMOSCOPE, load, parity_file
from yogo_jax.checkpoint.store import read_metadata, restore_variables
from yogo_jax.detector.architectures import BACKBONES
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.postprocess import select_cells
from yogo_jax.detector.spec import served_spec
from yogo_jax.errors import UserError


CHAINS = sorted(set(BACKBONES) - {"convnext_small"})
ACTIVATIONS = {"LeakyRelu", "Sigmoid", "Mul"}
DECODE = {"Split", "Sigmoid", "Mul", "Add", "Min", "Exp", "Softmax", "Concat"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "quarter")


@pytest.mark.optimized
@pytest.mark.parametrize("name", RECORDED_NAMES)
def test_recorded_outputs_through_onnx_runtime(name, tmp_path):
    recorded = load(f"model_{name}.npz")
    from_torch.main([str(parity_file(f"model_{name}.pth")), "--output", str(tmp_path / "ours")])
    trained = read_metadata(tmp_path / "ours").model
    variables = restore_variables(tmp_path / "ours", trained)
    x = recorded["x"]
    for key, spec, images in (
        ("served", trained, x),
        ("crop48", served_spec(trained, crop_height=48), x[:, :, 24:72]),
    ):
        model = export_onnx(make_serving(spec, variables), spec, batch_size=len(images))
        # Not by `OnnxModel`: the recorded images are noise of any value, no whole pixels.
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (found,) = session.run(None, {"images": images})
        np.testing.assert_allclose(found, recorded[key], atol=1e-5, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_the_trunk_is_convolutions_and_activations_only(name):
    spec = make_spec(name)
    model = export_onnx(make_serving(spec, random_variables(spec)), spec)
    nodes = list(model.graph.node)
    convs = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    assert len(convs) == len(BACKBONES[name].blocks) + 1
    assert all(len(nodes[index].input) == 3 for index in convs)
    assert nodes[0].op_type == "Mul"  # the division by 255
    trunk = [node.op_type for node in nodes[1 : convs[-1]]]
    assert trunk.count("Add") == sum(block.residual for block in BACKBONES[name].blocks)
    assert set(trunk) - {"Conv", "Add"} <= ACTIVATIONS
    assert {node.op_type for node in nodes[convs[-1] + 1 :]} <= DECODE
    assert len(nodes) - convs[-1] - 1 <= 9
    (given,), (output,) = model.graph.input, model.graph.output
    assert (given.name, output.name) == ("images", "predictions")
    shapes = [
        [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in (given, output)
    ]
    assert shapes == [[1, 1, 96, 128], [1, 8, *spec.grid_hw]]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [each.version for each in model.opset_import if not each.domain] == [13]


def variants() -> list:
    """Each architecture, gray or RGB, divided by 255 or not; one of the four ways in every run.

    The others, and the large convnext_small, are left to `make acceptance`.
    """
    ways = [(rgb, normalize_images) for rgb in (False, True) for normalize_images in (False, True)]
    found = []
    for index, name in enumerate(sorted(BACKBONES)):
        for way in ways:
            sampled = way == ways[index % 4] and name != "convnext_small"
            label = f"{name}-{'rgb' if way[0] else 'gray'}-{'by 255' if way[1] else 'as is'}"
            marks = () if sampled else pytest.mark.acceptance
            found.append(pytest.param(name, *way, id=label, marks=marks))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rgb", "normalize_images"), variants())
def test_every_architecture_exports_and_verifies(name, rgb, normalize_images, tmp_path):
    folder = write_random_checkpoint(
        tmp_path / "checkpoint", name, rgb=rgb, normalize_images=normalize_images
    )
    run_export(folder, "--output", tmp_path / "out", "--precision", "fp32", "--target", "cpu")
    verification = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert verification["passed"]
    assert {row["model"] for row in verification["models"]} == {"onnx", "openvino"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.bin",
        "model.onnx",
        "model.xml",
        "verification.json",
    ]


@pytest.mark.smoke
def test_models_describe_themselves(checkpoint, tmp_path):
    run_export(checkpoint, "--output", tmp_path, "--crop-height", 0.5, "--batch", 2)
    model = onnx.load(tmp_path / "model.onnx")
    said = {each.key: each.value for each in model.metadata_props}
    assert json.loads(said["class_names"]) == ["healthy", "ring", "misc"]
    assert json.loads(said["image_hw"]) == [48, 128]
    assert json.loads(said["trained_image_hw"]) == [96, 128]
    assert json.loads(said["size_multiplier_wh"]) == [1.0, 2.0]
    assert json.loads(said["thresholds"])["objectness"] == 0.5
    assert said["architecture"] == "quarter_filters"
    assert said["checkpoint"] == str(checkpoint)

    root = ElementTree.parse(tmp_path / "model.xml").getroot()
    layers = root.find("layers")
    # The instrument's software takes the last layer for the result, and reads its size there.
    assert layers[-1].attrib["type"] == "Result"
    assert root[0] is layers
    ports = [int(dim.text) for dim in layers[-1][0][0]]
    assert ports == [2, 8, 6, 16]
    rt_info = root.find("rt_info/yogo")
    assert json.loads(rt_info.find("class_names").attrib["value"]) == ["healthy", "ring", "misc"]
    types = {layer.attrib["type"] for layer in layers}
    assert not types & {"ShapeOf", "Slice", "Transpose", "Gather", "BatchNormInference"}
    # Kernels are FP16 and nothing else is: as FP32 the slope of the activations is the 1/100 that
    # the stick can fuse into its convolutions.
    constants = [layer for layer in layers if layer.attrib["type"] == "Const"]
    halved = [each for each in constants if each.find("data").attrib["element_type"] == "f16"]
    assert len(halved) == len(BACKBONES["quarter_filters"].blocks) + 1
    assert all(len(each.find("output/port")) == 4 for each in halved)
    versions = [layer.attrib["version"] for layer in layers if layer.attrib["version"]]
    assert max(int(version.removeprefix("opset")) for version in versions) <= 8


def test_the_same_export_twice_is_the_same_file(checkpoint, tmp_path):
    for name in ("a", "b"):
        run_export(checkpoint, "--output", tmp_path / name)
    for file in to_openvino.MODEL_FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "image_hw", "multiplier_wh"),
    [
        pytest.param({}, (96, 128), (1.0, 1.0), id="whole"),
        pytest.param({"crop_height": 0.25}, (24, 128), (1.0, 4.0), id="a quarter"),
        pytest.param({"crop_height": 1.0}, (96, 128), (1.0, 1.0), id="all of it"),
        pytest.param({"crop_height": 48}, (48, 128), (1.0, 2.0), id="px"),
        pytest.param({"image_hw": (48, 64)}, (48, 64), (2.0, 2.0), id="both axes"),
        pytest.param({"image_hw": (192, 128)}, (192, 128), (1.0, 0.5), id="larger"),
    ],
)
def test_cells_keep_their_size_in_pixels(arguments, image_hw, multiplier_wh):
    spec = served_spec(make_spec("base_model"), **arguments)
    assert spec.image_hw == image_hw
    assert spec.size_multiplier_wh == multiplier_wh
    again = served_spec(spec, image_hw=(96, 128))
    assert again == make_spec("base_model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"crop_height": 7}, "smaller than one cell of the grid, 8x8 px", id="px"),
        pytest.param({"crop_height": 0.01}, "smaller than one cell", id="fraction"),
        pytest.param({"image_hw": (96, 4)}, "smaller than one cell", id="width"),
        pytest.param({"crop_height": 97}, "have 96 rows", id="more than there is"),
    ],
)
def test_sizes_that_cannot_be_served_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        served_spec(make_spec("base_model"), **arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--batch", 0], "--batch must be 1 or more", id="batch"),
        pytest.param(["--crop-height", -1], "--crop-height must be more than 0", id="crop"),
        pytest.param(["--opset", 9], "--opset must be in 13", id="opset"),
        pytest.param(["--opset", 17], "--target cpu", id="opset for the stick"),
        pytest.param(["--crop-height", 4], "smaller than one cell", id="less than a cell"),
        pytest.param(["--definition", "nowhere.yml"], "nowhere.yml", id="definition"),
    ],
)
def test_flags_are_refused_in_one_message(checkpoint, tmp_path, capsys, flags, message):
    assert message in refused_export(capsys, checkpoint, "--output", tmp_path / "out", *flags)


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    assert "expected a run's workdir" in refused_export(
        capsys, tmp_path, "--output", tmp_path / "out"
    )


def test_a_model_that_differs_is_not_kept(checkpoint, tmp_path, capsys, monkeypatch):
    run_export(checkpoint, "--output", tmp_path)
    capsys.readouterr()
    right = verify.outputs_and_ranges

    def other_network(spec, variables, frames):
        return right(spec, jax.tree.map(lambda leaf: leaf * 1.05, variables), frames)

    monkeypatch.setattr(verify, "outputs_and_ranges", other_network)
    error = refused_export(capsys, checkpoint, "--output", tmp_path)
    assert "no model was kept" in error
    # Not even those of the export before: they would pass for this one's.
    assert [path.name for path in tmp_path.iterdir()] == ["verification.json"]
    assert not json.loads((tmp_path / "verification.json").read_text())["passed"]


def test_a_folder_that_cannot_be_written_is_refused(checkpoint, tmp_path, capsys):
    with mounted(tmp_path / "readonly", "ro") as folder:
        assert "--output" in refused_export(capsys, checkpoint, "--output", folder)


# Full while the ONNX is written, the kernels of the IR, and the verification.
@pytest.mark.parametrize("size", ["64k", "168k", "224k", "252k"])
def test_a_full_disk_leaves_no_half_file(checkpoint, tmp_path, capsys, size):
    with mounted(tmp_path / "small", f"size={size}") as folder:
        assert "--output" in refused_export(capsys, checkpoint, "--output", folder)
        assert not list(folder.glob("model.*"))


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, capsys):
    path = parity_file("model_quarter_filters.pth")
    with mounted(tmp_path / "small", "size=64k") as folder:
        with pytest.raises(SystemExit) as stopped:
            from_torch.main([str(path), "--output", str(folder / "checkpoint")])
        assert stopped.value.code == 2
        assert "cannot be written" in capsys.readouterr().err
        assert not list(folder.iterdir())


def test_what_overflows_in_half_precision_is_not_for_the_stick(tmp_path, capsys):
    spec = make_spec("quarter_filters")
    variables = random_variables(spec)
    variables["params"]["head"]["bias"][2] = 15.0  # boxes of exp(15) anchors
    write_converted(tmp_path / "checkpoint", spec, variables, source="drawn")
    error = refused_export(capsys, tmp_path / "checkpoint", "--output", tmp_path / "out")
    assert "values of decode/sizes leave the range of FP16" in error
    assert not list((tmp_path / "out").glob("model.*"))
    run_export(tmp_path / "checkpoint", "--output", tmp_path / "out", "--target", "cpu")


@pytest.mark.parametrize("opset", [13, 21])
def test_the_opset_is_as_asked(checkpoint, tmp_path, opset):
    run_export(checkpoint, "--output", tmp_path, "--opset", opset, "--target", "cpu")
    model = onnx.load(tmp_path / "model.onnx")
    assert [each.version for each in model.opset_import if not each.domain] == [opset]


def test_operations_that_the_stick_does_not_know_are_refused():
    images = ov.opset10.parameter([1, 1, 4, 4], np.float32)
    new = ov.Model([ov.opset10.is_nan(images)], [images])
    with pytest.raises(UserError, match="IsNaN of opset10 is unknown to the stick"):
        check_for_ncs2(new)
    open_size = opset8.parameter([-1, 1, 4, 4], np.float32)
    with pytest.raises(UserError, match="is dynamic"):
        check_for_ncs2(ov.Model([opset8.relu(open_size)], [open_size]))


def test_the_instruments_network_is_recognized(elated_smoke):
    spec = read_metadata(elated_smoke).model
    assert spec.architecture == "base_model"
    assert spec.image_hw == (772, 1032)
    assert spec.grid_hw == (97, 129)
    assert spec.anchor_wh == pytest.approx((0.04250100424705710, 0.05551774140353888), rel=1e-6)
    assert spec.size_multiplier_wh == (1.0, 1.0)
    assert not spec.normalize_images
    assert spec.class_names[:2] == ("healthy", "ring")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_instruments_network_gives_its_recorded_outputs(elated_smoke, tmp_path, precision):
    from PIL import Image

    run_export(
        elated_smoke, "--output", tmp_path, "--image-hw", 193, 1032, "--precision", precision
    )
    frame = np.asarray(Image.open(REMOSCOPE / "remoscope_frame.png").convert("L"))
    recorded = np.load(REMOSCOPE / "elated-smoke-4492_reference.npz")
    models = {"onnx": OnnxModel(tmp_path / "model.onnx")}
    models["openvino"] = OpenVinoModel(tmp_path / "model.xml")
    for row in (0, 193, 290, 386, 579):
        strip = frame[None, row : row + 193, :, None]
        for name, model in models.items():
            found = model.run(strip)
            if name == "onnx" or precision == "fp32":
                np.testing.assert_allclose(found, recorded[f"raw_{row}"], atol=1e-3)
            boxes = recorded[f"boxes_{row}"]
            ours = select_cells(found[0], Thresholds())
            assert len(ours[0]) == len(boxes)
            nearest = np.abs(ours[0][:, None] - boxes[None, :, :4]).max(-1)
            matched = nearest.argmin(1)
            assert sorted(matched) == list(range(len(boxes)))
            assert nearest.min(1).max(initial=0) <= 1e-3
            np.testing.assert_array_equal(ours[2].argmax(-1), boxes[matched, 5:].argmax(-1))


@pytest.mark.parametrize("wh", [(1e30, 1e30), (0.5, 1e-8), (1e30, 1e-8)])
def test_boxes_of_any_size_are_found_again(wh):
    spec = make_spec("quarter_filters")
    outputs = np.zeros((1, 8, *spec.grid_hw), np.float32)
    outputs[0, :2] = 0.5
    # The square of the largest is more than FP32 holds, the smallest is lost in its rounding.
    outputs[0, 2], outputs[0, 3] = wh
    outputs[0, 4, 0, 0] = 0.9
    outputs[0, 5] = 1.0
    row = verify.compare(outputs, outputs, spec, verify.FP32_TOLERANCE)
    assert row["detections"] == 1
    assert (row["detections_lost"], row["detections_gained"]) == (0, 0)
