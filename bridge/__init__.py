"""Ways between checkpoints and the formats of others; nothing in `yogo_jax` knows these formats.

Export: `to_openvino` is the command. A checkpoint becomes one function (`serving`), that an ONNX
model (`to_onnx`) and that an OpenVINO IR (`to_ir`), in INT8 if asked for (`quantize`); `verify`
compares what was written with the checkpoint, on `frames`.
Import: `from_torch` (by `torch_archive`) and `from_onnx` (by `onnx_graph`) are the commands for
networks of the original implementation; both write checkpoints by `converted`.
Run: `runtime` runs exported models, `benchmark` times them.
"""

# ONNX operators: the last version that the oldest runtimes with the stick's plugin read.
DEFAULT_OPSET = 13
