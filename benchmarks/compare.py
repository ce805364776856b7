"""Detectors compared on the same test images: seeds, near-duplicates left out, paired bootstrap.

    python benchmarks/compare.py --definition FILE.yml \
        ours=runs/a0,runs/a1 original=runs/b0,runs/b1 peer=peer0.json,peer1.json

Each group is a name and its runs, which differ by their seed. A run is a workdir, or the detections
of another program on the test images, in COCO's format of results: a JSON list of {"image_id": name
of the image file, "category_id": index of the class, "bbox": [x, y, width, height] in px, "score":
from 0 to 1}.

Test images that are nearly the same as an image of another split are left out. Printed are mean and
standard deviation over the runs of a group, and the difference of its mean to that of the first
group, with the 95 % interval of a bootstrap over the images, which draws the same images for all.

References:
  Lin et al. 2014, Microsoft COCO, arXiv:1405.0312 (format and mean AP).
  Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from yogo_jax.checkpoint.run_data import check_same_classes
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.data.definition import load_definition
from yogo_jax.data.headers import header_hw
from yogo_jax.data.pipeline import padded_box_count
from yogo_jax.data.records import MIN_BOX_AREA, Records
from yogo_jax.data.splits import load_splits
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.inspection.duplicates import identical_groups, near_groups
from yogo_jax.inspection.scan import scan_images
from yogo_jax.metrics.curves import rank
from yogo_jax.metrics.evaluator import Evaluator
from yogo_jax.metrics.intervals import interval
from yogo_jax.metrics.mean_ap import Ranking, average_precision, merge, rank_image


RESAMPLES, SEED = 1000, 0


def test_images(definition: str, workers: int) -> tuple[Records, int]:
    """The test images, and how many were left out since another split has nearly the same.

    Raises:
      UserError: the data cannot be read, or no test image is left.
    """
    splits = load_splits(
        load_definition(definition),
        min_box_area=MIN_BOX_AREA,
        on_bad_label="error",
        require_train=False,
    )
    test = splits.test
    others = (*splits.train.image_paths, *splits.val.image_paths)
    scanned = scan_images([*others, *test.image_paths], workers=workers)
    seen: set[int] = set()
    for group in (*identical_groups(scanned.digests), *near_groups(scanned, workers=workers)):
        if group.indices[0] < len(others):
            seen.update(index - len(others) for index in group.indices if index >= len(others))
    kept = [index for index in range(len(test)) if index not in seen]
    if not kept:
        raise UserError(f"{definition}: expected test images that no other split has, found none")
    return test.subset(kept), len(seen)


def ranking_of_run(path: Path, records: Records) -> Ranking:
    """The ranked boxes of a run's best checkpoint."""
    folder = find_checkpoint(path)
    metadata = read_metadata(folder)
    check_same_classes("the definition", records.class_names, metadata)
    evaluator = Evaluator(
        metadata.model,
        loss_weights=metadata.loss_weights(),
        batch_size=1,
        max_boxes=padded_box_count([records], 0),
        workers=0,
    )
    variables = restore_variables(folder, metadata.model)
    images = evaluator.run(variables, records, keep_images=True).images
    return rank(images, len(records.class_names))


def ranking_of_results(path: Path, records: Records) -> Ranking:
    """The ranked boxes of another program, from a file of COCO's format of results.

    Raises:
      UserError: the file is none, or names an unknown class or no test image at all.
    """
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (str(each["image_id"]), int(each["category_id"]), *each["bbox"], float(each["score"]))
            for each in results
        ]
        table = np.asarray([row[1:] for row in rows], np.float64).reshape(len(rows), 6)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: expected a JSON list of {{"image_id", "category_id", "bbox", "score"}}: '
            f"{error!r}"
        ) from error
    classes = len(records.class_names)
    if len(table) and not (table[:, 0].min() >= 0 and table[:, 0].max() < classes):
        raise UserError(f"{path}: category_id must be from 0 to {classes - 1}")
    names = np.asarray([os.path.basename(row[0]) for row in rows])
    known = [os.path.basename(each) for each in records.image_paths]
    if len(set(known)) < len(known):
        raise UserError(f"{path}: two test images have one name, so results cannot be told apart")
    if not set(known) & set(names.tolist()):
        raise UserError(f"{path}: names none of the test images, such as {known[0]}")
    rankings = []
    for index, image_path in enumerate(records.image_paths):
        size = header_hw(image_path)
        if size is None:
            raise UserError(f"{image_path}: cannot be read as an image")
        own = table[names == known[index]]
        x, y, width, height = own[:, 1:5].T
        height_px, width_px = size
        sides = np.asarray((width_px, height_px, width_px, height_px))
        boxes = (np.stack([x, y, x + width, y + height], axis=1) / sides).clip(0, 1)
        scores = np.full((len(own), classes), -np.inf)
        scores[np.arange(len(own)), own[:, 0].astype(int)] = own[:, 5]
        labels, class_ids = records.labels_of(index)
        rankings.append(rank_image(boxes, scores, cxcywh_to_xyxy(labels).clip(0, 1), class_ids))
    return merge(rankings, classes)


def measure(ranking: Ranking, weights: np.ndarray) -> Float[np.ndarray, "r 2_and_k"]:
    """mAP50, mAP50-95 and AP50 of each class, for each row of weights of the images."""
    classes = ranking.objects.shape[1]
    ap = np.stack([average_precision(ranking.of_class(k), weights) for k in range(classes)], axis=1)
    means = np.nanmean(ap[:, :, 0], axis=1), np.nanmean(ap.mean(-1), axis=1)
    return np.concatenate([np.stack(means, axis=1), ap[:, :, 0]], axis=1)


def compare(
    groups: dict[str, Sequence[Ranking]], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, dict[str, Any]]:
    """Figures of each group of runs on the same images.

    Args:
      groups: rankings of each run, by the group's name; the first group is compared with.
      resamples: of the bootstrap.
      seed: of its draws.

    Returns:
      For each group `mean` and `sd` over its runs (sd is NaN for one run), in the columns of
      `measure`; `less_first`, the difference of its mean to the first group's, and the 95 %
      `intervals` of that.
    """
    images = len(next(iter(groups.values()))[0].objects)
    draws = np.random.default_rng(seed).multinomial(
        images, np.full(images, 1 / images), size=resamples
    )
    weights = np.concatenate([np.ones((1, images), np.int64), draws])
    values = {
        name: np.stack([measure(ranking, weights) for ranking in rankings])
        for name, rankings in groups.items()
    }
    first = next(iter(values.values())).mean(0)
    figures: dict[str, dict[str, Any]] = {}
    for name, of_runs in values.items():
        difference = of_runs.mean(0) - first
        figures[name] = {
            "runs": len(of_runs),
            "mean": of_runs[:, 0].mean(0),
            "sd": of_runs[:, 0].std(0, ddof=1)
            if len(of_runs) > 1
            else np.full(of_runs.shape[2], math.nan),
            "less_first": difference[0],
            "intervals": [interval(column) for column in difference[1:].T],
        }
    return figures


def lines_of(figures: dict[str, dict[str, Any]], class_names: Sequence[str]) -> list[str]:
    """The figures as two tables in Markdown: values, then differences."""
    columns = ("mAP50", "mAP50-95", *(f"AP50 {name}" for name in class_names))
    head = [f"| group | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    lines = [*head]
    for name, each in figures.items():
        cells = (
            f"{mean:.3f}" + ("" if math.isnan(sd) else f" ± {sd:.3f}")
            for mean, sd in zip(each["mean"], each["sd"], strict=True)
        )
        lines.append(f"| {name} | {each['runs']} | {' | '.join(cells)} |")
    first, *others = figures
    lines += ["", f"Difference to {first}, with the 95 % interval over the images:", "", *head]
    for name in others:
        each = figures[name]
        cells = (
            f"{value:+.3f}" + ("" if bounds is None else f" ({bounds[0]:+.3f} to {bounds[1]:+.3f})")
            for value, bounds in zip(each["less_first"], each["intervals"], strict=True)
        )
        lines.append(f"| {name} | {each['runs']} | {' | '.join(cells)} |")
    return lines if others else lines[: len(figures) + 2]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("groups", nargs="+", metavar="NAME=RUN,RUN,…")
    add("--definition", required=True, metavar="FILE.yml")
    add("--workers", type=int, default=2, help="threads that read images; default: %(default)s")
    args = parser.parse_args()
    with exit_on_user_error():
        records, left_out = test_images(args.definition, args.workers)
        print(f"{len(records)} test images; {left_out} more are nearly those of another split")
        groups = {}
        for given in args.groups:
            name, is_named, runs = given.partition("=")
            if not is_named or not runs:
                raise UserError(f"{given!r}: expected NAME=RUN,RUN,…")
            groups[name] = [
                (ranking_of_results if path.suffix == ".json" else ranking_of_run)(path, records)
                for path in map(Path, runs.split(","))
            ]
        print(*lines_of(compare(groups), records.class_names), sep="\n")


if __name__ == "__main__":
    main()
