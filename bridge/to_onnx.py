"""The serving function as an ONNX model."""

from collections.abc import Mapping

import jax
import numpy as np
import onnx
from jax2onnx import to_onnx
from onnx import numpy_helper

from bridge import DEFAULT_OPSET
from bridge.onnx_graph import OnnxGraph
from bridge.serving import Serve
from yogo_jax.detector.spec import ModelSpec


INPUT_NAME = "images"
OUTPUT_NAME = "predictions"


def export_onnx(
    serve: Serve,
    spec: ModelSpec,
    *,
    batch_size: int = 1,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a serving function, checked.

    Args:
      serve: see `make_serving`.
      spec: of the images that it serves.
      batch_size: images of one call; the shapes are static.
      opset: version of the standard operators.
      metadata: what is written into the model.

    Raises:
      onnx.checker.ValidationError: the model does not follow the standard, which is our mistake.
    """
    images = jax.ShapeDtypeStruct((batch_size, spec.channels, *spec.image_hw), np.float32)
    # Of the exporter's own layers some add a bias without giving it the rank of its images.
    with jax.numpy_rank_promotion("allow"):
        model = to_onnx(
            serve,
            [images],
            model_name="yogo",
            opset=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
        )
    _bias_into_conv(model)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model


def _bias_into_conv(model: onnx.ModelProto) -> None:
    """Makes `Conv` + `Add` of a constant per channel into the one node that it is."""
    graph, read = model.graph, OnnxGraph(model)
    for conv in [node for node in graph.node if node.op_type == "Conv" and len(node.input) == 2]:
        users = read.consumers.get(conv.output[0], [])
        if len(users) != 1 or users[0].op_type != "Add":
            continue
        (add,) = users
        (other,) = [name for name in add.input if name != conv.output[0]]
        bias = read.constants.get(other)
        if bias is None or bias.shape != (1, len(read.constants[conv.input[1]]), 1, 1):
            continue
        flat = numpy_helper.from_array(np.ascontiguousarray(bias.reshape(-1)), f"{other}_of_conv")
        graph.initializer.append(flat)
        conv.input.append(flat.name)
        conv.output[0] = add.output[0]
        graph.node.remove(add)
    used = {name for node in graph.node for name in node.input}
    for constant in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(constant)
