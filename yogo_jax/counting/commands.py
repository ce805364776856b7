"""The work of `python -m yogo_jax.counts`: from flags that were checked to tables and files."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.counting import compensation as compensation_files
from yogo_jax.counting import compensation as lines
from yogo_jax.counting import files, simulation, thresholds
from yogo_jax.counting import matrix as matrices
from yogo_jax.counting.estimate import corrected_evidence, find_roles
from yogo_jax.counting.files import Sample
from yogo_jax.counting.matrix import Validation
from yogo_jax.counting.report import (
    Inputs,
    compensated_values,
    count_values,
    format_coverage,
    format_estimate,
    number,
    results_csv,
)
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, whole_file, write_atomically, write_json
from yogo_jax.reports.tables import align


# Rows of a compensation file that are shown at the terminal.
SHOWN_CONFIDENCES = (0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)


def estimate(args: argparse.Namespace) -> dict[str, Any]:
    """Numbers of one sample, printed, and written to `args.output` if it is given.

    Raises:
      UserError: counts, validation or compensation cannot be used, or do not fit each other.
    """
    if args.output:
        make_folder(args.output, "--output")
        if (args.output / thresholds.SUMMARY).exists():
            raise UserError(
                f"--output {args.output}: counts.json and counts.csv there are of `infer`, and "
                "would be overwritten: choose another folder"
            )
    validation = _pooled(args.validation) if args.validation else None
    sample, threshold_notes = _sample(args, validation)
    line = None
    if args.compensation:
        line = compensation_files.read_line(args.compensation, args.min_class_confidence_threshold)
    frames = args.frames or sample.frames
    roles = find_roles(sample.class_names, args.parasite_classes, args.red_cell_classes)
    evidence = None
    notes = [f"{args.counts}: {sample.note}."] if sample.note else []
    if validation:
        evidence = corrected_evidence(
            sample, validation, frames=frames, assume_right=args.assume_right
        )
        notes += _correction_notes(args, frames) + threshold_notes
    values = count_values(
        Inputs(
            sample,
            roles,
            evidence,
            validation,
            frames,
            args.red_cells_per_ul,
            args.limit_cells or (),
            notes,
        )
    )
    if line:
        counted = values["raw"]["parasites_per_ul"]
        limits = counted["estimate"], counted["lower"], counted["upper"]
        kind = args.line or lines.LINES[0]
        found = lines.compensate(line, kind, limits)
        values["compensated"] = compensated_values(found, args.red_cells_per_ul)
        values["compensation"] = {
            "file": str(args.compensation),
            "line": kind,
            **{
                name: value if np.isfinite(value) else None
                for name, value in line._asdict().items()
            },
        }
        values["notes"] += _line_notes(line, kind)
    print(format_estimate(values))
    if args.output:
        write_json(args.output / "counts.json", values)
        write_atomically(args.output / "counts.csv", results_csv(values))
        print(f"written {args.output / 'counts.json'} and counts.csv")
    return values


def matrix(args: argparse.Namespace) -> None:
    """The two matrices of the instrument's deskewer.

    Raises:
      UserError: a validation cannot be used, or its matrix cannot be inverted.
    """
    folder = make_folder(args.output / args.model, "--output")
    validations = [matrices.read_validation(path) for path in args.validation]
    pooled = matrices.pool(validations)
    matrices.check_invertible(pooled, assume_right=args.assume_right)
    mean, scatter = matrices.mean_and_inverse_scatter(
        validations, matched_only=args.matched_only, assume_right=args.assume_right
    )
    names = pooled.class_names
    header = ["", *names]
    print("P(called column | true row), mean")
    print("\n".join(align(header, _matrix_rows(names, mean))))
    source = f"{len(validations)} folds" if len(validations) > 1 else "draws of the one validation"
    print(f"\nstandard deviation of its inverse, from {source}")
    print("\n".join(align(header, _matrix_rows(names, scatter))))
    for suffix, array in (("cmatrix-mean", mean), ("inv-cmatrix-std", scatter)):
        path = folder / f"{args.model}-{suffix}.npy"
        file = io.BytesIO()
        np.save(file, array)
        with whole_file(path) as temporary:
            temporary.write_bytes(file.getvalue())
        print(f"written {path}")


def compensation(args: argparse.Namespace) -> None:
    """The compensation file of the instrument, from runs with a reference count.

    Raises:
      UserError: the list or a run cannot be read, or no line can be fitted at any confidence.
    """
    folder = make_folder(args.output / args.model, "--output")
    runs = compensation_files.read_runs(args.runs)
    confidences = lines.confidence_values()
    per_ul = []
    for path, _ in runs:
        run = files.read_run_array(path, args.class_names)
        # Refuses an array that lacks boxes which count at some of the confidences.
        thresholds.of_array(
            thresholds.recorded_by_run(path, run.class_names),
            objectness=args.obj_thresh,
            min_class_confidence=min(confidences),
        )
        roles = find_roles(run.class_names, args.parasite_classes, args.red_cell_classes)
        counts = files.counts_by_confidence(
            run, objectness_threshold=args.obj_thresh, confidences=confidences
        )
        red_cells = counts[:, roles.red_cells].sum(1)
        parasites = counts[:, roles.parasites].sum(1)
        share = np.full(len(confidences), np.nan)
        np.divide(parasites, red_cells, out=share, where=red_cells > 0)
        per_ul.append(share * args.red_cells_per_ul)
    counted = dict(zip(confidences, np.stack(per_ul, axis=1), strict=True)) if runs else {}
    references = np.array([reference for _, reference in runs])
    kind = args.line or lines.LINES[0]
    fitted, left_out = lines.fit_lines(counted, references, kind)
    left_out_lines = lines.describe_left_out(left_out)
    if not fitted:
        raise UserError(f"{args.runs}: " + "; ".join(left_out_lines or ["no run in it"]))
    heatmaps = "with" if args.heatmaps else "no"
    path = folder / f"{args.model}-{args.kind}-compensation-{heatmaps}-heatmaps.csv"
    write_atomically(path, compensation_files.compensation_csv(fitted))
    print(_compensation_table(fitted, kind, len(runs)))
    for text in left_out_lines:
        print(text)
    print(f"written {path}")


def coverage(args: argparse.Namespace) -> list[dict[str, Any]]:
    """How often the intervals hold the truth, by simulation; printed.

    Raises:
      UserError: the validation cannot be used.
    """
    names: Sequence[str] = files.INSTRUMENT_CLASSES
    detector = simulation.example_detector()
    if args.validation:
        validation = _pooled(args.validation)
        matrices.check_invertible(validation, assume_right=args.assume_right)
        names, detector = validation.class_names, simulation.detector_like(validation)
    detector = simulation.with_validation_times(detector, args.validation_times)
    roles = find_roles(names, args.parasite_classes, args.red_cell_classes)
    rows = simulation.coverage_table(
        detector,
        roles,
        parasites=args.parasites,
        healthy=args.cells,
        frames=args.frames,
        samples=args.samples,
        seed=args.seed,
    )
    print(
        f"{args.samples} samples of {args.cells:g} healthy cells in {args.frames} frames, each "
        f"with a validation of {detector.cells.sum():.0f} cells in {detector.images} frames; 95 % "
        "intervals"
    )
    print(format_coverage(rows))
    refused = sum(row["refused"] for row in rows)
    if refused:
        print(
            f"{refused} sample(s) left out: their validation happened to have a matrix that cannot "
            "be inverted, as is refused in earnest too"
        )
    return rows


def _pooled(paths: Sequence[Path]) -> Validation:
    return matrices.pool([matrices.read_validation(path) for path in paths])


def _sample(args: argparse.Namespace, validation: Validation | None) -> tuple[Sample, list[str]]:
    """The counts, with their classes in the order of the validation; notes on their thresholds."""
    names = validation.class_names if validation else None
    if args.counts.suffix.lower() == ".npy":
        run = files.read_run_array(args.counts, args.class_names, expected=names)
        recorded = thresholds.recorded_by_run(args.counts, run.class_names)
        objectness, min_class_confidence = thresholds.of_array(
            recorded,
            objectness=args.obj_thresh,
            min_class_confidence=args.min_class_confidence_threshold,
        )
        sample = files.count_run(
            run, objectness_threshold=objectness, min_class_confidence=min_class_confidence
        )
        counted_at = recorded.at._replace(
            objectness=objectness, min_class_confidence=min_class_confidence
        )
    else:
        sample = files.read_counts(args.counts)
        recorded = thresholds.recorded_by_run(args.counts, sample.class_names)
        counted_at = thresholds.of_counts(
            recorded, min_class_confidence=args.min_class_confidence_threshold
        )
    if validation is None:
        return sample, []
    sample = files.reordered(sample, validation.class_names)
    made_at = thresholds.Recorded(args.validation[0], validation.counted_at)
    thresholds.check_same(recorded, counted_at, made_at)
    return sample, thresholds.notes_on_unknown(recorded, made_at)


def _correction_notes(args: argparse.Namespace, frames: int | None) -> list[str]:
    notes = []
    if frames is None:
        notes.append(
            "Boxes on nothing are not subtracted, the number of frames is not known: give --frames."
        )
    elif not args.frames and args.counts.suffix.lower() == ".npy":
        notes.append(
            f"{frames} frames have boxes; if others were looked at too, give all by --frames."
        )
    if args.assume_right:
        notes.append(
            f"Assumed, not validated: {', '.join(args.assume_right)} always found and named right."
        )
    return notes


def _line_notes(line: lines.Line, kind: str) -> list[str]:
    """A word where a file may be of the other line: networks rather miss parasites."""
    plausible = line.m <= 1 if kind == "counted" else line.m >= 1
    if plausible:
        return []
    return [
        f"As --line {kind}, m = {line.m:.4g} says that more parasites are counted than there are: "
        "is the file of the other line?"
    ]


def _matrix_rows(names: Sequence[str], values: np.ndarray) -> list[list[str]]:
    return [
        [name, *(f"{value:.5f}" for value in row)] for name, row in zip(names, values, strict=True)
    ]


def _compensation_table(fitted: dict[float, lines.Line], kind: str, runs: int) -> str:
    shown = [value for value in SHOWN_CONFIDENCES if value in fitted] or list(fitted)[:1]
    equation = "counted = m * reference + b" if kind == "counted" else "reference = m * counted + b"
    rows = [
        [
            f"{value:g}",
            number(line.m),
            number(line.variance_m**0.5),
            number(line.b),
            number(line.variance_b**0.5),
            number(line.ratio_spread),
        ]
        for value, line in ((value, fitted[value]) for value in shown)
    ]
    header = ["confidence", "m", "+-", "b", "+-", "spread of ratio"]
    return "\n".join([f"{equation} (per uL), {runs} runs", *align(header, rows)])
