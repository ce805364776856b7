"""A stronger recipe than the original's: fast networks that find more, from few images.

    python -m yogo_jax.train --config configs/strong.py --config.data.definition=FILE.yml \
        --config.data.image_hw=240,320

What each field is worth, and what was tried and left, stands in docs/experiments.md. Frames are
taken in colour; for gray ones add --config.data.rgb=False.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Fields that differ from `base.py`."""
    config = base.get_config()
    config.data.rgb = True
    config.data.normalize_images = True
    # Deep and narrow, so that a cell of the grid sees all of a large blood cell.
    config.model.name = "yogo_d"
    config.model.anchor = "auto"
    # Features keep their size on the way up, and cells start out empty, as most of them are.
    config.model.kernel_init = "fan_in"
    config.model.objectness_prior = 0.05
    # Squared error of a sigmoid has no slope where the network is wrong and sure of it: rare and
    # small objects are then found late, or never.
    config.loss.objectness = "cross_entropy"
    # The cells around an object's own see nearly the same: they need not be as sure as the rest.
    config.loss.neighbour_weight = 0.3
    # Boxes are learnt soon, classes that differ by a detail inside the cell are not.
    config.loss.classify_weight = 5.0
    # On smears it finds more than AdamW after as many steps: rings 0.76 instead of 0.61.
    config.optim.name = "muon"
    config.optim.learning_rate = 4e-3
    # Boxes fit better than with 0.05.
    config.optim.weight_decay = 0.3
    config.optim.lr_decay_factor = 100.0
    config.optim.warmup_epochs = 3.0
    # With AdamW, boxes fit better without clipping. Muon scales the steps, too.
    config.optim.clip_value = 0.0
    config.optim.ema_decay = 0.998
    config.augment.zoom = (0.8, 1.25)
    config.augment.translation = 0.1
    # Slides are stained alike only roughly.
    config.augment.stain = 0.1
    # It acts where classes are rare, and says so.
    config.augment.rare_cells = 0.5
    # Few frames are few steps; small batches make more of them, at the same cost on a CPU. A GPU is
    # faster with more images, and several need more: see docs/clusters.md.
    config.train.batch_size = 2
    config.train.keep_best = "mAP50"
    # A rare class is seldom the most probable one, even where it is found.
    config.train.decision = "count"
    return config
