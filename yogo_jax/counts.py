"""Counts with intervals: `yogo-jax counts estimate|matrix|compensation|coverage`.

Corrects counts of a run by what a validation says of the network, gives parasitemia with intervals,
and writes the files that the instrument's count corrector reads.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import math
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yogo_jax.command import Parser, as_command
from yogo_jax.errors import UserError, check_fractions, flag_of
from yogo_jax.files import path_flag


# Asexual parasites and what they live in; gametocytes are neither, as in the instrument's software.
PARASITE_CLASSES = ("ring", "trophozoite", "schizont")
RED_CELL_CLASSES = ("healthy", *PARASITE_CLASSES)
RED_CELLS_PER_UL = 5e6

Add = Callable[..., Any]


def _class_name(text: str) -> str:
    # In the form of Unicode that class names are read in: the same text has several.
    return unicodedata.normalize("NFC", text)


CLASSES: dict[str, Any] = {"type": _class_name, "nargs": "+", "metavar": "CLASS"}
VALIDATIONS: dict[str, Any] = {"type": path_flag, "nargs": "+", "metavar": "METRICS.json"}

EXAMPLES = """\
examples:
  what is in one run, as counted (boxes of `infer --save-npy`, or counts of `infer --count`):
    yogo-jax counts estimate run.npy
    yogo-jax counts estimate counts.json

  the same, corrected for the network's errors, with files for other programs:
    yogo-jax evaluate runs/first --definition FILE.yml --output results
    yogo-jax counts estimate run.npy --validation results/metrics.json --output counts

  files of the instrument's count corrector, from five folds, and from runs with a reference:
    yogo-jax counts matrix fold-*/metrics.json --model my-model-1 --output data_files
    yogo-jax counts compensation runs.csv --model my-model-1 --output data_files

  whether the intervals can be believed for your network and your number of cells:
    yogo-jax counts coverage --validation results/metrics.json --cells 50000

docs/counts.md derives every number. `COMMAND --help` lists the flags of each.
"""


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.counts",
        description="Counts, parasitemia and parasites per uL with 95 % intervals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_estimate(commands)
    _add_matrix(commands)
    _add_compensation(commands)
    _add_coverage(commands)
    return parser


def _add_estimate(commands: argparse._SubParsersAction) -> None:
    text = "numbers of one sample: counts, parasitemia, parasites per uL, limit of detection"
    add = commands.add_parser("estimate", help=text, description=text).add_argument
    add(
        "counts",
        type=path_flag,
        help="the 15 x N array of a run (.npy), or counts of classes (.json, .csv)",
    )
    add(
        "--validation",
        **VALIDATIONS,
        help="metrics.json of the same network, of one validation or of several folds: corrects "
        "the counts; must have been made at the same thresholds",
    )
    _add_assume_right(add)
    add(
        "--frames",
        type=int,
        help="frames of the sample, for false boxes on background to be subtracted; default: those "
        "that the counts are of, if they say so",
    )
    add(
        "--compensation",
        type=path_flag,
        metavar="FILE.csv",
        help="line between counts and reference, as `compensation` writes it; needs "
        "--min-class-confidence-threshold, whose row is taken",
    )
    _add_line(add)
    add(
        "--obj-thresh",
        type=float,
        help="objectness above which a box of the array counts; default: that of RUN.json beside "
        "it, else 0.5",
    )
    add(
        "--min-class-confidence-threshold",
        type=float,
        help="probability that the best class of a box must reach; default: that of RUN.json, "
        "else 0, the default of `evaluate` (the instrument counts at 0.95). With .json or .csv: "
        "what they were counted at",
    )
    add(
        "--limit-cells",
        type=float,
        nargs="+",
        metavar="N",
        help="red cells to give the limit of detection for; default: those of the sample",
    )
    _add_classes(add)
    add("--output", type=path_flag, help="folder for counts.json and counts.csv; default: none")


def _add_matrix(commands: argparse._SubParsersAction) -> None:
    text = "MODEL-cmatrix-mean.npy and MODEL-inv-cmatrix-std.npy of the instrument's deskewer"
    add = commands.add_parser("matrix", help=text, description=text).add_argument
    add("validation", **VALIDATIONS, help="of one validation, or of each of k folds")
    add(
        "--matched-only",
        action="store_true",
        help="leave missed cells out, so that rows sum to 1; default: rows sum to the share found, "
        "and the correction makes up for missed cells",
    )
    _add_assume_right(add)
    _add_model(add)


def _add_compensation(commands: argparse._SubParsersAction) -> None:
    text = "the compensation file of the instrument, fitted over runs with a reference count"
    add = commands.add_parser("compensation", help=text, description=text).add_argument
    add(
        "runs",
        type=path_flag,
        metavar="RUNS.csv",
        help="lines `run,reference_per_ul` under just that header: .npy files, relative to this "
        "one, and parasites per uL by another method",
    )
    add(
        "--kind",
        choices=("clinical", "cultured"),
        default="clinical",
        help="of the blood; part of the file's name; default: %(default)s",
    )
    add(
        "--heatmaps",
        action="store_true",
        help="the runs are of data cleaned by heatmaps: `with-heatmaps` in the file's name",
    )
    _add_line(add)
    add(
        "--obj-thresh",
        type=float,
        default=0.5,
        help="objectness above which a box counts; default: %(default)s",
    )
    _add_classes(add)
    _add_model(add)


def _add_coverage(commands: argparse._SubParsersAction) -> None:
    text = "how often the intervals hold the truth, by simulation"
    add = commands.add_parser("coverage", help=text, description=text).add_argument
    add(
        "--validation",
        **VALIDATIONS,
        help="taken as the truth about the network; default: a made-up network of seven classes",
    )
    _add_assume_right(add)
    add(
        "--validation-times",
        type=float,
        default=1.0,
        metavar="X",
        help="as if the validation had X times the cells; default: %(default)s",
    )
    add("--parasites", type=float, nargs="+", default=[0.0, 5.0, 50.0, 5000.0], metavar="N")
    add("--cells", type=float, default=20_000.0, help="healthy cells; default: %(default)s")
    add("--frames", type=int, default=400, help="of a sample; default: %(default)s")
    add("--samples", type=int, default=2000, help="drawn for each row; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    _add_roles(add)


def _add_assume_right(add: Add) -> None:
    add(
        "--assume-right",
        **CLASSES,
        default=[],
        help="classes without a true cell in the validation, taken as always found and named right",
    )


def _add_line(add: Add) -> None:
    add(
        "--line",
        choices=("counted", "reference"),
        help="what the line of the file gives. counted: counted = m * reference + b, whose m the "
        "instrument's corrector divides by; reference: reference = m * counted + b; "
        "default: counted",
    )


def _add_roles(add: Add) -> None:
    add(
        "--parasite-classes",
        **CLASSES,
        default=list(PARASITE_CLASSES),
        help=f"default: {' '.join(PARASITE_CLASSES)} (not gametocytes, as the instrument counts)",
    )
    add(
        "--red-cell-classes",
        **CLASSES,
        default=list(RED_CELL_CLASSES),
        help=f"the denominator of a parasitemia; default: {' '.join(RED_CELL_CLASSES)}",
    )


def _add_classes(add: Add) -> None:
    add(
        "--class-names",
        **CLASSES,
        help="classes of the array, in order; default: those of RUN.json beside it, of the "
        "validation, or the instrument's seven",
    )
    _add_roles(add)
    add(
        "--red-cells-per-ul",
        type=float,
        default=RED_CELLS_PER_UL,
        help="red cells in a uL of blood, which turn a parasitemia into parasites per uL; "
        "default: 5e6",
    )


def _add_model(add: Add) -> None:
    add("--model", required=True, help="name of the model: of the folder, and first in file names")
    add("--output", type=path_flag, required=True, help="files go to the folder MODEL in this one")


def check(command: str, given: Mapping[str, Any]) -> None:
    """Refuses values out of range, and flags that would do nothing.

    Args:
      command: its name.
      given: values of its flags, by name.

    Raises:
      UserError: naming the flag, what was expected and what was given.
    """
    confidences = ("obj_thresh", "min_class_confidence_threshold")
    check_fractions(**{name: given.get(name) for name in confidences})
    for name in ("frames", "samples", "cells", "red_cells_per_ul", "validation_times"):
        _check_positive(name, given.get(name))
    for value in given.get("limit_cells") or ():
        _check_positive("limit_cells", value)
    for value in given.get("parasites", ()):
        if not 0 <= value < math.inf:
            raise UserError(f"--parasites must be 0 or more, got {value}")
    model = given.get("model")
    if model is not None and (not model.strip() or Path(model).name != model):
        raise UserError(f"--model must be a name that a file can have, without folders: {model!r}")
    if given.get("assume_right") and not given["validation"]:
        raise UserError("--assume-right completes a validation: give --validation as well")
    if command == "estimate":
        _check_estimate(given)


def _check_estimate(given: Mapping[str, Any]) -> None:
    counts, confidence = given["counts"], given["min_class_confidence_threshold"]
    if given["compensation"] and confidence is None:
        raise UserError(
            "--compensation has a row for each class confidence: say which the counts are of by "
            "--min-class-confidence-threshold"
        )
    if counts.suffix.lower() != ".npy":
        for name in ("obj_thresh", "class_names"):
            if given[name] is not None:
                raise UserError(
                    f"{flag_of(name)} is for the array of a run (.npy); {counts} has been counted "
                    "already"
                )
        if confidence is not None and not given["compensation"]:
            raise UserError(
                f"--min-class-confidence-threshold does nothing here: {counts} has been counted "
                "already, and there is no --compensation"
            )
    for name, needed, why in (
        ("frames", "validation", "subtracts false boxes on background at a validation's rate"),
        ("line", "compensation", "says what the line of a compensation file is"),
    ):
        if given[name] and not given[needed]:
            raise UserError(f"{flag_of(name)} {why}: give {flag_of(needed)} as well")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{flag_of(name)} must be above 0, got {value}")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        given = vars(make_parser().parse_args(argv))
        command = given.pop("command")
        check(command, given)
        # Imported late: a mistake in a flag is told without waiting for SciPy.
        from yogo_jax.counting.compensation import write_compensation
        from yogo_jax.counting.matrix import write_matrices
        from yogo_jax.counting.report import write_estimate
        from yogo_jax.counting.simulation import print_coverage

        work: dict[str, Callable[..., None]] = {
            "estimate": write_estimate,
            "matrix": write_matrices,
            "compensation": write_compensation,
            "coverage": print_coverage,
        }
        work[command](**given)


if __name__ == "__main__":
    main()
