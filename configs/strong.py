"""The strong recipe."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Fields that differ from `base.py`."""
    config = base.get_config()
    config.data.normalize_images = True
    config.data.rgb = True
    config.model.name = "yogo_s"
    config.model.anchor = "auto"
    config.model.kernel_init = "fan_in"
    config.model.objectness_prior = 0.05
    config.optim.learning_rate = 2e-3
    config.optim.lr_decay_factor = 100.0
    config.optim.warmup_epochs = 3.0
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    config.train.keep_best = "mAP50"
    config.train.batch_size = 8
    return config
