"""An ONNX model as OpenVINO IR: constants folded, kernels in half precision."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from bridge.quiet_openvino import opset8, ov, passes
from bridge.runtime import RT_INFO
from bridge.to_onnx import INPUT_NAME, OUTPUT_NAME
from yogo_jax.errors import UserError


# Operations of OpenVINO's IR: the last version that the plugin of the stick knows.
NCS2_OPSET = 8
# Operations whose second input is the kernel.
WITH_KERNEL = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


def convert_to_ir(
    model: onnx.ModelProto, *, half_precision: bool, metadata: Mapping[str, str]
) -> ov.Model:
    """The OpenVINO model of an ONNX model.

    Args:
      model: with static shapes.
      half_precision: keep the kernels of convolutions as FP16. Everything else stays FP32, which
        costs nothing in size: offsets of the grid keep their precision, and the slope of the
        leaky activations stays the 1/100 that the stick can fuse into the convolution (rounded to
        half precision its inverse is no whole number).
      metadata: what is written into the model.
    """
    # `Core.read_model`, because `convert_model` forks, which JAX does not survive with certainty.
    converted = ov.Core().read_model(model.SerializeToString())
    converted.inputs[0].get_node().set_friendly_name(INPUT_NAME)
    converted.outputs[0].get_node().set_friendly_name(f"{OUTPUT_NAME}/result")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(converted)
    if half_precision:
        _halve_kernels(converted)
    for index, node in enumerate(converted.get_ordered_ops()):
        if node.get_type_name() == "Constant":
            # OpenVINO numbers them through the life of a process; files should not differ by that.
            node.set_friendly_name(f"constant_{index}")
    for key, value in metadata.items():
        converted.set_rt_info(value, [RT_INFO, key])
    return converted


def _halve_kernels(model: ov.Model) -> None:
    """Keeps kernels as FP16 constants, which a conversion in the graph turns back when loaded."""
    for node in model.get_ordered_ops():
        if node.get_type_name() not in WITH_KERNEL:
            continue
        source = node.input(1).get_source_output().get_node()
        if source.get_type_name() != "Constant" or source.get_element_type() != ov.Type.f32:
            continue
        halved = opset8.constant(np.asarray(source.data).astype(np.float16), dtype=np.float16)
        restored = opset8.convert(halved, "f32")
        restored.set_friendly_name(f"{node.get_friendly_name()}/kernel")
        node.input(1).replace_source_output(restored.output(0))


def check_for_ncs2(model: ov.Model) -> None:
    """Refuses what the stick cannot run.

    Raises:
      UserError: an operation is newer than opset 8, or a shape is dynamic.
    """
    for node in model.get_ordered_ops():
        version = node.get_type_info().version_id
        if int(version.removeprefix("opset") or 0) > NCS2_OPSET:
            raise UserError(
                f"{node.get_type_name()} of {version} is unknown to the stick, whose last is opset "
                f"{NCS2_OPSET}: export with --target cpu, or an architecture of convolutions"
            )
        if any(output.get_partial_shape().is_dynamic for output in node.outputs()):
            raise UserError(
                f"the shape of {node.get_friendly_name()} is dynamic; the stick needs static ones"
            )


def save_ir(model: ov.Model, path: Path) -> None:
    """Writes `path` (.xml) and the .bin beside it, as they are."""
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # a full disk, for one
        raise OSError(f"{path.name} cannot be written ({str(error).strip()})") from error
