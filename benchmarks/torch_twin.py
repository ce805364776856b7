"""The network of `step.py` in plain PyTorch, in a process of its own with its own interpreter.

    python torch_twin.py            (started by step.py, which sends blocks and sizes as JSON)

After "ready" each line on standard input runs that many training steps (forward, loss, backward,
AdamW) and answers with the seconds of each. The loss is a stand-in of the same shape. With a GPU it
runs there, and in bfloat16 by autocast with the channels last.
"""

import contextlib
import json
import sys
import time

import torch
from torch import nn


def make_block(inputs: int, block: dict) -> nn.Sequential:
    """Convolution, batch norm, activation and channel dropout, as far as the block has them."""
    outputs = block["channels"]
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, block["stride"], padding=1, bias=block["bias"])
    ]
    if block["norm"]:
        parts.append(nn.BatchNorm2d(outputs))
    parts.append(nn.LeakyReLU(0.01, inplace=True))
    if block["dropout"]:
        parts.append(nn.Dropout2d(block["dropout"]))
    return nn.Sequential(*parts)


def main() -> None:
    """Serves rounds of steps until standard input ends."""
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    layers: list[nn.Module] = []
    channels = job["image_channels"]
    for block in job["blocks"]:
        layers.append(make_block(channels, block))
        channels = block["channels"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = job["dtype"] == "bfloat16"
    layout = torch.channels_last if half else torch.contiguous_format
    network = nn.Sequential(*layers, nn.Conv2d(channels, job["outputs"], 1)).train()
    network = network.to(device, memory_format=layout)
    images = torch.rand(job["batch"], job["image_channels"], *job["image_hw"], device=device)
    images = images.to(memory_format=layout)
    torch.backends.cudnn.benchmark = True
    autocast = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.05)

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            raw = network(images)
        loss = torch.sigmoid(raw.float()).square().sum() / job["batch"]
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([step() for _ in range(int(line))]), flush=True)


if __name__ == "__main__":
    main()
