"""The original's recipe: base_model on full frames; to start with, take `strong.py`.

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
    # Height and width in px that images are resized to if they differ; refused if they fit only
    # turned, width before height.
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
    # Boxes smaller than this fraction of the image are left out everywhere, and counted; a run that
    # is left without a training box does not start.
    data.min_box_area = 200 / (772 * 1032)
    # "error" stops at a label that breaks the rules, "skip" leaves it out and counts it.
    data.on_bad_label = "error"
    # Turn images as their EXIF or TIFF tag says, as viewers and labelling tools show them; False
    # takes the pixels as they are stored.
    data.apply_orientation = True

    config.model = model = ConfigDict()
    # One of the names in `yogo_jax/detector/backbones.py`.
    model.name = "base_model"
    # W,H of the prior as fractions of the image, or "auto": the mean of the training boxes.
    model.anchor = "0.04250100424705710,0.05551774140353888"
    # What the convolutions of the training compute in: "float32", or "bfloat16", which accelerators
    # have units for. Parameters, statistics and the loss, and every evaluation, are float32.
    model.dtype = "float32"
    # What initial weights keep the variance of: "fan_out" of gradients, "fan_in" of features.
    model.kernel_init = "fan_out"
    # Objectness that every cell starts with, from a head of small weights; 0 draws the head as all.
    model.objectness_prior = 0.0

    config.loss = loss = ConfigDict()
    # Weight of cells without an object in the objectness term (1 for cells with one).
    loss.no_object_weight = 0.5
    # Weight of the box term.
    loss.iou_weight = 5.0
    # Weight of the class term.
    loss.classify_weight = 1.0
    # Share of the class target that is spread over all classes.
    loss.label_smoothing = 0.01
    # Form of the objectness term: "squared" error or "cross_entropy".
    loss.objectness = "squared"
    # On top of no_object_weight, for the eight cells around one with an object.
    loss.neighbour_weight = 1.0
    # no_object_weight is that of images with so many objects, and of others in proportion, from a
    # quarter to four times of it; 0 is the same for all.
    loss.usual_objects = 0.0
    # The mean number of boxes of the training images for it.
    loss.by_fullness = False
    # Of each class in the class term; empty is 1 for all.
    loss.class_weights = ()
    # Or from the training labels: the inverse of each class's share to this power; 0 is off.
    loss.class_weight_power = 0.0
    # Share of the loss that compares with what train.teacher says of an image, in place of its
    # labels; 0 is off.
    loss.imitation = 0.0

    config.optim = optim = ConfigDict()
    # Of AdamW at the first step.
    optim.learning_rate = 3e-4
    # The cosine ends at learning_rate / lr_decay_factor.
    optim.lr_decay_factor = 10.0
    # Decoupled, on all parameters.
    optim.weight_decay = 0.05
    # Gradients are clamped to [-clip_value, clip_value], element by element.
    optim.clip_value = 1.0
    # Then scaled down, all together, to a norm of at most this; 0 is off.
    optim.clip_norm = 0.0
    # Epochs in which the learning rate rises from 0; the cosine takes the rest.
    optim.warmup_epochs = 0.0
    # Share of a moving average of the weights that a step leaves; the average is what is validated,
    # kept and exported. 0 is off.
    optim.ema_decay = 0.0
    # Parameters that stay as they are, by name, as "block_0" or "block_*/norm"; with
    # train.from_pretrained.
    optim.freeze = ()

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
    # A run or checkpoint of a network that loss.imitation imitates, of the same grid and pixels.
    train.teacher = ""
    # "auto" continues what the workdir holds, "never" refuses a workdir in use, a checkpoint's
    # path continues that one in a new workdir.
    train.resume = "auto"
    # Which validation is the best, whose checkpoint is tested and exported: the one with the lowest
    # "loss", or with the highest "mAP50" or "mAP50_95", which take boxes in the validation split.
    train.keep_best = "loss"
    # Training ends when the best validation lies so many epochs back; 0 never.
    train.patience = 0

    config.augment = augment = ConfigDict()
    # Probability of exchanging left and right, drawn for each image on its own.
    augment.horizontal_flip = 0.5
    # Probability of exchanging top and bottom, likewise.
    augment.vertical_flip = 0.5
    # Probability of a turn by 90 degrees, of square images.
    augment.quarter_turns = 0.0
    # Factors between which images are scaled about their middle.
    augment.zoom = (1.0, 1.0)
    # Largest shift along each axis, as a fraction of the image.
    augment.translation = 0.0
    # Height of the strip that is cut out of each image at a random place, as a fraction of it; 1 is
    # the whole image. The instrument looks at strips of 0.25.
    augment.vertical_crop = 1.0
    # Most that is added to all pixels, or taken away, as a share of 255.
    augment.brightness = 0.0
    # The distance of pixels to their mean is multiplied or divided by up to 1 + contrast.
    augment.contrast = 0.0
    # The exponent of the light is multiplied or divided by up to 1 + gamma.
    augment.gamma = 0.0
    # Each colour on its own is multiplied or divided by up to 1 + colour.
    augment.colour = 0.0
    # Largest standard deviation of a Gaussian blur, in px.
    augment.blur = 0.0
    # Largest standard deviation of noise, as a share of 255.
    augment.noise = 0.0
    # Probability of a hole.
    augment.cutout = 0.0
    # Probability that cut-out cells of the definition's thumbnail_augmentation are pasted in.
    augment.thumbnails = 0.0
    # So many places are tried in each of those images; one is free if no box lies there.
    augment.thumbnails_tried = 16
    # Share of those images in which the pasted cells lie on a plain ground, and nothing else.
    augment.thumbnails_plain = 0.0
    # So many last epochs without holes and pasted cells.
    augment.closed_epochs = 0

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
