"""Makes a network of the package: trains it, measures it, packs it, and writes its model card.

    python benchmarks/make_networks.py smear --workdir runs/smear
    python benchmarks/make_networks.py blood --definition BCCD.yml --workdir runs/blood

The file and the card go to `yogo_jax/networks/`. A run that was stopped goes on. The numbers of the
card are those of the packed file, in half precision.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import yogo_jax
from yogo_jax.checkpoint.ready import NETWORKS, pack_network
from yogo_jax.checkpoint.store import read_metadata, restore_variables
from yogo_jax.command import as_command
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.reports.tables import objects_by_class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network: what it is for, and how its run differs from configs/strong.py.

    Attributes:
      purpose: a sentence or two for the card.
      data: where its frames come from, with their licence.
      not_for: what it must not be used for.
      definition: of the frames; None where it is given by --definition.
      served_hw: rows and columns of the frames that it is served on; None: those of the training.
      fields: of the config.
    """

    purpose: str
    data: str
    not_for: str
    definition: str | None = None
    served_hw: tuple[int, int] | None = None
    fields: dict[str, Any]


_BCCD = (
    "BCCD (MIT licence), the published split: 205 training, 87 validation, 72 test images of "
    "stained blood, in which red cells, white cells and platelets are labelled."
)
_DRAWN = (
    "Frames that this package draws (`yogo_jax/synthetic/`); no picture of a microscope. Code and "
    "frames have the licence of this package."
)
_NO_DIAGNOSIS = "It is no medical device: no diagnosis, and no count on which one depends."
_BLOOD = {"data.image_hw": (240, 320), "train.epochs": 64, "train.eval_every_epochs": 16}
RECIPES = {
    "blood": Recipe(
        purpose="Counts red cells, white cells and platelets in colour images of stained smears.",
        data=_BCCD,
        not_for=f"It knows no parasites. {_NO_DIAGNOSIS} Other stains and microscopes need frames "
        "of their own: docs/accuracy.md shows what a start from it gains.",
        fields=_BLOOD,
    ),
    "blood-gray": Recipe(
        purpose="The same as `blood`, for gray images.",
        data=_BCCD,
        not_for=f"It knows no parasites. {_NO_DIAGNOSIS} Where there is colour, take `blood`.",
        fields={**_BLOOD, "data.rgb": False},
    ),
    "flow": Recipe(
        purpose="Finds cells of seven classes in gray frames of a label-free flow microscope, "
        "772x1032 px; a start for training on frames of your own.",
        data=_DRAWN,
        not_for=f"It has never seen a real cell. {_NO_DIAGNOSIS} Train it further on labelled "
        "frames of your instrument: --config.train.from_pretrained=flow.",
        definition="synthetic",
        served_hw=(772, 1032),
        fields={
            "data.image_hw": (240, 320),
            "data.rgb": False,
            "train.epochs": 40,
            # mAP50 is 0.999 after a third of them: it no longer tells checkpoints apart.
            "train.keep_best": "mAP50_95",
            "train.batch_size": 8,
            "loss.classify_weight": 10.0,
            "augment.translation": 0.0,
            "augment.zoom": (0.85, 1.15),
            "augment.stain": 0.0,
            "augment.brightness": 0.15,
            "augment.contrast": 0.3,
            "augment.gamma": 0.3,
            "augment.blur": 1.0,
            "augment.noise": 0.02,
        },
    ),
    "smear": Recipe(
        purpose="Finds red cells, the stages of malaria parasites and leukocytes in colour images "
        "of Giemsa-stained thin smears, in which a red cell is about 40 px wide; a start for "
        "training on smears of your own.",
        data=_DRAWN,
        not_for=f"It has never seen a real cell. {_NO_DIAGNOSIS} Train it further on labelled "
        "smears of your microscope: --config.train.from_pretrained=smear.",
        definition="synthetic:smear",
        fields={
            "data.image_hw": (480, 640),
            "train.epochs": 24,
            "augment.stain": 0.2,
            "augment.blur": 0.8,
            "augment.noise": 0.02,
        },
    ),
}


def make_network(name: str, definition: str | None, workdir: Path, seed: int) -> Path:
    """Trains and packs one network; returns its file."""
    recipe = RECIPES[name]
    definition = recipe.definition or definition
    if definition is None:
        raise yogo_jax.UserError(f"{name} takes --definition: {recipe.data}")
    fields = {
        "data.definition": definition,
        "data.workers": 0,
        "train.eval_every_epochs": 8,
        "seed": seed,
        **recipe.fields,
    }
    run = yogo_jax.train(yogo_jax.Config.from_file("strong", **fields), workdir)
    metadata = read_metadata(run.checkpoint)
    trained, served = metadata.model, metadata.model
    if recipe.served_hw is not None:
        served = at_size(trained, recipe.served_hw)
    path = NETWORKS / f"{name}.npz"
    NETWORKS.mkdir(exist_ok=True)
    variables = restore_variables(run.checkpoint, trained)
    pack_network(path, variables, dataclasses.replace(metadata, model=served))
    metrics = yogo_jax.evaluate(name, definition, image_hw=trained.image_hw)
    path.with_suffix(".md").write_text(card(name, fields, metrics), encoding="utf-8")
    return path


def at_size(spec: ModelSpec, image_hw: tuple[int, int]) -> ModelSpec:
    """The network for whole frames of another size at the same scale in px."""
    height, width = image_hw
    anchor_w, anchor_h = spec.anchor_wh
    rows, columns = spec.image_hw
    anchor = anchor_w * columns / width, anchor_h * rows / height
    return dataclasses.replace(spec, image_hw=image_hw, anchor_wh=anchor)


def card(name: str, fields: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card of a network, from its metrics on the test split."""
    recipe = RECIPES[name]
    intervals = metrics["intervals"]
    rows = [
        "| class | AP50 | 95 % interval | AP50-95 | boxes |",
        "|---|---|---|---|---|",
    ]
    for class_name, ap50 in metrics["AP50_by_class"].items():
        rows.append(
            f"| {class_name} | {_number(ap50)} | {_range(intervals['AP50_by_class'][class_name])} "
            f"| {_number(metrics['AP50_95_by_class'][class_name])} "
            f"| {objects_by_class(metrics)[class_name]} |"
        )
    given = "" if recipe.definition else " --definition FILE.yml"
    values = ", ".join(f"`{key}={value}`" for key, value in recipe.fields.items())
    return "\n".join(
        [
            f"# {name}",
            "",
            recipe.purpose,
            "",
            "## Data",
            "",
            recipe.data,
            "",
            "## Made by",
            "",
            f"`python benchmarks/make_networks.py {name}{given} --workdir DIR`, seed "
            f"{fields['seed']}: `configs/strong.py` with {values}. One run; no seed was chosen.",
            "",
            "## Measured",
            "",
            f"{metrics['images']} test images that no choice was made on. mAP50 "
            f"{_number(metrics['mAP50'])} ({_range(intervals['mAP50'])}), mAP50-95 "
            f"{_number(metrics['mAP50_95'])} ({_range(intervals['mAP50_95'])}). The intervals come "
            "from a bootstrap over the images.",
            "",
            *rows,
            "",
            "## What it is not for",
            "",
            recipe.not_for,
            "",
        ]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(interval: list[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--definition", help="labelled frames, for networks of real data")
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with as_command():
        print(make_network(args.name, args.definition, args.workdir, args.seed))


if __name__ == "__main__":
    main()
