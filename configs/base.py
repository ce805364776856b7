"""The original's recipe: base_model on full frames.

    python -m yogo_jax.train --config configs/base.py --config.data.definition=FILE.yml

Every field stands here with its meaning; a variant imports this file and changes a few lines.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of a run; see `yogo_jax/config.py` for their types and ranges."""
    config = ConfigDict()

    # Decides initial weights, order of the data, dropout and augmentation; not the splits.
    config.seed = 0

    config.data = data = ConfigDict()
    # A data set definition (.yml), or "synthetic" for generated frames at `image_hw`.
    data.definition = "synthetic"
    # Height and width in px that images are resized to if they differ.
    data.image_hw = (772, 1032)
    # Three channels instead of gray.
    data.rgb = False
    # Divide pixels by 255 inside the network.
    data.normalize_images = False
    # Fractions (train, val, test) over all of the definition's paths, in place of its own splits;
    # empty keeps the definition's.
    data.split_override = ()
    # Processes that read images; 0 reads them in threads of the training process.
    data.workers = 4
    # Where images are kept once they are decoded: "none" decodes them each time; "disk" packs them
    # into a file in the cache folder, mapped into memory; "device" holds those of the training in
    # the memory of every device as well, and takes several steps a call; "auto" is "device" for an
    # accelerator of whose memory they take no more than 0.4, else "disk" if that takes no more than
    # half of the free room.
    data.cache = "auto"
    # Rows of the padded boxes of an image; 0 takes the most that any image has.
    data.max_boxes = 0
    # Boxes smaller than this fraction of the image are left out everywhere, and counted.
    data.min_box_area = 200 / (772 * 1032)
    # "error" stops at a label that breaks the rules, "skip" leaves it out and counts it.
    data.on_bad_label = "error"

    config.model = model = ConfigDict()
    # One of the names in `yogo_jax/detector/backbones.py`.
    model.name = "base_model"
    # W,H of the prior as fractions of the image, or "auto": the mean of the training boxes.
    model.anchor = "0.04250100424705710,0.05551774140353888"
    # What the convolutions of the training compute in: "float32", or "bfloat16", which accelerators
    # have units for. Parameters, statistics and the loss, and every evaluation, are float32.
    model.dtype = "float32"

    config.loss = loss = ConfigDict()
    # Weight of cells without an object in the objectness term (1 for cells with one).
    loss.no_object_weight = 0.5
    # Weight of the box term.
    loss.iou_weight = 5.0
    # Weight of the class term.
    loss.classify_weight = 1.0
    # Share of the class target that is spread over all classes.
    loss.label_smoothing = 0.01

    config.optim = optim = ConfigDict()
    # Of AdamW at the first step.
    optim.learning_rate = 3e-4
    # The cosine ends at learning_rate / lr_decay_factor.
    optim.lr_decay_factor = 10.0
    # Decoupled, on all parameters.
    optim.weight_decay = 0.05
    # Gradients are clamped to [-clip_value, clip_value], element by element.
    optim.clip_value = 1.0

    config.train = train = ConfigDict()
    # Times over the training images.
    train.epochs = 64
    # Images per step; the last step of an epoch is padded.
    train.batch_size = 64
    # Validation (and a checkpoint) every so many epochs, and after the last.
    train.eval_every_epochs = 4
    # A checkpoint also whenever this time has passed.
    train.checkpoint_every_minutes = 10.0
    # After this time the command saves and stops, to be continued by the same command; 0 is no end.
    # It counts from the start of the command: give it more than start and validation take together.
    train.max_hours = 0.0
    # A run or checkpoint whose weights are the start; empty draws them.
    train.from_pretrained = ""
    # "auto" continues what the workdir holds, "never" refuses a workdir in use, a checkpoint's
    # path continues that one in a new workdir.
    train.resume = "auto"

    config.augment = augment = ConfigDict()
    # Probability of exchanging left and right, drawn for each image on its own.
    augment.horizontal_flip = 0.5
    # Probability of exchanging top and bottom, likewise.
    augment.vertical_flip = 0.5

    config.track = track = ConfigDict()
    # Weights & Biases: "disabled", "offline", "online", or "auto" (online when logged in).
    track.wandb_mode = "disabled"
    # Whose W&B account or team; empty is the default one.
    track.entity = ""
    # W&B project.
    track.project = "yogo"
    # Name of the run; empty takes the workdir's.
    track.name = ""
    # A sentence about the run.
    track.note = ""
    # Words to find it by.
    track.tags = ()

    return config
