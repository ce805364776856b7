"""The report of a sweep as one HTML page: its sections first, then its figures."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.config.fields import flat
from yogo_jax.reports import plots
from yogo_jax.reports.pages import Block, Code, Figure, Section, Table, Text, link_to, render_page
from yogo_jax.reports.tables import note_on_earlier_versions
from yogo_jax.sweeping.results import (
    MIN_TRIALS_FOR_IMPORTANCE,
    SweepResults,
    TrialResult,
    short_text,
)
from yogo_jax.sweeping.space import Parameter, as_text, position


# Share of the complete trials that parallel coordinates highlight.
GOOD_SHARE = 0.25
BEST, GOOD = plots.SERIES[1], plots.SERIES[2]
# A narrow figure has room for so many letters in a row.
LETTERS = 50
# Up to so many trials have their number beside their dot; more numbers would overlap.
MAX_NAMED_DOTS = 16


def sweep_page(results: SweepResults, folder: Path) -> str:
    """Returns the page as HTML for a file in `folder`; its links are relative to this folder."""
    sections = [
        _summary(results),
        _trials(results),
        _what_matters(results),
        Section("cost", "Accuracy against size and speed", cost_figures(results)),
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
        shared = flat(results.space.base)
        rows: list[list[object]] = [
            [field, short_text(best.chosen[field]), as_text(shared[field])]
            for field in results.fields
        ]
        blocks += [
            Text(
                f"The best trial is {best.number} with {objective} {best.value:.4f} on the "
                f"validation images, after {epochs}. It is the best of many trials on these "
                "images, so expect worse values on other images. Its test shows how much worse."
            ),
            Table(["field", "best trial", "base config"], rows, "The searched fields."),
            Code("Command that trains it again", _command(best)),
        ]
    else:
        blocks.append(Text("No trial is complete yet."))
    if any(each.value is not None for each in results.trials):
        blocks.append(course_figure(results))
    return Section("summary", "Summary", blocks)


def _command(trial: TrialResult) -> str:
    """Returns the command that trains the config of a trial, with every field."""
    lines = ["yogo-jax train --config configs/base.py --workdir runs/best"]
    for name, value in flat(trial.config).items():
        # Empty fields are empty in base.py too. Fields of tracking would name this trial at W&B.
        if value not in ("", []) and not name.startswith("track."):
            lines.append(f"--config.{name}={shlex.quote(as_text(value))}")
    return " \\\n    ".join(lines)


def _trials(results: SweepResults) -> Section:
    header = ["trial", "state", results.objective, "epochs", "minutes", "parameters"]
    header += ["frames/s", "times continued", *results.fields]
    rest = [each for each in results.trials if each.state not in ("complete", "waiting")]
    rows: list[list[object]] = [
        [
            str(each.number),
            each.state,
            each.value,
            each.epochs,
            short_text(each.minutes),
            *map(each.figures.get, ("parameters", "frames_per_second")),
            each.taken_up,
            *(short_text(each.chosen.get(field)) for field in results.fields),
        ]
        for each in [*results.ranked, *rest]
    ]
    if not rows:
        return Section("trials", "Trials", [Text("No trial has begun yet.")])
    caption = (
        "Complete trials, best first, then the others by number. The objective of a trial that is "
        "not complete is that of its last validation."
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
                f"The importance of the fields needs {MIN_TRIALS_FOR_IMPORTANCE} complete trials "
                f"that differ in {results.objective}; {complete} are complete."
            )
        )
    return Section("matters", "What matters", blocks)


def _tests(results: SweepResults, folder: Path) -> Section:
    rows: list[list[object]] = []
    links: list[Block] = []
    names: list[str] = []
    for each in results.ranked:
        if each.test is None:
            continue
        names = list(each.test["AP50_by_class"])
        values = [each.value, each.test["mAP50"], *each.test["AP50_by_class"].values()]
        rows.append([str(each.number), *values])
        page = each.workdir / "test" / "report.html"
        links.append(link_to(f"Report of the test of trial {each.number}", page, folder))
    if not rows:
        return Section("tests", "Tests", [])
    header = ["trial", results.objective, "test mAP50", *(f"AP50 {n}" for n in names)]
    caption = "Trials were chosen by the validation. The test was not used to choose anything."
    tests = {f"trial {each.number}": each.test for each in results.ranked if each.test is not None}
    caption += note_on_earlier_versions(tests)
    return Section("tests", "Tests", [Table(header, rows, caption), *links])


def _search(results: SweepResults) -> Section:
    values = results.space.to_dict()
    titles = {
        "space": "Search space",
        "settings": "Settings",
        "config": "Config that all trials share",
    }
    blocks = [Code(title, json.dumps(values[key], indent=2)) for key, title in titles.items()]
    return Section("search", "Search", blocks)


def course_figure(results: SweepResults) -> Figure:
    """Figure of the objective of each trial by number, with the best value so far."""
    objective = results.objective
    shown = [each for each in results.trials if each.value is not None]
    best_of = np.maximum if results.space.settings.maximize else np.minimum

    def plot(axes: Any) -> None:
        for label, states, marker, colour in (
            ("complete", ("complete",), "o", plots.SERIES[2]),
            ("pruned", ("pruned",), "X", plots.SERIES[3]),
            ("failed", ("failed",), "v", plots.SERIES[1]),
            ("unfinished", ("running", "stopped"), "s", plots.SERIES[4]),
        ):
            those = [each for each in shown if each.state in states]
            if those:
                x, y = [each.number for each in those], [each.value for each in those]
                axes.scatter(x, y, marker=marker, color=colour, s=24, label=label, zorder=3)
        complete = [each for each in shown if each.state == "complete"]
        if complete:
            best = best_of.accumulate(np.array([each.value for each in complete], np.float64))
            x = [each.number for each in complete]
            axes.step(x, best, where="post", color=plots.SERIES[0], label="best so far")
        plots.use_whole_numbers(axes, "x")
        axes.set(xlabel="trial", ylabel=objective)

    caption = (
        f"{objective} on the validation images: for complete trials at the kept checkpoint, for "
        "others at the last validation."
    )
    return Figure(plots.draw("course", plot), caption)


def importance_figure(importance: Mapping[str, float], complete: int) -> Figure:
    """Figure with a bar for each field, the most important on top."""
    names = list(importance)[::-1]
    shares = [importance[name] for name in names]

    def plot(axes: Any) -> None:
        axes.barh(names, shares, color=plots.SERIES[2])
        axes.set(xlabel="share of the variance", xlim=(0, 1))
        axes.grid(visible=False, axis="y")

    caption = (
        f"Share of the differences between {complete} complete trials that each field explains by "
        "itself (fANOVA). It is rough for few trials, and for fields whose range the sampler has "
        "narrowed."
    )
    height = 1.2 + 0.32 * len(names)
    return Figure(plots.draw("importance", plot, height=height), caption)


def coordinates_figure(results: SweepResults) -> Figure:
    """Figure of parallel coordinates: a line for each complete trial through all of its values.

    The axes lie one below the other, so that their names can be read on a phone.
    """
    ranked = results.ranked
    good = max(1, round(GOOD_SHARE * len(ranked)))
    values = [each.value or 0.0 for each in ranked]
    low, high = min(values), max(values)
    heights = []
    for trial, value in zip(ranked, values, strict=True):
        scaled = (value - low) / (high - low) if high > low else 0.5
        chosen = [position(each, trial.chosen[each.field]) for each in results.space.parameters]
        heights.append([*chosen, scaled])
    names = [*results.fields, results.objective]
    places = range(len(names))

    def plot(axes: Any) -> None:
        for rank, line in reversed(list(enumerate(heights))):
            axes.plot(line, places, **_line_style(rank, good))
        ticks = [_ticks(parameter) for parameter in results.space.parameters]
        for place, each in enumerate([*ticks, [(0.0, short_text(low)), (1.0, short_text(high))]]):
            _label_axis(axes, place, each)
        axes.set_yticks(list(places), names)
        axes.set_xticks([])
        # From top to bottom.
        axes.set(xlim=(-0.08, 1.08), ylim=(len(names) - 0.6, -0.4))
        axes.spines[["left", "bottom"]].set_visible(False)

    caption = (
        f"Each line is one of {len(ranked)} complete trials. Thick: the best, trial "
        f"{ranked[0].number}; solid: the best quarter ({good}); dotted: the others. Ranges that "
        "are searched by logarithm have a logarithmic axis; choices stand in their order."
    )
    height = 0.4 + 0.6 * len(names)
    # Every second choice stands above the axis, beside its name, with a gap behind it.
    over = (list(each.texts)[::2] for each in results.space.parameters if each.kind == "choice")
    letters = max((sum(len(text) + 2 for text in texts) for texts in over), default=0)
    wide = max(map(len, names)) + letters > LETTERS
    return Figure(plots.draw("coordinates", plot, height=height, wide=wide), caption, wide=wide)


def _line_style(rank: int, good: int) -> dict[str, Any]:
    if rank == 0:
        return {"color": BEST, "linewidth": 3.2, "linestyle": "-", "zorder": 4}
    if rank < good:
        return {"color": GOOD, "linewidth": 1.6, "linestyle": "-", "zorder": 3}
    return {"color": plots.INK_SOFT, "linewidth": 0.9, "linestyle": ":", "zorder": 2}


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    if parameter.kind == "choice":
        texts = list(parameter.texts)
        return [(position(parameter, text), text) for text in texts]
    return [(position(parameter, end), short_text(end)) for end in parameter.values]


def _label_axis(axes: Any, place: int, ticks: Sequence[tuple[float, str]]) -> None:
    axes.axhline(place, color=plots.INK_SOFT, linewidth=1.0, zorder=1)
    box = {"facecolor": plots.GROUND, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    for index, (along, text) in enumerate(ticks):
        side = 0.24 if len(ticks) > 2 and index % 2 else -0.24
        where = {0.0: "left", 1.0: "right"}.get(along, "center")
        style = {"va": "center", "ha": where, "bbox": box, "zorder": 5}
        axes.text(along, place + side, text, **style)


def cost_figures(results: SweepResults) -> list[Figure]:
    """Figures of the objective against parameters and against frames/s."""
    measured = [each for each in results.ranked if "frames_per_second" in each.figures]
    if not measured:
        return []
    batches = sorted({each.figures["batch_size"] for each in measured})
    how = (
        f"network and decoding in batches of {' or '.join(map(str, batches))}, measured at the end "
        "of each trial on its device"
    )
    return [
        _cost_figure(results, measured, "parameters", "parameters"),
        _cost_figure(results, measured, "frames_per_second", f"frames/s ({how})"),
    ]


def _cost_figure(
    results: SweepResults, trials: Sequence[TrialResult], key: str, what: str
) -> Figure:
    devices = list(dict.fromkeys(each.figures["device"] for each in trials))
    costs = [each.figures[key] for each in trials]
    caption = f"{results.objective} of complete trials against {what}. "
    caption += "Numbers are those of the trials. " if len(trials) <= MAX_NAMED_DOTS else ""
    speeds_of_one_device = len(devices) == 1 or key == "parameters"
    if speeds_of_one_device:
        caption += "Trials on the line are the Pareto front: no other trial is better in both."
    else:
        caption += "Speeds of different devices cannot be compared."

    def plot(axes: Any) -> None:
        if speeds_of_one_device:
            front = pareto_front(
                costs,
                [each.value or 0.0 for each in trials],
                fewer_is_better=key == "parameters",
                more_is_better=results.space.settings.maximize,
            )
            x, y = [costs[i] for i in front], [trials[i].value for i in front]
            axes.plot(x, y, color=plots.SERIES[0], linestyle="--", linewidth=1.2)
        for index, device in enumerate(devices):
            those = [each for each in trials if each.figures["device"] == device]
            axes.scatter(
                [each.figures[key] for each in those],
                [each.value for each in those],
                marker=plots.MARKERS[index % len(plots.MARKERS)],
                color=plots.SERIES[(index + 2) % len(plots.SERIES)],
                s=30,
                label=plots.shortened(device) if len(devices) > 1 else None,
                zorder=3,
            )
        if len(trials) <= MAX_NAMED_DOTS:
            for each in trials:
                place = (each.figures[key], each.value)
                axes.annotate(str(each.number), place, xytext=(4, 4), textcoords="offset points")
        label = {"frames_per_second": "frames/s"}.get(key, key)
        axes.set(xlabel=label, ylabel=results.objective)
        if len(set(costs)) > 1:
            plots.use_log_scale(axes, "x")

    return Figure(plots.draw(key.replace("_", "-"), plot), caption)


def pareto_front(
    costs: Sequence[float], values: Sequence[float], *, fewer_is_better: bool, more_is_better: bool
) -> list[int]:
    """Returns the indices of the Pareto front, by cost: no other point is better in both.

    Args:
      costs: cost of each point.
      values: value of each point.
      fewer_is_better: True if a low cost is good.
      more_is_better: True if a high value is good.
    """
    cost = np.asarray(costs, np.float64) * (1 if fewer_is_better else -1)
    value = np.asarray(values, np.float64) * (-1 if more_is_better else 1)
    front: list[int] = []
    for index in np.lexsort((value, cost)).tolist():
        if not front or value[index] < value[front[-1]]:
            front.append(index)
    return front
