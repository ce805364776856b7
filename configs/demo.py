"""The recipe of base.py at a size for a laptop: synthetic frames of 192x256 px, two CPU cores.

    python -m yogo_jax.train --config configs/demo.py

Smaller frames and batches, a narrower network and larger steps, so that a few minutes are enough.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Fields that differ from `base.py`."""
    config = base.get_config()
    config.data.image_hw = (192, 256)
    config.data.normalize_images = True
    config.data.workers = 0
    config.model.name = "half_filters"
    # A cell of 40 px is another share of this smaller field of view.
    config.model.anchor = "auto"
    # Most cells of the grid are empty: at the original's weight, so short a run mostly learns that.
    config.loss.no_object_weight = 0.2
    config.optim.learning_rate = 2e-3
    config.train.epochs = 22
    config.train.batch_size = 4
    return config
