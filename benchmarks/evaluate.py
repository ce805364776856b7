"""Share of a full evaluation that is not the network: input, decode, NMS, matching, mean AP.

    python benchmarks/evaluate.py [--frames 1000] [--rounds 3] [--json FILE]

Frames are drawn and packed before, as a validation during training finds them. The network is
untrained, with objectness scaled and moved so that in front of NMS as many boxes come out as a
frame has cells, and most others lie far below every threshold, as in a trained one. Rounds of the
evaluation and of the bare network on as many batches take turns.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import base
from yogo_jax.config.schema import from_mapping
from yogo_jax.data.labels import Labels
from yogo_jax.data.pack import find_pack, make_pack
from yogo_jax.data.records import records_of
from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.evaluator import IMAGES_AT_A_TIME, Evaluator
from yogo_jax.startup import start_jax
from yogo_jax.synthetic.flow import CLASS_NAMES, CLASS_PROPORTIONS, draw_frame


# Standard deviation of the logits of objectness.
SPREAD = 8


def main() -> None:
    """Prints the share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--image-hw", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["YOGO_JAX_CACHE"] = scratch
        # As the command does, which reads where compilations are kept from this.
        start_jax()
        result = measure(args, Path(scratch))
    for name, value in result.items():
        print(f"{name:<26}{value:.4g}" if isinstance(value, float) else f"{name:<26}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Medians of rounds."""
    image_hw, rng = tuple(args.image_hw), np.random.default_rng(0)
    paths, labels = [], []
    for index in range(args.frames):
        frame = draw_frame(
            rng, image_hw, cells_per_frame=args.cells, class_proportions=CLASS_PROPORTIONS
        )
        paths.append(str(folder / f"{index:06d}.png"))
        Image.fromarray(frame.image.reshape(image_hw)).save(paths[-1])
        labels.append(Labels(frame.class_ids, frame.boxes_cxcywh))
    records = records_of(CLASS_NAMES, paths, labels)
    packed = find_pack(paths, image_hw=image_hw, rgb=False)
    make_pack(packed, paths, image_hw=image_hw, rgb=False, workers=0, tell=lambda done, total: None)
    spec = ModelSpec(
        architecture="base_model",
        class_names=CLASS_NAMES,
        image_hw=image_hw,
        anchor_wh=(0.06, 0.08),
        rgb=False,
        normalize_images=True,
    )
    variables = init_variables(spec.network(), jax.random.key(0), image_hw=image_hw, channels=1)
    network = jax.jit(lambda variables, images: spec.network().apply(variables, images))
    images = [packed[index] for index in range(IMAGES_AT_A_TIME)]
    batch = jnp.asarray(np.stack(images))
    head = variables["params"]["head"]
    objectness = np.asarray(network(variables, batch))[..., 4]
    head["kernel"] = head["kernel"].at[..., 4].mul(SPREAD / objectness.std())
    objectness = np.asarray(network(variables, batch))[..., 4]
    share = 1 - args.cells / objectness[0].size
    head["bias"] = head["bias"].at[4].set(-np.quantile(objectness, share))
    evaluator = Evaluator(
        spec,
        loss_weights=from_mapping(base.get_config().to_dict()).loss,
        batch_size=IMAGES_AT_A_TIME,
        max_boxes=int(records.box_counts.max()),
        workers=0,
    )
    evaluator.run(variables, records.subset(range(IMAGES_AT_A_TIME)))
    batches = -(-args.frames // IMAGES_AT_A_TIME)
    whole, bare, shares = [], [], []
    for _ in range(args.rounds):
        began = time.perf_counter()
        metrics = evaluator.run(variables, records, packed=packed).metrics
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(network(variables, batch))
        bare.append(time.perf_counter() - began)
        shares.append(1 - bare[-1] / whole[-1])
    return {
        "frames": args.frames,
        "image_hw": list(image_hw),
        "true_boxes": metrics["objects"],
        "predictions": metrics["predictions"],
        "evaluation_seconds": statistics.median(whole),
        "network_seconds": statistics.median(bare),
        "share_outside_network": statistics.median(shares),
        "lowest": min(shares),
        "highest": max(shares),
    }


if __name__ == "__main__":
    main()
