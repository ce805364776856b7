"""The work of `python -m yogo_jax.counts`: from values that were checked to tables and files."""

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
from yogo_jax.counting.flags import PARASITE_CLASSES, RED_CELL_CLASSES, RED_CELLS_PER_UL
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


def estimate(
    counts: Path,
    *,
    validation: Sequence[Path] | None = None,
    assume_right: Sequence[str] = (),
    frames: int | None = None,
    compensation: Path | None = None,
    line: str | None = None,
    obj_thresh: float | None = None,
    min_class_confidence_threshold: float | None = None,
    limit_cells: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    parasite_classes: Sequence[str] = PARASITE_CLASSES,
    red_cell_classes: Sequence[str] = RED_CELL_CLASSES,
    red_cells_per_ul: float = RED_CELLS_PER_UL,
    output: Path | None = None,
) -> dict[str, Any]:
    """Numbers of one sample, printed, and written to a folder if one is given.

    The arguments are those of `add_estimate`.

    Raises:
      UserError: counts, validation or compensation cannot be used, or do not fit each other.
    """
    if output:
        make_folder(output, "--output")
        if (output / thresholds.SUMMARY).exists():
            raise UserError(
                f"--output {output}: counts.json and counts.csv there are of `infer`, and "
                "would be overwritten: choose another folder"
            )
    pooled = _pooled(validation) if validation else None
    is_array = counts.suffix.lower() == ".npy"
    sample, counted, recorded = (
        _count_array(counts, pooled, class_names, obj_thresh, min_class_confidence_threshold)
        if is_array
        else _read_counts(counts, min_class_confidence_threshold)
    )
    threshold_notes = []
    if validation and pooled:
        sample = files.reordered(sample, pooled.class_names)
        made_at = thresholds.Recorded(validation[0], pooled.counted_at)
        thresholds.check_same(recorded, counted, made_at)
        threshold_notes = thresholds.notes_on_unknown(recorded, made_at)
    fitted = None
    if compensation:
        assert min_class_confidence_threshold is not None
        fitted = compensation_files.read_line(compensation, min_class_confidence_threshold)
    all_frames = frames or sample.frames
    roles = find_roles(sample.class_names, parasite_classes, red_cell_classes)
    evidence = None
    notes = [f"{counts}: {sample.note}."] if sample.note else []
    if pooled:
        evidence = corrected_evidence(sample, pooled, frames=all_frames, assume_right=assume_right)
        if all_frames is None:
            notes.append(
                "Boxes on nothing are not subtracted, the number of frames is not known: give "
                "--frames."
            )
        elif not frames and is_array:
            notes.append(
                f"{all_frames} frames have boxes; if others were looked at too, give all by "
                "--frames."
            )
        if assume_right:
            notes.append(
                f"Assumed, not validated: {', '.join(assume_right)} always found and named right."
            )
        notes += threshold_notes
    values = count_values(
        Inputs(
            sample,
            roles,
            evidence,
            pooled,
            all_frames,
            red_cells_per_ul,
            limit_cells or (),
            notes,
        )
    )
    if fitted:
        counted_per_ul = values["raw"]["parasites_per_ul"]
        limits = tuple(counted_per_ul[name] for name in ("estimate", "lower", "upper"))
        kind = line or lines.LINES[0]
        found = lines.compensate(fitted, kind, limits)
        values["compensated"] = compensated_values(found, red_cells_per_ul)
        values["compensation"] = {
            "file": str(compensation),
            "line": kind,
            **{
                name: value if np.isfinite(value) else None
                for name, value in fitted._asdict().items()
            },
        }
        values["notes"] += _line_notes(fitted, kind)
    print(format_estimate(values))
    if output:
        write_json(output / "counts.json", values)
        write_atomically(output / "counts.csv", results_csv(values))
        print(f"written {output / 'counts.json'} and counts.csv")
    return values


def matrix(
    validation: Sequence[Path],
    *,
    model: str,
    output: Path,
    matched_only: bool = False,
    assume_right: Sequence[str] = (),
) -> None:
    """Writes the two matrices of the instrument's deskewer, and prints them.

    The arguments are those of `add_matrix`.

    Raises:
      UserError: a validation cannot be used, or its matrix cannot be inverted.
    """
    folder = make_folder(output / model, "--output")
    validations = [matrices.read_validation(path) for path in validation]
    pooled = matrices.pool(validations)
    matrices.check_invertible(pooled, assume_right=assume_right)
    mean, scatter = matrices.mean_and_inverse_scatter(
        validations, matched_only=matched_only, assume_right=assume_right
    )
    names = pooled.class_names
    header = ["", *names]
    print("P(called column | true row), mean")
    print("\n".join(align(header, _matrix_rows(names, mean))))
    source = f"{len(validations)} folds" if len(validations) > 1 else "draws of the one validation"
    print(f"\nstandard deviation of its inverse, from {source}")
    print("\n".join(align(header, _matrix_rows(names, scatter))))
    for suffix, array in (("cmatrix-mean", mean), ("inv-cmatrix-std", scatter)):
        path = folder / f"{model}-{suffix}.npy"
        file = io.BytesIO()
        np.save(file, array)
        with whole_file(path) as temporary:
            temporary.write_bytes(file.getvalue())
        print(f"written {path}")


def compensation(
    runs: Path,
    *,
    model: str,
    output: Path,
    kind: str = "clinical",
    heatmaps: bool = False,
    line: str | None = None,
    obj_thresh: float = 0.5,
    class_names: Sequence[str] | None = None,
    parasite_classes: Sequence[str] = PARASITE_CLASSES,
    red_cell_classes: Sequence[str] = RED_CELL_CLASSES,
    red_cells_per_ul: float = RED_CELLS_PER_UL,
) -> None:
    """Writes the compensation file of the instrument, from runs with a reference count.

    The arguments are those of `add_compensation`.

    Raises:
      UserError: the list or a run cannot be read, or no line can be fitted at any confidence.
    """
    folder = make_folder(output / model, "--output")
    references_of = compensation_files.read_runs(runs)
    confidences = lines.confidence_values()
    per_ul = []
    for path, _ in references_of:
        run = files.read_run_array(path, class_names)
        # Refuses an array that lacks boxes which count at some of the confidences.
        thresholds.of_array(
            thresholds.recorded_by_run(path, run.class_names),
            objectness=obj_thresh,
            min_class_confidence=min(confidences),
        )
        roles = find_roles(run.class_names, parasite_classes, red_cell_classes)
        counts = files.counts_by_confidence(
            run, objectness_threshold=obj_thresh, confidences=confidences
        )
        red_cells = counts[:, roles.red_cells].sum(1)
        parasites = counts[:, roles.parasites].sum(1)
        share = np.full(len(confidences), np.nan)
        np.divide(parasites, red_cells, out=share, where=red_cells > 0)
        per_ul.append(share * red_cells_per_ul)
    counted = dict(zip(confidences, np.stack(per_ul, axis=1), strict=True)) if per_ul else {}
    references = np.array([reference for _, reference in references_of])
    line = line or lines.LINES[0]
    fitted, left_out = lines.fit_lines(counted, references, line)
    left_out_lines = lines.describe_left_out(left_out)
    if not fitted:
        raise UserError(f"{runs}: " + "; ".join(left_out_lines or ["no run in it"]))
    cleaned = "with" if heatmaps else "no"
    path = folder / f"{model}-{kind}-compensation-{cleaned}-heatmaps.csv"
    write_atomically(path, compensation_files.compensation_csv(fitted))
    print(_compensation_table(fitted, line, len(references_of)))
    for text in left_out_lines:
        print(text)
    print(f"written {path}")


def coverage(
    *,
    validation: Sequence[Path] | None = None,
    assume_right: Sequence[str] = (),
    validation_times: float = 1.0,
    parasites: Sequence[float] = (0.0, 5.0, 50.0, 5000.0),
    cells: float = 20_000.0,
    frames: int = 400,
    samples: int = 2000,
    seed: int = 0,
    parasite_classes: Sequence[str] = PARASITE_CLASSES,
    red_cell_classes: Sequence[str] = RED_CELL_CLASSES,
) -> list[dict[str, Any]]:
    """Simulates how often the intervals hold the truth, and prints it.

    The arguments are those of `add_coverage`.

    Raises:
      UserError: the validation cannot be used.
    """
    names: Sequence[str] = files.INSTRUMENT_CLASSES
    detector = simulation.example_detector()
    if validation:
        pooled = _pooled(validation)
        matrices.check_invertible(pooled, assume_right=assume_right)
        names, detector = pooled.class_names, simulation.detector_like(pooled)
    detector = simulation.with_validation_times(detector, validation_times)
    roles = find_roles(names, parasite_classes, red_cell_classes)
    rows = simulation.coverage_table(
        detector,
        roles,
        parasites=parasites,
        healthy=cells,
        frames=frames,
        samples=samples,
        seed=seed,
    )
    print(
        f"{samples} samples of {cells:g} healthy cells in {frames} frames, each "
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


Counted = tuple[Sample, thresholds.CountedAt, thresholds.Recorded]


def _count_array(
    path: Path,
    validation: Validation | None,
    class_names: Sequence[str] | None,
    obj_thresh: float | None,
    min_class_confidence: float | None,
) -> Counted:
    """The counts of a run's array, the thresholds they are counted at, and those of its record."""
    expected = validation.class_names if validation else None
    run = files.read_run_array(path, class_names, expected=expected)
    recorded = thresholds.recorded_by_run(path, run.class_names)
    objectness, confidence = thresholds.of_array(
        recorded, objectness=obj_thresh, min_class_confidence=min_class_confidence
    )
    sample = files.count_run(run, objectness_threshold=objectness, min_class_confidence=confidence)
    at = recorded.at._replace(objectness=objectness, min_class_confidence=confidence)
    return sample, at, recorded


def _read_counts(path: Path, min_class_confidence: float | None) -> Counted:
    """Counts of a file, the thresholds they were counted at, and those of its record."""
    sample = files.read_counts(path)
    recorded = thresholds.recorded_by_run(path, sample.class_names)
    at = thresholds.of_counts(recorded, min_class_confidence=min_class_confidence)
    return sample, at, recorded


def _line_notes(line: lines.Line, kind: str) -> list[str]:
    """A note where a file may be of the other line: networks tend to miss parasites."""
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
