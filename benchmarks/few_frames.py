"""Training on few frames: from networks of the package, and from drawn weights.

    python benchmarks/few_frames.py --definition FILE.yml --image-hw 240 320 --start smear \
        --workdir runs/few

For each number of frames, start and seed, `configs/strong.py` is trained on the first so many
training images, and its last weights are tested on the test split. Each run has about --steps
steps: whole epochs, batches of 2; the warm-up is 5 % of them. Nothing is chosen: there is one
validation, at the end. It prints mean and standard deviation over the seeds. Finished runs are
skipped.
"""

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yogo_jax
from yogo_jax.data.definition import load_definition
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.data.splits import Splits, load_splits
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.files import given_path
from yogo_jax.synthetic.options import is_synthetic, read_options


# How the start without a network is called.
DRAWN = "drawn weights"
BATCH_SIZE, WARMUP_SHARE = 2, 0.05
# Metrics of metrics.json, and their names in the table.
METRICS = {"mAP50": "mAP50", "mAP50_95": "mAP50-95"}

# Metrics of each run, by number of frames and start.
Figures = Mapping[tuple[int, str], Sequence[Mapping[str, Any]]]


def first_frames(definition: str, frames: int, folder: Path) -> str:
    """A definition with the first so many training images of another; the other splits stay.

    For files it is written to the folder, with links to the images.

    Raises:
      UserError: there are fewer training images, or the options of synthetic frames name a number.
    """
    if is_synthetic(definition):
        if "train" in read_options(definition):
            raise UserError(f"--definition {definition}: leave out train=, --frames says how many")
        return f"{definition}{',' if ':' in definition else ':'}train={frames}"
    splits = load_splits(
        load_definition(given_path(definition)), min_box_area=MIN_BOX_AREA, on_bad_label="error"
    )
    if len(splits.train) < frames:
        raise UserError(f"--frames {frames}: {definition} has {len(splits.train)} training images")
    return str(_write(splits, frames, folder))


def _write(splits: Splits, frames: int, folder: Path) -> Path:
    definition: dict[str, Any] = {"class_names": splits.train.class_names}
    keys = {"train": "dataset_paths", "val": "val_paths", "test": "test_paths"}
    for split, key in keys.items():
        # Of an earlier call, maybe with another definition.
        shutil.rmtree(folder / split, ignore_errors=True)
        records = getattr(splits, split)
        images, labels = f"{split}/images", f"{split}/labels"
        for place in (images, labels):
            (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(frames if split == "train" else len(records)):
            path = Path(records.image_paths[i]).resolve()
            # Numbered, as sets may have images of one name.
            name = f"{i:06d}_{path.stem}"
            (folder / images / f"{name}{path.suffix}").symlink_to(path)
            rows = zip(*reversed(records.labels_of(i)), strict=True)
            text = "".join(f"{k} {' '.join(map(str, box))}\n" for k, box in rows)
            (folder / labels / f"{name}.txt").write_text(text, encoding="ascii")
        if len(records):
            definition[key] = {split: {"image_path": images, "label_path": labels}}
    path = folder / "definition.yml"
    # JSON is YAML.
    path.write_text(json.dumps(definition, indent=1), encoding="utf-8")
    return path


def measure(args: argparse.Namespace) -> Figures:
    """Test metrics of all runs."""
    figures: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for frames in args.frames:
        definition = first_frames(args.definition, frames, args.workdir / f"{frames}_frames")
        epochs = max(round(args.steps / math.ceil(frames / BATCH_SIZE)), 1)
        for start in (DRAWN, *args.start):
            for seed in range(args.seeds):
                fields: dict[str, Any] = {
                    "data.definition": definition,
                    "data.image_hw": tuple(args.image_hw),
                    "data.rgb": not args.gray,
                    "data.workers": 0,
                    "train.epochs": epochs,
                    "train.eval_every_epochs": epochs,
                    "train.batch_size": BATCH_SIZE,
                    "optim.warmup_epochs": WARMUP_SHARE * epochs,
                    "seed": seed,
                }
                if start != DRAWN:
                    fields["train.from_pretrained"] = start
                workdir = args.workdir / f"{frames}_{start.replace(' ', '_')}_{seed}"
                run = yogo_jax.train(yogo_jax.Config.from_file("strong", **fields), workdir)
                figures.setdefault((frames, start), []).append(run.metrics)
    return figures


def format_figures(figures: Figures) -> list[str]:
    """Lines of a Markdown table: mean and standard deviation over the seeds."""
    lines = [f"| training frames | start | {' | '.join(METRICS.values())} |", "|---|---|---|---|"]
    for (frames, start), runs in figures.items():
        cells = [spread([run[key] for run in runs]) for key in METRICS]
        lines.append(f"| {frames} | {start} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; the value alone if there is one."""
    text = f"{statistics.fmean(values):.3f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.3f}"


def count(text: str) -> int:
    """A number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--definition", required=True, metavar="FILE.yml|synthetic[:OPTIONS]")
    add("--workdir", required=True, type=Path, help="folder of the runs")
    add("--image-hw", required=True, type=int, nargs=2, metavar=("H", "W"))
    add("--gray", action="store_true", help="one gray channel")
    add("--start", nargs="+", default=["smear"], metavar="NETWORK", help="names or runs")
    add("--frames", type=count, nargs="+", default=[8, 32, 128], metavar="N")
    add("--steps", type=count, default=1000, help="of each run; default: %(default)s")
    add("--seeds", type=count, default=3, help="0 to this number less one; default: %(default)s")
    args = parser.parse_args(arguments)
    with exit_on_user_error():
        print(*format_figures(measure(args)), sep="\n")


if __name__ == "__main__":
    main()
