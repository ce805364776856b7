"""Numbers that the command of the export shares with the modules that it imports late."""

# ONNX operators: the last that the oldest runtimes with the stick's plugin read.
DEFAULT_OPSET = 13
# Operations of OpenVINO's IR: the last that the plugin of the stick knows.
NCS2_OPSET = 8
# mAP50 that INT8 may lose if nothing else is said.
MAX_MAP_LOSS = 0.02
