"""Asks the stick's own plugin which layers of an ONNX model it takes; no stick is needed.

    python query_myriad.py model.onnx

Runs with openvino 2021.4.2, the last wheel that carries the plugin. Prints JSON: the layers asked
about, and those refused.
"""

import json
import sys

import ngraph
from openvino.inference_engine import IECore


def main() -> None:
    core = IECore()
    network = core.read_network(sys.argv[1])
    layers = {
        node.get_friendly_name(): node.get_type_name()
        for node in ngraph.function_from_cnn(network).get_ordered_ops()
    }
    taken = core.query_network(network, "MYRIAD")
    refused = {
        name: kind
        for name, kind in layers.items()
        if name not in taken and kind not in ("Constant", "Parameter", "Result")
    }
    print(json.dumps({"layers": len(layers), "taken": len(taken), "refused": refused}))


if __name__ == "__main__":
    main()
