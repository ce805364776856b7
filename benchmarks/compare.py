"""Detectors compared on the same test images: seeds, near-duplicates left out, paired bootstrap.

    python benchmarks/compare.py --definition FILE.yml \
        ours=runs/a0,runs/a1 original=runs/b0,runs/b1 peer=peer0.json,peer1.json

Each group is a name and its runs, which differ by their seed. A run is a workdir, or the detections
of another program on the test images, in COCO's format of results: a JSON list of {"image_id": name
of the image file, "category_id": index of the class, "bbox": [x, y, width, height] in px, "score":
from 0 to 1}.

Test images that share half or more of their field with an image of another split are left out. It
prints mean and standard deviation over the runs of a group, and the difference of its mean to that
of the first group, with the 95 % interval of a bootstrap over the images, which draws the same
images for all.

References:
  Lin et al. 2014, Microsoft COCO, arXiv:1405.0312 (format and mean AP).
  Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
"""

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from yogo_jax.checkpoint.run_data import check_same_classes
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.data.definition import load_definition
from yogo_jax.data.headers import header_hw
from yogo_jax.data.images import read_image
from yogo_jax.data.pipeline import padded_box_count
from yogo_jax.data.records import MIN_BOX_AREA, Records
from yogo_jax.data.splits import load_splits
from yogo_jax.detector.boxes import cxcywh_to_xyxy
from yogo_jax.errors import UserError, exit_on_user_error
from yogo_jax.files import given_path
from yogo_jax.inspection.scan import in_threads
from yogo_jax.metrics.curves import rank
from yogo_jax.metrics.evaluator import Evaluator
from yogo_jax.metrics.intervals import interval, weighted_mean_ap
from yogo_jax.metrics.mean_ap import Ranking, merge, rank_image


RESAMPLES, SEED = 1000, 0
# Two images show one field if they share at least this part of it, and correlate so much there. In
# BCCD 8 test images have 0.969 to 0.987 with an image of another split, all others less than 0.69.
# Unrelated frames of 11 cells have up to 0.89: in a smaller part a few cells that happen to
# lie alike are enough.
SAME_FIELD, LEAST_SHARED = 0.93, 0.5
# Rows and columns to which images are reduced for this, and images compared at a time.
_REDUCED_HW, _AT_ONCE = (60, 80), 256
# Variance, in gray levels squared, under which a part of an image shows nothing to compare.
_LEAST_VARIANCE = 1.0
# Resamples whose weights are held at once.
_DRAWS_AT_ONCE = 50


def usable_records(definition: str, workers: int) -> tuple[Records, list[str]]:
    """The test images that show no field of another split, and lines on what was read.

    Raises:
      UserError: the data cannot be read, or no test image is left.
    """
    splits = load_splits(
        load_definition(definition),
        min_box_area=MIN_BOX_AREA,
        on_bad_label="error",
        require_train=False,
    )
    test, others = splits.test, (*splits.train.image_paths, *splits.val.image_paths)
    if not len(test):
        raise UserError(f"{definition}: has no test split to compare on: add test_paths")

    def reduced(path: str) -> np.ndarray:
        return read_image(path, image_hw=_REDUCED_HW, rgb=False)[..., 0].astype(np.float32)

    images = np.stack([*in_threads(reduced, [*test.image_paths, *others], workers)])
    # Vignetting and dirt on the optics are common to all.
    images -= images.mean(0)
    alike = np.zeros(len(test))
    for start in range(len(test), len(images), _AT_ONCE):
        some = shared_correlation(images[: len(test)], images[start : start + _AT_ONCE])
        alike = np.maximum(alike, some.max(1))
    kept = np.flatnonzero(alike < SAME_FIELD)
    if not len(kept):
        raise UserError(
            f"{definition}: all {len(test)} test images show fields of another split: split by "
            "slide or by run, not by image"
        )
    lines = splits.lines()
    left_out = len(test) - len(kept)
    lines.append(f"{len(kept)} test images; {left_out} more show fields of another split")
    return test.subset(kept), lines


def shared_correlation(
    first: Float[np.ndarray, "n h w"], second: Float[np.ndarray, "m h w"]
) -> Float[np.ndarray, "n m"]:
    """Correlation of the part that two images share, at the shift where it is largest.

    Shifts that leave less than `LEAST_SHARED` of an image are not tried. A part without contrast in
    one of them has the correlation 0.

    References:
      Lewis 1995, Fast Normalized Cross-Correlation, Vision Interface.
    """
    height, width = first.shape[1:]
    size = 2 * height, 2 * width

    def spectrum(images: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(images, size)

    def sums(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        # Sum over the shared part, by shift of `right`.
        return np.fft.irfft2(left.conj() * right)

    ones = spectrum(np.ones((height, width)))
    pixels = np.maximum(sums(ones, ones), 1)
    allowed = pixels > LEAST_SHARED * height * width
    second_spectrum = spectrum(second)
    second_sum = sums(ones, second_spectrum)
    second_energy = sums(ones, spectrum(second**2)) - second_sum**2 / pixels
    best = np.zeros((len(first), len(second)))
    for row, image in enumerate(first):
        own = spectrum(image)
        own_sum = sums(own, ones)
        own_energy = sums(spectrum(image**2), ones) - own_sum**2 / pixels
        product = sums(own, second_spectrum) - own_sum * second_sum / pixels
        energies = own_energy / pixels, second_energy / pixels
        has_contrast = np.minimum(*energies) > _LEAST_VARIANCE
        norm = pixels * np.sqrt(np.maximum(energies[0] * energies[1], _LEAST_VARIANCE**2))
        correlation = np.where(has_contrast, product / norm, 0)
        best[row] = correlation[:, allowed].max(1, initial=0)
    return best


def ranking_of_run(path: Path, records: Records) -> Ranking:
    """The ranked boxes of a run's best checkpoint."""
    folder = find_checkpoint(path)
    metadata = read_metadata(folder)
    check_same_classes("the definition", records.class_names, metadata)
    if override := metadata.data_settings().split_override:
        raise UserError(
            f"{path}: was trained with data.split_override={override}, so that test images may be "
            "training images: train it again without"
        )
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

    Rows of images that are not among the records are left out.

    Raises:
      UserError: the file is none, a row cannot be used, or no row is of these images.
    """
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        names = np.asarray([os.path.basename(str(each["image_id"])) for each in results])
        table = np.asarray(
            [[each["category_id"], *each["bbox"], each["score"]] for each in results], np.float64
        ).reshape(len(results), 6)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: expected a JSON list of {{"image_id", "category_id", "bbox", "score"}}: '
            f"{error!r}"
        ) from error
    classes = len(records.class_names)
    category, _, _, width, height, score = table.T
    usable = (
        np.isfinite(table).all(1)
        & np.isin(category, np.arange(classes))
        & (np.minimum(width, height) > 0)
        & (score >= 0)
        & (score <= 1)
    )
    if not usable.all():
        row = int(np.argmin(usable))
        raise UserError(
            f"{path}: row {row} is {results[row]}; expected a category_id from 0 to {classes - 1}, "
            "a bbox with width and height above 0, and a score from 0 to 1"
        )
    known = [os.path.basename(each) for each in records.image_paths]
    if len(set(known)) < len(known):
        raise UserError(
            f"{path}: two test images have one name, so that its rows cannot be told apart: give "
            "the image files names of their own"
        )
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


def measure(
    ranking: Ranking, weights: Int[np.ndarray, "r images"]
) -> Float[np.ndarray, "r 2_and_k"]:
    """mAP50, mAP50-95 and AP50 of each class, for each row of weights of the images.

    NaN where there is no true box.
    """
    parts = []
    for start in range(0, len(weights), _DRAWS_AT_ONCE):
        values = weighted_mean_ap(ranking, weights[start : start + _DRAWS_AT_ONCE])
        parts.append(np.column_stack([*values.values()]))
    return np.concatenate(parts)


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
      `measure`; `difference` of its mean to the first group's; and `intervals`, the 95 % interval
      of each difference over the images, None where it cannot be known.
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
        runs, _, columns = of_runs.shape
        difference = of_runs.mean(0) - first
        figures[name] = {
            "runs": runs,
            "mean": of_runs[:, 0].mean(0),
            "sd": of_runs[:, 0].std(0, ddof=1) if runs > 1 else np.full(columns, math.nan),
            "difference": difference[0],
            "intervals": [interval(each) if images > 1 else None for each in difference[1:].T],
        }
    return figures


def format_figures(figures: dict[str, dict[str, Any]], class_names: Sequence[str]) -> list[str]:
    """The figures as two tables in Markdown: values, then differences."""
    columns = ("mAP50", "mAP50-95", *(f"AP50 {name}" for name in class_names))
    head = [f"| group | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]

    def row(name: str, cells: Iterator[str]) -> str:
        return f"| {name} | {figures[name]['runs']} | {' | '.join(cells)} |"

    lines = [*head]
    for name, each in figures.items():
        pairs = zip(each["mean"], each["sd"], strict=True)
        lines.append(row(name, (_number(mean) + _number(sd, " ± ", "") for mean, sd in pairs)))
    first, *others = figures
    if not others:
        return lines
    lines += ["", f"Difference to {first}, with its 95 % interval over the images (not over the"]
    lines += ["seeds):", "", *head]
    for name in others:
        pairs = zip(figures[name]["difference"], figures[name]["intervals"], strict=True)
        lines.append(
            row(
                name,
                (
                    _number(value, sign="+")
                    + ("" if bounds is None else f" ({bounds[0]:+.3f} to {bounds[1]:+.3f})")
                    for value, bounds in pairs
                ),
            )
        )
    return lines


def _number(value: float, before: str = "", unknown: str = "-", sign: str = "") -> str:
    return unknown if math.isnan(value) else f"{before}{value:{sign}.3f}"


def read_groups(given: Sequence[str]) -> dict[str, list[Path]]:
    """The runs of each group, from texts as `name=run,run`.

    Raises:
      UserError: a text is none, or a name comes twice.
    """
    groups: dict[str, list[Path]] = {}
    for text in given:
        name, _, runs = text.partition("=")
        paths = runs.split(",")
        if not name or not all(paths):
            raise UserError(f"{text!r}: expected NAME=RUN,RUN,…")
        if name in groups:
            raise UserError(f"{text!r}: there is a group {name!r} already: join their runs")
        groups[name] = [given_path(path) for path in paths]
    return groups


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("groups", nargs="+", metavar="NAME=RUN,RUN,…")
    add("--definition", required=True, metavar="FILE.yml")
    add("--workers", type=int, default=2, help="threads that read images; default: %(default)s")
    args = parser.parse_args(arguments)
    with exit_on_user_error():
        paths = read_groups(args.groups)
        records, lines = usable_records(args.definition, args.workers)
        print(*lines, sep="\n")
        groups = {
            name: [
                (ranking_of_results if path.suffix == ".json" else ranking_of_run)(path, records)
                for path in runs
            ]
            for name, runs in paths.items()
        }
        print(*format_figures(compare(groups), records.class_names), sep="\n")


if __name__ == "__main__":
    main()
