"""OpenVINO without its telemetry.

The package reports its import to its maker over the network, from a forked process, which neither
a laboratory's machine nor JAX (which must not be forked) should have to bear. It does without where
the package that sends is missing, and so it is made to seem.
"""

import sys


sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset8, passes  # noqa: E402


__all__ = ["opset8", "ov", "passes"]
