"""The recipe of base.py at a size for a laptop: synthetic frames of 240x320 px, two CPU cores.

    python -m yogo_jax.train --config configs/demo.py

Larger steps and a narrower network, so that a few hundred of them are enough.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Fields that differ from `base.py`."""
    config = base.get_config()
    config.data.image_hw = (240, 320)
    config.data.normalize_images = True
    config.data.workers = 0
    config.model.name = "half_filters"
    # A cell of 40 px is another share of this smaller field of view.
    config.model.anchor = "auto"
    config.optim.learning_rate = 1e-3
    config.train.epochs = 20
    config.train.batch_size = 8
    return config
