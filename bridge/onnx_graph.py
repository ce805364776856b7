"""Reads the chain of convolutions and its decode from an ONNX graph of the original."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from bridge.serving import FoldedConv
from yogo_jax.errors import UserError


_PASS_THROUGH = {"Cast", "Identity", "Dropout"}


class ConvChain(NamedTuple):
    """A network of the original, as read from its graph.

    Attributes:
      convs: from the first to the head.
      activations: "leaky_relu" or "silu" behind each of them but the head.
      pixel_scale: what pixels are multiplied by before the first.
      priors_wh: for width and height, the constants that sizes are multiplied by in the decode, the
        anchor first.
    """

    convs: list[FoldedConv]
    activations: list[str]
    pixel_scale: float
    priors_wh: tuple[list[float], list[float]]


class OnnxGraph:
    """A graph with its constants at hand, and the nodes by what they give and take."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {
            each.name: numpy_helper.to_array(each) for each in model.graph.initializer
        }
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._fold_reciprocals()
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def _fold_reciprocals(self) -> None:
        for node in self.graph.node:
            if node.op_type == "Reciprocal" and node.input[0] in self.constants:
                self.constants[node.output[0]] = 1 / self.constants[node.input[0]]

    def image_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of the one input.

        Raises:
          UserError: there are more, or its shape is open.
        """
        inputs = [each for each in self.graph.input if each.name not in self.constants]
        sizes = [each.dim_value for each in inputs[0].type.tensor_type.shape.dim] if inputs else []
        if (
            len(inputs) != 1
            or len(sizes) != 4
            or sizes[0] > 1
            or sizes[1] not in (1, 3)
            or min(sizes[2:]) < 1
        ):
            raise UserError(
                f"expected one input of the static shape [1, C, H, W], got {len(inputs)} inputs, "
                f"the first of {sizes}"
            )
        return sizes[1], sizes[2], sizes[3]

    def chain(self) -> ConvChain:
        """The network as a chain of convolutions.

        Raises:
          UserError: it is none, or its decode is not the one that we know.
        """
        inputs = [each.name for each in self.graph.input if each.name not in self.constants]
        tensor, scale = self._to_first_conv(inputs[0])
        convs, activations = [], []
        while True:
            conv = self._only(tensor, "Conv")
            convs.append(self._read_conv(conv))
            tensor = conv.output[0]
            if convs[-1].kernel.shape[2:] == (1, 1):
                break
            activation, tensor = self._activation(tensor)
            activations.append(activation)
        concat = self._last_concat()
        if len(concat.input) < 5:
            raise _unknown(concat, "the parts xc, yc, w, h, objectness, classes")
        priors = tuple(self._factors(name) for name in concat.input[2:4])
        return ConvChain(convs, activations, scale, (priors[0], priors[1]))

    def _to_first_conv(self, tensor: str) -> tuple[str, float]:
        scale = 1.0
        while True:
            (node,) = self.consumers.get(tensor, [None])[:1]
            if node is None or node.op_type not in {*_PASS_THROUGH, "Div", "Mul"}:
                return tensor, scale
            if node.op_type in ("Div", "Mul"):
                value = self._scalar_beside(node, tensor)
                scale = scale / value if node.op_type == "Div" else scale * value
            tensor = node.output[0]

    def _only(self, tensor: str, op_type: str) -> onnx.NodeProto:
        nodes = self.consumers.get(tensor, [])
        if len(nodes) != 1 or nodes[0].op_type != op_type:
            raise _unknown(nodes[0] if nodes else None, f"one {op_type} behind {tensor!r}")
        return nodes[0]

    def _read_conv(self, node: onnx.NodeProto) -> FoldedConv:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        kernel = self.constants.get(node.input[1])
        bias = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if kernel is None or (len(node.input) > 2 and bias is None):
            raise _unknown(node, "constant weights")
        size = kernel.shape[2]
        stride = attributes.get("strides", [1, 1])[0]
        expected: dict[str, object] = {
            "dilations": [1, 1],
            "group": 1,
            "pads": [(size - 1) // 2] * 4,
            "strides": [stride] * 2,
        }
        for name, value in expected.items():
            if attributes.get(name, value) != value:
                raise _unknown(node, f"{name} {value}, got {attributes[name]}")
        if kernel.shape[2:] not in ((3, 3), (1, 1)):
            raise _unknown(node, f"kernels of 3x3, and 1x1 of the head, got {kernel.shape[2:]}")
        if bias is None:
            bias = np.zeros(kernel.shape[0], np.float32)
        return FoldedConv(kernel.astype(np.float32), bias.astype(np.float32), stride)

    def _activation(self, tensor: str) -> tuple[str, str]:
        """The activation behind a convolution, and the tensor that it gives."""
        nodes = self.consumers.get(tensor, [])
        types = sorted(node.op_type for node in nodes)
        if types == ["LeakyRelu"]:
            (alpha,) = [each.f for each in nodes[0].attribute if each.name == "alpha"] or [0.01]
            if abs(alpha - 0.01) > 1e-6:
                raise _unknown(nodes[0], f"a slope of 0.01, got {alpha:g}")
            return "leaky_relu", nodes[0].output[0]
        if types == ["Mul", "Sigmoid"]:
            product, sigmoid = sorted(nodes, key=lambda node: node.op_type)
            if sigmoid.output[0] in product.input:
                return "silu", product.output[0]
        raise _unknown(nodes[0] if nodes else None, f"LeakyRelu or SiLU behind {tensor!r}")

    def _last_concat(self) -> onnx.NodeProto:
        outputs = {each.name for each in self.graph.output}
        found = [
            node
            for node in self.graph.node
            if node.op_type == "Concat" and node.output[0] in outputs
        ]
        if len(found) != 1 or len(outputs) != 1:
            raise _unknown(None, "one output, put together by one Concat")
        return found[0]

    def _factors(self, tensor: str) -> list[float]:
        """Constants that `exp` was multiplied by on the way to a tensor, the first one first."""
        factors: list[float] = []
        while tensor in self.producer:
            node = self.producer[tensor]
            sources = [name for name in node.input if name and name not in self.constants]
            if len(sources) != 1:
                raise _unknown(node, "one input that is no constant")
            if node.op_type == "Exp":
                return factors[::-1]
            if node.op_type == "Mul":
                factors.append(self._scalar_beside(node, sources[0]))
            tensor = sources[0]
        raise _unknown(None, "sizes as exp(t) times constants")

    def _scalar_beside(self, node: onnx.NodeProto, tensor: str) -> float:
        others = [name for name in node.input if name != tensor]
        if len(others) != 1 or others[0] not in self.constants:
            raise _unknown(node, "a constant factor")
        values = self.constants[others[0]]
        if values.size != 1:
            raise _unknown(node, f"one number as a factor, got the shape {values.shape}")
        return float(values.reshape(-1)[0])


def _unknown(node: onnx.NodeProto | None, expected: str) -> UserError:
    found = "nothing" if node is None else f"{node.op_type} {node.name!r}"
    return UserError(
        f"not recognized as an exported network of the original: expected {expected}; found {found}"
    )
