"""Sweeps as users run them: trials on tiny data, a kill in the middle, pages, and refusals."""

import re
import signal
import sys

import jax
import pytest

from browser import assert_figures_can_be_read, assert_fits_the_width, open_page
from runs import ROOT, run_command
from sweeps import finish_with, response, space_of, states_of, study_in
from tiny_data import write_dataset
from yogo_jax import sweep
from yogo_jax.errors import UserError
from yogo_jax.ownership import read_claims
from yogo_jax.sweeping import trial as trials
from yogo_jax.sweeping.page import pareto_front
from yogo_jax.sweeping.results import read_results
from yogo_jax.sweeping.study import load_study
from yogo_jax.training.compilation import TooLittleMemoryError
from yogo_jax.training.stopping import Stopped
from yogo_jax.training.tracking import NotFiniteError, read_metrics


CONFIG = """\
from configs import sweep

def get_config():
    config = sweep.get_config()
    config.data.update(image_hw=(64, 96), workers=0)
    config.model.update(name="quarter_filters", anchor="auto")
    config.train.update(epochs=3, batch_size=4, eval_every_epochs=1)
    config.sweep.update(trials=2, random_trials=1)
    config.sweep.space = {
        "optim": {"learning_rate": {"log": (1e-4, 1e-2)}},
        "loss": {"no_object_weight": {"choice": (0.1, 0.5)}},
    }
    return config
"""


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), images=16)


# A task that is killed at the second validation of its first trial.
KILLED = """\
import os, signal, sys
from yogo_jax import sweep
from yogo_jax.sweeping import trial

class Reporter(trial._Reporter):
    def __call__(self, epoch, metrics):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(epoch, metrics)

if __name__ == "__main__":
    trial._Reporter = Reporter
    sweep.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_trial_is_finished_by_the_next_task(definition, tmp_path, capsys):
    config, script, folder = tmp_path / "config.py", tmp_path / "killed.py", tmp_path / "study"
    config.write_text(CONFIG)
    script.write_text(KILLED)
    flags = ["--config", str(config), "--study", str(folder), "--stale-after", "2"]
    flags.append(f"--config.data.definition={definition}")
    killed = run_command([sys.executable, str(script), *flags])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    metrics = folder / "trials" / "0" / "metrics.jsonl"
    before = load_study(folder, stale_after=60).trials()[0].params

    sweep.main(flags)
    out = capsys.readouterr().out
    assert "continuing" in out
    assert f"the sweep is complete: 2 trials in {folder}" in out
    study = load_study(folder, stale_after=60)
    assert states_of(study.optuna) == ["COMPLETE", "COMPLETE"]
    assert study.trials()[0].params == before
    assert [len(read_claims(study.workdir(number))) for number in (0, 1)] == [2, 1]
    steps = [each["step"] for each in read_metrics(metrics) if each["kind"] == "train"]
    assert steps == list(range(1, 7))
    for number in (0, 1):
        result = read_results(study).trials[number]
        assert sorted(study.trials()[number].intermediate_values) == [1, 2, 3]
        validations = [
            each
            for each in read_metrics(result.workdir / "metrics.jsonl")
            if each["kind"] == "validation"
        ]
        kept = min(validations, key=lambda each: each["loss"])
        assert result.value == kept["mAP50"]
        assert result.figures["parameters"] == 34219
        assert result.figures["frames_per_second"] > 0
        assert result.figures["device"].startswith("cpu")
        assert result.test is not None

    sweep.main(["report", str(folder)])
    out = capsys.readouterr().out
    assert "2 trials: 2 complete" in out
    html = (folder / "report.html").read_text()
    assert 'href="trials/0/test/report.html"' in html
    # Nothing is left to do.
    sweep.main([*flags, "--one"])
    assert "the sweep is complete" in capsys.readouterr().out


def run_one(study, monkeypatch, train) -> list[str]:
    """One trial whose training is `train`; returns what was said."""
    lines: list[str] = []
    monkeypatch.setattr(trials, "train_and_evaluate", train)
    trials.run_task(study, one=True, say=lines.append)
    return lines


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\n")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotFiniteError("the box loss is not finite at step 5"), "the box loss is not finite"),
        (TooLittleMemoryError("a training step takes 9 GiB"), "a training step takes 9 GiB"),
        (OUT_OF_MEMORY, "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        (MemoryError(), "out of memory: of the host"),
    ],
    ids=["loss", "step", "device", "host"],
)
def test_what_the_parameters_are_to_blame_for_is_a_failed_trial(
    tmp_path, monkeypatch, error, reason
):
    def train(config, workdir, *, stop, on_validation):
        raise error

    study = study_in(tmp_path)
    lines = run_one(study, monkeypatch, train)
    assert states_of(study.optuna)[:2] == ["FAIL", "WAITING"]
    assert study.trials()[0].user_attrs["reason"].startswith(reason)
    assert lines[-1].startswith(f"trial 0 failed: {reason}")


@pytest.mark.parametrize(
    "error",
    [OSError("disk full"), jax.errors.JaxRuntimeError("INTERNAL: x"), Stopped("SIGTERM")],
    ids=["disk", "device", "signal"],
)
def test_what_they_are_not_to_blame_for_ends_the_task_and_not_the_trial(
    tmp_path, monkeypatch, error
):
    def train(config, workdir, *, stop, on_validation):
        raise error

    study = study_in(tmp_path)
    with pytest.raises(type(error)):
        run_one(study, monkeypatch, train)
    assert states_of(study.optuna)[0] == "RUNNING"
    number, claim = study.claim_next()
    assert (number, claim.number) == (0, 1)


def test_a_trial_worse_than_the_median_is_pruned_but_not_after_its_last_epoch(
    tmp_path, monkeypatch
):
    def train(config, workdir, *, stop, on_validation):
        for epoch in range(1, last + 1):
            on_validation(epoch, {"mAP50": 0.01})
        raise NotFiniteError("came to its end")

    study = study_in(tmp_path, trials=4)
    for number in (0, 1):
        _, claim = study.claim_next()
        with claim:
            finish_with(study, number, 0.6 + 0.2 * number)
    last = 1
    lines = run_one(study, monkeypatch, train)
    assert lines[-1] == (
        "trial 2 pruned: after epoch 1 its best mAP50, 0.0100, is worse than 0.3500, the median of "
        "2 finished trials"
    )
    assert states_of(study.optuna)[2] == "PRUNED"
    # At the last epoch there is nothing to save by giving up.
    monkeypatch.setattr(study, "space", study.space)
    study.start(3).report(0.9, 1)
    monkeypatch.setattr(trials, "train_and_evaluate", train)
    last = 2
    assert run_one(study, monkeypatch, train)[-1] == "trial 3 failed: came to its end"


@pytest.mark.parametrize(
    ("split", "boxes", "message"),
    [((0.9, 0.0, 0.1), True, "there is no image"), ((0.4, 0.3, 0.3), False, "no true box")],
    ids=["no split", "no boxes"],
)
def test_data_without_anything_to_compare_by_is_refused_before_any_trial(
    definition, split, boxes, message
):
    space = space_of(
        definition,
        data__split_override=split,
        # What all boxes are smaller than.
        data__min_box_area=0.0 if boxes else 0.9,
    )
    with pytest.raises(UserError, match=message):
        trials.check_data(space)


def test_one_does_not_wait_for_others(tmp_path, monkeypatch):
    study = study_in(tmp_path, trials=1)
    _, claim = study.claim_next()
    with claim:
        lines = run_one(study, monkeypatch, None)
    assert lines == ["nothing to do: other tasks work on the 1 trials that are left"]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A sweep with a trial in every state, none of which was trained."""
    folder = tmp_path_factory.mktemp("made up") / "study"
    study = study_in(folder, trials=14)
    for number in range(8):
        _, claim = study.claim_next()
        with claim:
            finish_with(study, number, response(study.start(number).params))
    for number in (8, 9):
        _, claim = study.claim_next()
        with claim:
            trial = study.start(number)
            if number == 8:
                trial.report(0.1, 1)
                study.prune(trial, "worse than <others>")
            else:
                study.fail(number, "the box loss is not finite " * 12)
    study.claim_next()  # goes on working
    study.start(10)
    _, claim = study.claim_next()
    with claim:
        study.start(11)
    sweep.main(["report", str(folder)])
    return folder, study


def test_the_table_has_every_state(made_up, capsys):
    folder, study = made_up
    sweep.main(["report", str(folder)])
    out = capsys.readouterr().out
    assert "14 trials: 8 complete, 1 pruned, 1 failed, 1 running, 1 stopped, 2 waiting" in out
    values = [each.value for each in read_results(study).ranked]
    assert values == sorted(values, reverse=True)
    importance = read_results(study).importance
    assert next(iter(importance)) == "optim.learning_rate"
    assert sum(importance.values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1200, False)])
def test_the_page_in_a_browser(made_up, width, dark):
    folder, study = made_up
    best = read_results(study).ranked[0]
    with open_page(folder / "report.html", width=width, dark=dark) as page:
        assert_fits_the_width(page)
        assert_figures_can_be_read(page)
        trials = page.locator("#summary svg text").all_text_contents()
        assert [text for text in trials if re.fullmatch(r"\d+(\.0)?", text)] == [*"02468"]
        assert page.locator("h2").all_text_contents() == [
            "Summary",
            "Trials",
            "What matters",
            "Accuracy against size and speed",
            "Tests",
            "Search",
        ]
        assert page.locator("figure").count() == 5
        assert "worse than <others>" in page.locator("#trials").inner_text()
        assert page.locator("#trials tbody tr").count() == 12
        page.get_by_text("Command that trains it again").click()
        command = page.locator("#summary pre").inner_text()
        assert f"--config.optim.learning_rate={best.chosen['optim.learning_rate']}" in command
        page.get_by_role("link", name=f"test of trial {best.number}", exact=False).first.click()
        assert page.title() == str(best.number)


def test_the_page_names_trials_that_an_earlier_version_tested(made_up):
    folder, study = made_up
    first = read_results(study).ranked[0]
    page = (folder / "report.html").read_text()
    assert f"by the original&#39;s protocol: trial {first.number}, trial " in page


def test_an_unbegun_sweep_has_a_page(tmp_path, capsys):
    study_in(tmp_path)
    sweep.main(["report", str(tmp_path), "--output", str(tmp_path / "x.html")])
    assert "4 trials: 4 waiting" in capsys.readouterr().out
    assert "No trial is complete yet." in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("costs", "values", "fewer", "more", "expected"),
    [
        ([], [], True, True, []),
        ([1, 2, 3], [0.1, 0.3, 0.2], True, True, [0, 1]),
        ([1, 2, 3], [0.1, 0.3, 0.2], False, True, [2, 1]),
        ([1, 1, 2], [0.3, 0.3, 0.3], True, True, [0]),
        ([1, 2], [5.0, 4.0], True, False, [0, 1]),
    ],
)
def test_what_no_other_beats_in_both(costs, values, fewer, more, expected):
    found = pareto_front(costs, values, fewer_is_better=fewer, more_is_better=more)
    assert found == expected


BASE = ["--config", str(ROOT / "configs" / "base.py")]
SWEEP = ["--config", str(ROOT / "configs" / "sweep.py"), "--study", "nowhere"]
SWEEP += ["--config.data.definition=d.yml"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (BASE, "no study given: add --study DIR"),
        (["--study", "x"], "no config given: add --config configs/sweep.py"),
        ([*BASE, "--study", "x"], "this config has no search space"),
        ([*SWEEP, "--trials", "0"], "--trials must be 1 or more, got 0"),
        ([*SWEEP, "--stale-after", "0.5"], "--stale-after must be 1 second or more, got 0.5"),
        ([*SWEEP, "--config.optim.rate=1"], "did you mean"),
        ([*SWEEP, "--config.sweep.trial=1"], "did you mean --config.sweep.trials?"),
        ([*SWEEP, "--config.sweep.trials=none"], "sweep.trials"),
        ([*SWEEP, "--study-dir=x"], "study-dir"),
        ([*SWEEP, "extra"], "unrecognized arguments: extra"),
        (["report", "nowhere"], "expected the folder of a sweep"),
        (
            [*SWEEP, "--config.optim.learning_rate=1e-3"],
            "error: --config.optim.learning_rate would change nothing: each trial chooses this "
            "field from config.sweep.space (0.0001 to 0.003). Drop the flag; or, for one value in "
            "all trials, take optim.learning_rate out of the space",
        ),
        ([*SWEEP, "--config.data.image_hw", "64,96"], "(386,516 or 579,774 or 772,1032)"),
        ([*SWEEP, "--config.qqqqqqqq=1"], "--config.qqqqqqqq: unknown flag"),
        ([*SWEEP, "--config.swep.trials=1"], "did you mean --config.sweep.trials?"),
        ([*SWEEP, "--config.sweep.space.optim.learning_rate.log"], "log: expected one argument"),
        ([*SWEEP, "--config.sweep.space.optim.learning_rte.log=1,2"], "rning_rate.log?"),
        (["--config", "nowhere.py", "--study", "x"], "cannot be read; try configs/sweep.py"),
        (["--config", "x.yml", "--study", "x"], "expected a Python file as configs/sweep.py"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes_are_named(flags, message, capsys):
    with pytest.raises(SystemExit) as status:
        sweep.main(flags)
    assert status.value.code == 2
    assert message in capsys.readouterr().err
