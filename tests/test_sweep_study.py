"""Studies on disk: who gets which trial, what is drawn, and what survives kills."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from optuna.trial import TrialState

from sweeps import SPACE, finish_with, space_of, states_of, study_in
from yogo_jax.checkpoint import ready
from yogo_jax.errors import UserError
from yogo_jax.ownership import read_claims
from yogo_jax.sweeping.results import read_results
from yogo_jax.sweeping.study import MAX_DEATHS, load_study, open_study


def join_and_finish(folder: Path, trials: int, done: Path) -> None:
    """A task that finishes all the trials it gets, without training."""
    study = study_in(folder, trials=trials)
    mine = []
    while taken := study.claim_next():
        number, claim = taken
        with claim:
            study.start(number)
            study.complete(number, number / 10)
            mine.append(number)
    done.write_text(json.dumps(mine))


def test_tasks_that_start_at_once_share_the_trials(tmp_path):
    context = multiprocessing.get_context("spawn")
    lists = [tmp_path / f"{index}.json" for index in range(2)]
    tasks = [
        context.Process(target=join_and_finish, args=(tmp_path / "study", 12, each))
        for each in lists
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(120)
    done = [number for each in lists for number in json.loads(each.read_text())]
    assert sorted(done) == list(range(12))
    study = load_study(tmp_path / "study", stale_after=60)
    assert [trial.value for trial in study.trials()] == [number / 10 for number in range(12)]
    assert study.unfinished() == []


def test_draws_follow_from_seed_and_number(tmp_path):
    first, second = study_in(tmp_path / "a"), study_in(tmp_path / "b")
    other = study_in(tmp_path / "c", seed=1)
    drawn = [first.start(number).params for number in (0, 1, 2)]
    assert [second.start(number).params for number in (2, 0, 1)] == [drawn[i] for i in (2, 0, 1)]
    assert other.start(0).params != drawn[0]
    assert len({str(each) for each in drawn}) == 3


def test_a_trial_that_was_begun_keeps_its_values(tmp_path):
    study = study_in(tmp_path)
    number, claim = study.claim_next()
    # A task that died between two draws.
    trial = study.start(number)
    kept = trial.params
    lines = (tmp_path / "journal.log").read_text().splitlines(keepends=True)
    (tmp_path / "journal.log").write_text("".join(lines[:-2]))
    with claim:
        pass
    again = study_in(tmp_path)
    found = again.trials()[number].params
    assert 0 < len(found) < len(kept)
    assert again.start(number).params.items() >= found.items()
    assert again.start(number).params.keys() == kept.keys()


@pytest.mark.parametrize("cut", [1, 30], ids=["line end", "half a line"])
def test_a_journal_that_a_kill_cut_short_goes_on(tmp_path, cut):
    finish_with(study_in(tmp_path), 0, 0.5)
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut])
    study = study_in(tmp_path)
    # What was cut off, the end of the trial, is not there; nothing else is lost.
    assert study.trials()[0].state == TrialState.RUNNING
    study.complete(0, 0.25)
    assert load_study(tmp_path, stale_after=60).trials()[0].value == 0.25
    assert journal.read_bytes().count(b"\n") == whole.count(b"\n")


def test_a_journal_of_something_else_is_named(tmp_path):
    study_in(tmp_path)
    (tmp_path / "journal.log").write_text("no journal\nat all\n")
    with pytest.raises(UserError, match=r"journal.log: cannot be read as Optuna's journal"):
        load_study(tmp_path, stale_after=60)


def test_another_sweep_in_the_folder_is_refused_and_the_same_is_joined(tmp_path):
    study_in(tmp_path, trials=2)
    for overrides, message in (
        ({"optim__clip_value": 2.0}, r"study.config.optim.clip_value: 1.0 != 2.0"),
        ({"space": {"loss": SPACE["loss"]}}, r"holds another sweep .*study.space"),
        ({"seed": 4}, r"study.settings.seed: 0 != 4"),
    ):
        with pytest.raises(UserError, match=message):
            study_in(tmp_path, **overrides)
    # More trials, other workers, another decision and other tracking are no other sweep.
    others = {"data__workers": 3, "train__decision": "count", "track__note": "x"}
    study = study_in(tmp_path, trials=5, **others)
    assert len(study.trials()) == study.planned == 5
    assert study_in(tmp_path, trials=3).planned == 5


def test_what_the_base_says_of_a_field_that_trials_choose_does_not_keep_tasks_apart(tmp_path):
    # As in a study that was begun when flags for such fields were taken and ignored.
    study_in(tmp_path, optim__learning_rate=5e-3, train__batch_size=7)
    assert study_in(tmp_path).planned == 4


def test_trials_may_start_from_a_network_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "NETWORKS", tmp_path)
    (tmp_path / "tiny.npz").write_bytes(b"")
    values = ("", "tiny", "runs/x")
    study = study_in(tmp_path, space={"train": {"from_pretrained": {"choice": values}}})
    (parameter,) = study.space.parameters
    assert parameter.values == ("", "tiny", str(Path("runs/x").absolute()))


def test_no_sweep_is_no_report(tmp_path):
    with pytest.raises(UserError, match="found no study in it"):
        load_study(tmp_path, stale_after=60)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--study .*cannot be made a folder"):
        open_study(tmp_path / "file", space_of(), stale_after=60)


def die(study, *, error: str | None = None) -> int:
    """Claims a trial and leaves it as a killed task does; returns its number."""
    number, claim = study.claim_next()
    study.start(number)
    if error:
        claim.note(error=error)
    os.utime(study.workdir(number) / "claims" / f"{claim.number}.json", (1, 1))
    return number


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "killed 3 times at step 0 without a new checkpoint; did the machine run out"),
        ("OSError: full", "ended 3 times at step 0 without a new checkpoint: OSError: full"),
    ],
    ids=["killed", "error"],
)
def test_a_trial_whose_tasks_die_at_one_place_fails_with_the_reason(tmp_path, error, reason):
    study = study_in(tmp_path, trials=2)
    assert [die(study, error=error) for _ in range(MAX_DEATHS)] == [0] * MAX_DEATHS
    number, claim = study.claim_next()
    assert number == 1
    assert reason in study.trials()[0].user_attrs["reason"]
    assert states_of(study.optuna) == ["FAIL", "WAITING"]
    with claim:
        assert study.claim_next() is None


def test_preemption_does_not_make_a_trial_fail(tmp_path):
    study = study_in(tmp_path, trials=1)
    for attempt in range(MAX_DEATHS + 2):
        number, claim = study.claim_next()
        assert (number, claim.number) == (0, attempt)
        study.start(number)
        with pytest.raises(SystemExit), claim:
            raise SystemExit(75)
    assert states_of(study.optuna) == ["RUNNING"]
    assert len(read_claims(study.workdir(0))) == MAX_DEATHS + 2


def test_a_study_from_before_a_field_existed_is_joined(tmp_path):
    study_in(tmp_path, trials=2)
    file = tmp_path / "study.json"
    values = json.loads(file.read_text())
    del values["config"]["loss"]["class_weight_power"]
    file.write_text(json.dumps(values))
    assert load_study(tmp_path, stale_after=60).planned == 2
    assert study_in(tmp_path, trials=3).planned == 3
    with pytest.raises(UserError, match=r"study.config.loss.class_weight_power: 0.0 != 0.5"):
        study_in(tmp_path, loss__class_weight_power=0.5)


def test_a_study_with_a_wrong_value_is_named(tmp_path):
    study_in(tmp_path)
    file = tmp_path / "study.json"
    file.write_text(file.read_text().replace('"objective": "mAP50"', '"objective": "speed"'))
    with pytest.raises(UserError, match=r"study\.json: config\.sweep\.objective must be one of"):
        load_study(tmp_path, stale_after=60)


def test_a_sweep_over_a_field_that_was_renamed_goes_on_under_its_old_name(tmp_path):
    space = {"loss": {"reference_count": {"uniform": (10.0, 50.0)}}}
    study = study_in(tmp_path, space=space)
    drawn = [study.start(number).params["loss.reference_count"] for number in (0, 1)]
    study.complete(0, 0.5)
    for file in (tmp_path / "study.json", tmp_path / "journal.log"):
        text = file.read_text().replace("reference_count_from_data", "by_fullness")
        file.write_text(text.replace("reference_count", "usual_objects"))
    again = study_in(tmp_path, space=space)
    for number, value in enumerate(drawn):
        trial = again.start(number)
        assert trial.params == {"loss.usual_objects": value}
        assert again.space.config_of(trial.params).loss.reference_count == value
    assert again.start(2).params.keys() == {"loss.usual_objects"}
    results = read_results(again)
    assert [each.chosen["loss.reference_count"] for each in results.trials[:2]] == drawn
