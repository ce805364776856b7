"""Counts with intervals: `python -m yogo_jax.counts estimate|matrix|compensation|coverage`.

Corrects counts of a run by what a validation says of the network, gives parasitemia with intervals,
and writes the files that the instrument's count corrector reads.
"""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yogo_jax.command import Parser, as_command
from yogo_jax.counting.flags import (
    add_compensation,
    add_coverage,
    add_estimate,
    add_matrix,
)
from yogo_jax.errors import UserError, check_fractions, flag_of


EXAMPLES = """\
examples:
  what is in one run, as counted (boxes of `infer --save-npy`, or counts of `infer --count`):
    python -m yogo_jax.counts estimate run.npy
    python -m yogo_jax.counts estimate counts.json

  the same, corrected for the network's errors, with files for other programs:
    python -m yogo_jax.evaluate runs/first --definition FILE.yml --output results
    python -m yogo_jax.counts estimate run.npy --validation results/metrics.json --output counts

  files of the instrument's count corrector, from five folds, and from runs with a reference:
    python -m yogo_jax.counts matrix fold-*/metrics.json --model my-model-1 --output data_files
    python -m yogo_jax.counts compensation runs.csv --model my-model-1 --output data_files

  whether the intervals can be believed for your network and your number of cells:
    python -m yogo_jax.counts coverage --validation results/metrics.json --cells 50000

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
    add_estimate(commands)
    add_matrix(commands)
    add_compensation(commands)
    add_coverage(commands)
    return parser


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
        ("frames", "validation", "subtracts boxes on nothing, at the rate of a validation"),
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
        from yogo_jax.counting import commands

        getattr(commands, command)(**given)


if __name__ == "__main__":
    main()
