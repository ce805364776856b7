"""Networks exported by the original: graphs in its manner are read back, others are refused."""

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bridge import from_onnx
from bridge.serving import fold_chain, make_serving
from drawn_models import make_spec, random_variables
from yogo_jax.checkpoint.store import read_metadata
from yogo_jax.detector.architectures import get_backbone
from yogo_jax.detector.spec import served_spec
from yogo_jax.errors import UserError


class Builder:
    """A graph in the manner of the original's exports: batch norms folded, decode part by part."""

    def __init__(self, spec, variables, *, input_type=TensorProto.INT64, slope=0.01, dilation=1):
        self.spec = spec
        self.nodes, self.constants, self.count = [], [], 0
        self.input_type = input_type
        rows, columns = spec.grid_hw
        tensor = self.add("Cast", ["frames"], to=TensorProto.FLOAT)
        if spec.normalize_images:
            tensor = self.add("Div", [tensor, self.constant(np.float32(255))])
        backbone = get_backbone(spec.architecture)
        convs = fold_chain(backbone, variables)
        for conv in convs[:-1]:
            tensor = self.conv(tensor, conv, dilation)
            if backbone.activation == "silu":
                tensor = self.add("Mul", [tensor, self.add("Sigmoid", [tensor])])
            else:
                tensor = self.add("LeakyRelu", [tensor], alpha=slope)
        raw = self.conv(tensor, convs[-1], 1)
        centres = []
        for channel, size, axis in ((0, columns, 1), (1, rows, 0)):
            picked = self.add("Sigmoid", [self.channels(raw, channel, channel + 1)])
            per_cell = self.add("Reciprocal", [self.constant(np.float32(size))])
            offsets = np.broadcast_to(
                (np.arange(size) / size).reshape((1, -1) if axis else (-1, 1)), (rows, columns)
            )
            scaled = self.add("Mul", [per_cell, picked])
            offsets = np.ascontiguousarray(offsets, np.float32)
            centres.append(self.add("Add", [scaled, self.constant(offsets)]))
        clipped = self.add("Clip", [self.channels(raw, 2, 4), "", self.constant(np.float32(80))])
        sizes = []
        factors = zip(spec.anchor_wh, spec.size_multiplier_wh, strict=True)
        for channel, (anchor, multiplier) in enumerate(factors):
            size = self.add("Exp", [self.channels(clipped, channel, channel + 1)])
            size = self.add("Mul", [self.constant(np.float32(anchor)), size])
            sizes.append(self.add("Mul", [size, self.constant(np.float32(multiplier))]))
        objectness = self.add("Sigmoid", [self.channels(raw, 4, 5)])
        classes = self.add("Softmax", [self.channels(raw, 5, 2**62)], axis=1)
        parts = [*centres, *sizes, objectness, classes]
        self.nodes.append(helper.make_node("Concat", parts, ["outputs"], axis=1))

    def add(self, op_type, inputs, **attributes):
        self.count += 1
        output = f"t{self.count}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(self, value):
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{self.count}"))
        return f"c{self.count}"

    def conv(self, tensor, conv, dilation):
        padding = dilation * (conv.kernel.shape[2] - 1) // 2
        return self.add(
            "Conv",
            [tensor, self.constant(conv.kernel), self.constant(conv.bias)],
            strides=[conv.stride] * 2,
            pads=[padding] * 4,
            dilations=[dilation] * 2,
        )

    def channels(self, tensor, start, stop):
        bounds = [self.constant(np.array([value])) for value in (start, stop, 1)]
        return self.add("Slice", [tensor, *bounds])

    def model(self, shape=None):
        shape = shape or [1, self.spec.channels, *self.spec.image_hw]
        frames = helper.make_tensor_value_info("frames", self.input_type, shape)
        grid = [1, 5 + len(self.spec.class_names), *self.spec.grid_hw]
        outputs = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, grid)
        graph = helper.make_graph(self.nodes, "g", [frames], [outputs], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def build(architecture="quarter_filters", *, crop_height=48, options=None, **changes):
    trained = make_spec(architecture, **changes)
    spec = served_spec(trained, crop_height=crop_height)
    variables = random_variables(trained)
    return trained, variables, Builder(spec, variables, **(options or {}))


NAMES = ("healthy", "ring", "misc")


@pytest.mark.parametrize(
    ("architecture", "changes", "options"),
    [
        pytest.param("quarter_filters", {}, {}, id="divided by 255"),
        pytest.param("quarter_filters", {"normalize_images": False}, {}, id="as is"),
        pytest.param("quarter_filters", {"rgb": True}, {}, id="rgb"),
        pytest.param("silu_model", {}, {}, id="silu"),
        pytest.param("depth_ver_0", {}, {"input_type": TensorProto.FLOAT}, id="float input"),
        pytest.param("depth_ver_3", {}, {"input_type": TensorProto.UINT8}, id="uint8 input"),
    ],
)
def test_a_network_comes_back_at_full_size(architecture, changes, options):
    trained, variables, builder = build(architecture, options=options, **changes)
    spec, found = from_onnx.convert(builder.model(), class_names=NAMES)
    assert spec.anchor_wh == pytest.approx(trained.anchor_wh, rel=1e-6)
    assert spec == make_spec(architecture, **changes, anchor_wh=spec.anchor_wh)
    images = np.random.default_rng(0).integers(0, 256, (1, trained.channels, 96, 128))
    images = images.astype(np.float32)
    expected = jax.jit(make_serving(trained, variables))(images)
    again = jax.jit(make_serving(spec, found))(images)
    np.testing.assert_allclose(again, expected, atol=1e-5, rtol=1e-4)


def test_the_command_writes_a_checkpoint(tmp_path):
    _, _, builder = build()
    onnx.save(builder.model(), tmp_path / "x.onnx")
    output = tmp_path / "checkpoint"
    from_onnx.main([str(tmp_path / "x.onnx"), "--output", str(output), "--class-names", "a,b,c"])
    metadata = read_metadata(output)
    assert metadata.source == "x.onnx"
    assert metadata.model.class_names == ("a", "b", "c")
    assert metadata.model.image_hw == (96, 128)


def spoiled(kind):
    """A model that is none of the original's, in one way."""
    _, _, builder = build()
    nodes = builder.nodes
    if kind == "other decode":
        exp = next(node for node in nodes if node.op_type == "Exp")
        exp.op_type = "Softplus"
    if kind == "other function":
        sigmoid = [node for node in nodes if node.op_type == "Sigmoid"][-1]
        sigmoid.op_type = "HardSigmoid"
    if kind == "batch norm":
        conv = nodes[2]
        parts = [builder.constant(np.ones(4, np.float32)) for _ in range(4)]
        norm = helper.make_node("BatchNormalization", [conv.output[0], *parts], ["normed"])
        nodes[3].input[0] = "normed"
        nodes.insert(3, norm)
    return builder.model()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: spoiled("other decode"), "sizes as exp", id="decode"),
        pytest.param(lambda: spoiled("other function"), "outputs differ by up to", id="function"),
        pytest.param(lambda: spoiled("batch norm"), "LeakyRelu or SiLU behind", id="batch norm"),
        pytest.param(
            lambda: build(options={"slope": 0.1})[2].model(), "a slope of 0.01, got 0.1", id="slope"
        ),
        pytest.param(
            lambda: build(options={"dilation": 2})[2].model(), r"dilations \[1, 1\]", id="dilated"
        ),
        pytest.param(
            lambda: build()[2].model([1, 1, None, 128]), "static shape", id="dynamic shape"
        ),
    ],
)
def test_another_network_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        from_onnx.convert(make(), class_names=NAMES)


def test_channels_of_no_architecture_are_named():
    _, _, builder = build()
    for index, constant in enumerate(builder.constants):
        kernel = numpy_helper.to_array(constant)
        if kernel.ndim == 4 and kernel.shape[0] == 16:
            pruned = numpy_helper.from_array(kernel[:15], constant.name)
            builder.constants[index].CopyFrom(pruned)
    with pytest.raises(UserError, match=r"no architecture of ours has the convolutions 4/2, 8, 15"):
        from_onnx.convert(builder.model(), class_names=NAMES)


def test_the_classes_need_their_names():
    _, _, builder = build()
    with pytest.raises(UserError, match=r"has 3 classes, but 0 names are given"):
        from_onnx.convert(builder.model())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"not a model", "is no valid ONNX model", id="text"),
        pytest.param(b"", "is no valid ONNX model", id="empty"),
        pytest.param(None, "cannot be read", id="missing"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        from_onnx.main([str(path), "--output", str(tmp_path / "checkpoint")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "checkpoint").exists()
