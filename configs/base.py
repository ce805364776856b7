"""The original's recipe: base_model on full frames; to start with, take `strong.py`.

    python -m yogo_jax.train --config configs/base.py --config.data.definition=FILE.yml

The values of all fields; `yogo-jax train --help` lists their meanings and ranges. A variant imports
this file and changes a few lines.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of a run; `yogo_jax/config/schema.py` explains each."""
    config = ConfigDict()

    config.seed = 0

    config.data = data = ConfigDict()
    data.definition = "synthetic"
    data.image_hw = (772, 1032)
    data.rgb = False
    data.normalize_images = False
    data.split_override = ()
    data.workers = 4
    data.cache = "auto"
    data.max_boxes = 0
    data.min_box_area = 200 / (772 * 1032)
    data.on_bad_label = "error"
    data.apply_orientation = True
    data.repeat_threshold = 0.0

    config.model = model = ConfigDict()
    model.name = "base_model"
    model.anchor = "0.04250100424705710,0.05551774140353888"
    model.dtype = "float32"
    model.kernel_init = "fan_out"
    model.objectness_prior = 0.0

    config.loss = loss = ConfigDict()
    loss.no_object_weight = 0.5
    loss.iou_weight = 5.0
    loss.classify_weight = 1.0
    loss.label_smoothing = 0.01
    loss.objectness = "squared"
    loss.objectness_target = "one"
    loss.neighbour_weight = 1.0
    loss.reference_count = 0.0
    loss.reference_count_from_data = False
    loss.class_weights = ()
    loss.class_weight_power = 0.0
    loss.effective_number_beta = 0.0
    loss.logit_adjustment = 0.0
    loss.class_priors = ()
    loss.imitation = 0.0

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 3e-4
    optim.lr_decay_factor = 10.0
    optim.weight_decay = 0.05
    optim.clip_value = 1.0
    optim.clip_norm = 0.0
    optim.warmup_epochs = 0.0
    optim.ema_decay = 0.0
    optim.freeze = ()

    config.train = train = ConfigDict()
    train.epochs = 64
    train.batch_size = 64
    train.eval_every_epochs = 4
    train.checkpoint_every_minutes = 10.0
    train.max_hours = 0.0
    train.from_pretrained = ""
    train.teacher = ""
    train.resume = "auto"
    train.keep_best = "loss"
    train.decision = "most_probable"
    train.patience = 0

    config.augment = augment = ConfigDict()
    augment.horizontal_flip = 0.5
    augment.vertical_flip = 0.5
    augment.quarter_turns = 0.0
    augment.zoom = (1.0, 1.0)
    augment.translation = 0.0
    augment.vertical_crop = 1.0
    augment.brightness = 0.0
    augment.contrast = 0.0
    augment.gamma = 0.0
    augment.colour = 0.0
    augment.stain = 0.0
    augment.blur = 0.0
    augment.noise = 0.0
    augment.cutout = 0.0
    augment.rare_cells = 0.0
    augment.rare_cells_weights = ()
    augment.epochs_without_paste = 0
    augment.thumbnails = 0.0
    augment.thumbnails_tried = 16
    augment.thumbnails_plain = 0.0

    config.track = track = ConfigDict()
    track.wandb_mode = "disabled"
    track.entity = ""
    track.project = "yogo"
    track.name = ""
    track.note = ""
    track.tags = ()

    return config
