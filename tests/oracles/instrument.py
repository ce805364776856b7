"""Runs an IR on frames as the instrument's software does; prints nothing, writes one array.

    python instrument.py model.xml frames.npy outputs.npy

Runs in interpreters from Python 3.9 and OpenVINO from 2022.1 on, with NumPy as its only help.
Frames are uint8 [n h w 1]; they go in one by one as u8 NHWC, and come back as f16 [n 5+k gh gw].
"""

import sys

import numpy as np


sys.modules.setdefault("openvino_telemetry", None)

from openvino.preprocess import PrePostProcessor  # noqa: E402


try:
    from openvino import AsyncInferQueue, Core, Layout, Type
except ImportError:  # before 2023
    from openvino.runtime import AsyncInferQueue, Core, Layout, Type


def main() -> None:
    xml, frames_file, output_file = sys.argv[1:]
    core = Core()
    steps = PrePostProcessor(core.read_model(xml))
    steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
    steps.input().model().set_layout(Layout("NCHW"))
    steps.output().tensor().set_element_type(Type.f16)
    options = {"PERFORMANCE_HINT": "THROUGHPUT"}
    # CPUs that know bf16 would choose it, with 8 bits where the stick has 11: named, as a benchmark
    # names it, so that the answer does not hang on the machine.
    options["INFERENCE_PRECISION_HINT"] = "f32"
    model = core.compile_model(steps.build(), "CPU", options)
    queue = AsyncInferQueue(model)
    frames = np.load(frames_file)
    outputs = {}

    def keep(request, index):
        outputs[index] = np.array(request.output_tensors[0].data)[0]

    queue.set_callback(keep)
    for index, frame in enumerate(frames):
        queue.start_async({0: frame[None]}, userdata=index)
    queue.wait_all()
    np.save(output_file, np.stack([outputs[index] for index in range(len(frames))]))


if __name__ == "__main__":
    main()
