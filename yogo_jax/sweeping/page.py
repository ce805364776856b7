"""The report of a sweep as one HTML page."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

from yogo_jax.evaluation.pages import Block, Code, Link, Section, Table, Text, render_page
from yogo_jax.sweeping.figures import (
    coordinates_figure,
    cost_figures,
    course_figure,
    importance_figure,
)
from yogo_jax.sweeping.results import (
    MIN_TRIALS_FOR_IMPORTANCE,
    SweepResults,
    TrialResult,
    minutes,
    short_text,
)
from yogo_jax.sweeping.space import as_text
from yogo_jax.training.logged import flat


def sweep_page(results: SweepResults, folder: Path) -> str:
    """The page as HTML, for a file in `folder`, to which its links are relative."""
    sections = [
        _summary(results),
        _trials(results),
        _what_matters(results),
        _cost(results),
        _tests(results, folder),
        _search(results),
    ]
    return render_page(
        f"Sweep {results.name}",
        results.summary(),
        [section for section in sections if section.blocks],
    )


def _summary(results: SweepResults) -> Section:
    objective = results.objective
    blocks: list[Block] = []
    if results.ranked:
        best = results.ranked[0]
        epochs = f"{best.figures['best_epoch']} of {best.config['train']['epochs']} epochs"
        blocks += [
            Text(
                f"Best is trial {best.number} with {objective} {best.value:.4f} on the validation "
                f"images, after {epochs}. It is the best of many tries on these images, so expect "
                "less on others: its test says how much."
            ),
            _best_table(results, best),
            Code("To train it again", _command(best)),
        ]
    else:
        blocks.append(Text("No trial is complete yet."))
    if any(each.value is not None for each in results.trials):
        blocks.append(course_figure(results))
    return Section("summary", "Summary", blocks)


def _best_table(results: SweepResults, best: TrialResult) -> Table:
    shared = flat(results.space.base)
    rows: list[list[object]] = [
        [field, short_text(best.chosen[field]), as_text(shared[field])] for field in results.fields
    ]
    return Table(["field", "best trial", "base config"], rows, "What was searched.")


def _command(trial: TrialResult) -> str:
    """The training of a trial as a command that names every field."""
    lines = ["python -m yogo_jax.train --config configs/base.py --workdir runs/best"]
    for name, value in flat(trial.config).items():
        # What is empty is so in base.py, and W&B is told of another run.
        if value not in ("", []) and not name.startswith("track."):
            lines.append(f"--config.{name}={shlex.quote(as_text(value))}")
    return " \\\n    ".join(lines)


def _trials(results: SweepResults) -> Section:
    header = ["trial", "state", results.objective, "epochs", "minutes", "parameters"]
    header += ["frames/s", "taken up again", *results.fields]
    rest = [each for each in results.trials if each.state not in ("complete", "waiting")]
    rows: list[list[object]] = [
        [
            str(each.number),
            each.state,
            each.value,
            each.epochs,
            short_text(minutes(each)),
            each.figures.get("parameters"),
            each.figures.get("frames_per_second"),
            each.taken_up,
            *(short_text(each.chosen.get(field)) for field in results.fields),
        ]
        for each in [*results.ranked, *rest]
    ]
    if not rows:
        return Section("trials", "Trials", [Text("No trial has begun yet.")])
    caption = (
        "Complete trials, best first, then the others by number. Of a trial that is not complete "
        "the objective is that of its last validation."
    )
    blocks: list[Block] = [Table(header, rows, caption)]
    devices = {each.figures["device"] for each in results.ranked if "device" in each.figures}
    if devices:
        blocks.append(Text(f"Frames/s were measured on {', '.join(sorted(devices))}."))
    blocks += [
        Text(f"Trial {each.number} {each.state}: {each.reason}") for each in rest if each.reason
    ]
    return Section("trials", "Trials", blocks)


def _what_matters(results: SweepResults) -> Section:
    blocks: list[Block] = []
    complete = len(results.ranked)
    if complete:
        blocks.append(coordinates_figure(results))
    if results.importance:
        blocks.append(importance_figure(results.importance, complete))
    else:
        blocks.append(
            Text(
                f"Importance takes {MIN_TRIALS_FOR_IMPORTANCE} complete trials that differ in "
                f"{results.objective}; {complete} are complete."
            )
        )
    return Section("matters", "What matters", blocks)


def _cost(results: SweepResults) -> Section:
    return Section("cost", "Accuracy against size and speed", cost_figures(results))


def _tests(results: SweepResults, folder: Path) -> Section:
    rows: list[list[object]] = []
    links: list[Block] = []
    for each in results.ranked:
        if each.test is None:
            continue
        by_class = each.test["AP50_by_class"]
        rows.append([str(each.number), each.value, each.test["mAP50"], *by_class.values()])
        page = each.workdir / "test" / "report.html"
        address = Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
        links.append(Link(f"Report of the test of trial {each.number}", address))
    if not rows:
        return Section("tests", "Tests", [])
    names = list(results.ranked[0].test["AP50_by_class"]) if results.ranked[0].test else []
    header = ["trial", results.objective, "test mAP50", *(f"AP50 {n}" for n in names)]
    caption = "Validation, by which trials were chosen, beside the test, which chose nothing."
    return Section("tests", "Tests", [Table(header, rows, caption), *links])


def _search(results: SweepResults) -> Section:
    space = {each.field: {each.kind: list(each.values)} for each in results.space.parameters}
    settings = dataclasses.asdict(results.space.settings)
    return Section(
        "search",
        "Search",
        [
            Code("Search space", json.dumps(space, indent=2)),
            Code("Settings", json.dumps(settings, indent=2)),
            Code("Config that all trials share", json.dumps(results.space.base, indent=2)),
        ],
    )
