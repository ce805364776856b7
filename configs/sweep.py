"""A search around base.py: the best mAP50 by learning rate, regularization, size and architecture.

    python -m yogo_jax.sweep --config configs/sweep.py --study sweeps/first \\
        --config.data.definition=FILE.yml
    python -m yogo_jax.sweep report sweeps/first

The first command is one worker; any number of them may share a study (slurm/sweep.sbatch). Fields
that are not in the search space have the values of base.py, and can be set by flags. The fields of
`sweep` are explained by `yogo-jax sweep --help`. See docs/sweeps.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The fields of `base.py`, and the group `sweep`."""
    config = base.get_config()

    config.sweep = sweep = ConfigDict()
    sweep.trials = 64
    sweep.objective = "mAP50"
    sweep.random_trials = 10
    sweep.seed = 0

    sweep.pruner = pruner = ConfigDict()
    pruner.name = "median"
    pruner.startup_trials = 5
    # With the original's recipe it can take 26 of 64 epochs until objects are found at all.
    pruner.warmup_epochs = 28

    # Fields of the config, each with one of: "uniform" or "log" (LOW, HIGH) for fractions, "int" or
    # "log" (LOW, HIGH) for whole numbers, "choice" (A, B, …) for anything.
    sweep.space = space = ConfigDict()
    space.data = {
        # And with it the size of the grid: a cell is 8 px of the image.
        "image_hw": {"choice": ((386, 516), (579, 774), (772, 1032))},
    }
    space.model = {
        "name": {
            "choice": (
                "quarter_filters",
                "half_filters",
                "base_model",
                "silu_model",
                "depth_ver_1",
                "depth_ver_3",
            )
        },
    }
    space.loss = {
        "no_object_weight": {"log": (0.05, 0.5)},
        "label_smoothing": {"uniform": (0.0, 0.1)},
    }
    space.optim = {
        "learning_rate": {"log": (1e-4, 3e-3)},
        "lr_decay_factor": {"log": (1.0, 100.0)},
        "weight_decay": {"log": (1e-4, 0.2)},
    }
    space.train = {
        "batch_size": {"choice": (16, 32, 64)},
    }
    return config
