"""Draws docs/frame.png: a frame, the cells that a network found in it, and their counts.

    python docs/make_frame.py RUN

RUN is a network that was trained on synthetic frames, as by the command below. The picture that is
here was made when `strong` still had AdamW.

    yogo-jax train --config strong --workdir runs/drawn --config.data.definition=synthetic \\
        --config.data.rgb=False --config.data.image_hw=386,516 --config.train.epochs=12 \\
        --config.augment.translation=0.0 --config.augment.zoom=0.85,1.15 \\
        --config.augment.blur=0.5 --config.augment.noise=0.02
"""

import sys
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import yogo_jax
from yogo_jax.drawing import PALETTE
from yogo_jax.synthetic.flow import draw_frame


PICTURE = Path(__file__).with_name("frame.png")


# Shares of healthy, ring, trophozoite, schizont, gametocyte, wbc, misc.
PROPORTIONS = (0.66, 0.1, 0.07, 0.05, 0.05, 0.04, 0.03)


def draw(run: str) -> None:
    """Writes the picture; the frame is none that the network was trained on."""
    model = yogo_jax.load(run)
    frame, *_ = draw_frame(
        np.random.default_rng(0),
        model.image_hw,
        cells_per_frame=32,
        class_proportions=PROPORTIONS,
    )
    found = model.predict(frame)
    rows, columns = found.image_hw
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 10 * 0.78 * rows / columns), width_ratios=(0.78, 0.22)
    )
    left.imshow(found.draw())
    left.set_axis_off()
    right.set_axis_off()
    right.text(0, 0.95, f"{len(found)} cells", weight="bold", size=14)
    counts = found.counts()
    for line, (name, count) in enumerate(counts.items()):
        y = 0.84 - 0.09 * line
        colour = PALETTE[line % len(PALETTE)]
        right.text(0, y, "\u25a0", color=[value / 255 for value in colour], size=14)
        right.text(0.12, y, name, size=12)
        right.text(0.95, y, str(count), size=12, ha="right")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.03)
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    draw(sys.argv[1])
