"""Temperatures and thresholds against what drawn probabilities must give, and the command."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.serving import make_serving
from drawn_models import make_spec, random_variables
from runs import run_command, tiny_config
from tiny_data import write_dataset
from yogo_jax import calibrate, infer
from yogo_jax.checkpoint.run_data import evaluation_data
from yogo_jax.checkpoint.store import (
    find_checkpoint,
    read_metadata,
    restore_variables,
    rewrite_metadata,
)
from yogo_jax.detector.architectures import BACKBONES, ConvNextBackbone
from yogo_jax.detector.detections import (
    Detections,
    Thresholds,
)
from yogo_jax.detector.given_thresholds import class_thresholds_of, thresholds_given
from yogo_jax.errors import UserError
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.metrics.calibration import (
    Pairs,
    at_temperature,
    calibration_error,
    fit_temperature,
    matched_pairs,
)
from yogo_jax.metrics.confusion import Matches
from yogo_jax.metrics.evaluator import ImageResult
from yogo_jax.training.trainer import train_and_evaluate


def drawn_pairs(temperature: float, count: int = 20_000) -> Pairs:
    """Classes drawn from the softmax of logits / temperature, and the softmax of the logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (count, 4))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = np.exp(logits / temperature)
    true /= true.sum(1, keepdims=True)
    class_ids = (rng.uniform(size=(count, 1)) > true.cumsum(1)).sum(1)
    return Pairs(probs, np.minimum(class_ids, 3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_drawn_is_found(temperature):
    pairs = drawn_pairs(temperature)
    found = fit_temperature(pairs)
    assert found == pytest.approx(temperature, rel=0.05)
    after = Pairs(at_temperature(pairs.class_probs, found), pairs.class_ids)
    assert calibration_error(after) < 0.015
    if temperature != 1:
        assert calibration_error(after) < calibration_error(pairs) / 3


def test_a_temperature_changes_no_order_and_keeps_certainty():
    probs = np.asarray([(0.7, 0.2, 0.1), (1.0, 0.0, 0.0)], np.float32)
    for temperature in (0.2, 1.0, 5.0):
        after = at_temperature(probs, temperature)
        np.testing.assert_allclose(after.sum(1), 1)
        np.testing.assert_array_equal(np.argsort(after[0]), np.argsort(probs[0]))
        np.testing.assert_array_equal(after[1], (1, 0, 0))
    np.testing.assert_allclose(at_temperature(probs, 1.0), probs, rtol=1e-6)


@pytest.mark.parametrize(("count", "classes"), [(0, 3), (5, 1)])
def test_nothing_to_fit_a_temperature_to(count, classes):
    with pytest.raises(ValueError, match="a matched box and two classes"):
        fit_temperature(Pairs(np.ones((count, classes)), np.zeros(count, np.int64)))


def test_few_pairs_without_a_mistake_do_not_make_it_certain():
    probs = np.tile((0.8, 0.15, 0.05), (30, 1))
    temperature = fit_temperature(Pairs(probs, np.zeros(30, np.int64)))
    assert at_temperature(probs, temperature)[0, 0] == pytest.approx(31 / 32, abs=0.01)


def image_of(class_probs, label_class_ids, pairs) -> ImageResult:
    probs = np.asarray(class_probs, np.float64)
    predictions, labels = (np.asarray(each, np.int64) for each in zip(*pairs, strict=True))
    found = Detections(
        boxes_xyxy=np.zeros((len(probs), 4)),
        objectness=np.ones(len(probs)),
        class_probs=probs,
        class_names=("a", "b"),
        image_hw=(32, 48),
    )
    missed = np.setdiff1d(np.arange(len(label_class_ids)), labels)
    extra = np.setdiff1d(np.arange(len(probs)), predictions)
    matches = Matches(predictions, labels, missed, extra)
    boxes = np.zeros((len(label_class_ids), 4))
    return ImageResult(
        "a.png", found, found, boxes, np.asarray(label_class_ids), matches, np.zeros(3)
    )


IMAGE = image_of(
    [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4), (0.2, 0.8)],
    [0, 0, 1, 1, 0],
    [(0, 0), (2, 1), (3, 2), (4, 3)],
)


def test_pairs_of_images():
    pairs = matched_pairs([IMAGE, IMAGE], 2)
    assert pairs.class_probs.shape == (8, 2)
    np.testing.assert_array_equal(pairs.class_ids, [0, 0, 1, 1] * 2)


@pytest.mark.parametrize("name", ["quarter_filters", "yogo_n", "tiny_convnext"])
def test_the_temperature_is_in_the_exported_head(name, monkeypatch):
    # The real one has 50 million parameters.
    tiny = ConvNextBackbone(depths=(1, 1), channels=(8, 16), upsampling=2)
    monkeypatch.setitem(BACKBONES, "tiny_convnext", tiny)
    spec = dataclasses.replace(make_spec(name), image_hw=(64, 96), class_temperature=1.7)
    variables = random_variables(spec)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, spec.channels)).astype(np.uint8)
    expected = jax.jit(spec.outputs)(variables, jnp.asarray(images))
    serve = jax.jit(make_serving(spec, variables))
    found = serve(jnp.asarray(images.transpose(0, 3, 1, 2), jnp.float32))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    cold = dataclasses.replace(spec, class_temperature=1.0)
    plain = jax.jit(cold.outputs)(variables, jnp.asarray(images))
    np.testing.assert_array_equal(plain[:, :5], expected[:, :5])
    logits = jnp.log(plain[:, 5:])
    np.testing.assert_allclose(jax.nn.softmax(logits / 1.7, axis=1), expected[:, 5:], atol=1e-5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    definition = write_dataset(tmp_path_factory.mktemp("data"), images=20)
    config = tiny_config(
        definition,
        train__epochs=15,
        train__eval_every_epochs=15,
        optim__learning_rate=5e-3,
        loss__objectness="cross_entropy",
        model__objectness_prior=0.1,
        model__kernel_init="fan_in",
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    train_and_evaluate(config, folder)
    return folder


@pytest.mark.slow
def test_the_command_keeps_the_temperature(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "FEWEST_PAIRS", 1)
    before = read_metadata(find_checkpoint(workdir))
    weights = restore_variables(find_checkpoint(workdir), before.model)
    calibrate.main([str(workdir), "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    after = read_metadata(find_checkpoint(workdir))
    assert after.model.class_temperature == pytest.approx(figures["class_temperature"])
    assert after.model.class_temperature != 1
    assert dataclasses.replace(after.model, class_temperature=1.0) == before.model
    assert dataclasses.replace(after, model=before.model) == before
    for a, b in zip(
        jax.tree.leaves(restore_variables(find_checkpoint(workdir), after.model)),
        jax.tree.leaves(weights),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert "calibration error" in capsys.readouterr().out
    # Once more there is nothing left to change.
    calibrate.main([str(workdir), "--quiet"])
    quiet = capsys.readouterr().out
    assert re.match(r"\d+ matched boxes of \d+ images \(val split\)\n", quiet)
    again = read_metadata(find_checkpoint(workdir)).model.class_temperature
    assert again == pytest.approx(after.model.class_temperature, rel=1e-2)


def totals(matrix: np.ndarray, class_id: int) -> tuple[int, int, int]:
    """Right, predicted and true boxes of a class."""
    return matrix[class_id, class_id], matrix[:, class_id].sum(), matrix[class_id].sum()


@pytest.fixture
def without_a_decision(workdir):
    """The checkpoint as it was."""
    folder = find_checkpoint(workdir)
    metadata = read_metadata(folder)
    yield workdir
    rewrite_metadata(folder, metadata)


def evaluated(workdir, output, *flags: str):
    """Thresholds and confusion of an evaluation on the split that they are chosen on."""
    evaluate_command(
        [str(workdir), "--split", "val", "--output", str(output), "--pictures=0", *flags]
    )
    metrics = json.loads((output / "metrics.json").read_text())
    return metrics["thresholds"], np.asarray(metrics["confusion"]["matrix"])


def test_thresholds_are_applied_as_they_were_measured(
    without_a_decision, tmp_path, monkeypatch, capsys
):
    """Kept in the checkpoint or given as a file, by both commands; left aside if asked for."""
    workdir, folder = without_a_decision, find_checkpoint(without_a_decision)
    monkeypatch.setattr(calibrate, "FEWEST_PAIRS", 1)
    file = tmp_path / "thresholds.json"
    calibrate.main([str(workdir), "--precision", "0.7", "--output", str(file)])
    assert read_metadata(folder).decision is None
    assert "not kept: boxes have their most probable class" in capsys.readouterr().out
    plain, plain_matrix = evaluated(workdir, tmp_path / "plain")
    assert plain["class_thresholds"] == []
    calibrate.main([str(workdir), "--decision", "precision", "--precision", "0.7"])
    assert "these thresholds decide from now on" in capsys.readouterr().out
    decision = read_metadata(folder).decision
    assert (decision.goal, decision.precision) == ("precision", 0.7)
    figures = json.loads(file.read_text())
    given, by_file = evaluated(workdir, tmp_path / "file", "--score-thresholds", str(file))
    stored, by_checkpoint = evaluated(workdir, tmp_path / "stored")
    assert stored["class_thresholds"] == pytest.approx(given["class_thresholds"], rel=1e-2)
    assert stored["class_thresholds"] == [*decision.class_thresholds]
    for class_id, each in enumerate(figures["thresholds"].values()):
        right, predicted, true = totals(by_file, class_id)
        assert (predicted, true) == (each["predicted"], each["true"])
        assert right == round((each["precision"] or 0) * predicted)
    np.testing.assert_array_equal(by_checkpoint, by_file)
    left_aside = evaluated(workdir, tmp_path / "aside", "--decision", "most_probable")
    assert left_aside[0] == plain
    np.testing.assert_array_equal(left_aside[1], plain_matrix)
    assert (plain_matrix != by_file).any()
    with pytest.raises(SystemExit):
        evaluated(workdir, tmp_path / "none", "--obj-thresh", "0.7")
    assert "--decision most_probable" in capsys.readouterr().err
    # The same boxes are counted by the other command.
    splits = evaluation_data(read_metadata(folder), None, print)
    (tmp_path / "frames").mkdir()
    for path in splits.val.image_paths:
        (tmp_path / "frames" / Path(path).name).symlink_to(path)
    frames = ["--images", str(tmp_path / "frames")]
    for name, flags, matrix in (
        ("with_file", ["--score-thresholds", str(file)], by_file),
        ("found", [], by_checkpoint),
        ("most_probable", ["--decision", "most_probable"], plain_matrix),
    ):
        infer.main([str(workdir), *frames, "--output", str(tmp_path / name), *flags])
        counts = json.loads((tmp_path / name / "counts.json").read_text())
        assert [*counts["by_class"].values()] == matrix.sum(0)[:-1].tolist()


@pytest.mark.parametrize("goal", ["count", "f1", "screening"])
def test_a_goal_is_kept_until_another_is_asked_for(
    without_a_decision, monkeypatch, capsys, tmp_path, goal
):
    workdir, folder = without_a_decision, find_checkpoint(without_a_decision)
    monkeypatch.setattr(calibrate, "FEWEST_PAIRS", 1)
    flags = {"screening": ["--false-positives", "50000"]}.get(goal, [])
    calibrate.main([str(workdir), "--decision", goal, *flags])
    decision = read_metadata(folder).decision
    assert decision.goal == goal
    assert decision.false_positives == (50000 if goal == "screening" else None)
    said = capsys.readouterr().out
    assert {"count": "without bias", "f1": "F1", "screening": "for 50000 false"}[goal] in said
    # At the temperature that it found, on the very same boxes.
    figures = calibrate.calibrate(workdir)
    again = read_metadata(folder).decision
    assert (again.goal, again.false_positives) == (goal, decision.false_positives)
    assert again.class_thresholds == pytest.approx(decision.class_thresholds, rel=0.02)
    _, matrix = evaluated(workdir, tmp_path / "val")
    for class_id, each in enumerate(figures["thresholds"].values()):
        assert totals(matrix, class_id)[1:] == (each["predicted"], each["true"])
    calibrate.calibrate(workdir, decision="most_probable")
    assert read_metadata(folder).decision is None


MEASURED_AT = {"objectness": 0.5, "iou": 0.5}


def test_files_of_thresholds_are_read_in_the_order_of_the_classes(tmp_path):
    """As earlier versions wrote them, too: no score of a class, and objectness 0.5."""
    file = tmp_path / "thresholds.json"
    given = {"b": None, "a": {"score": 0.25, "recall": 1}}
    file.write_text(json.dumps({"thresholds": given, "measured_at": MEASURED_AT}))
    said = []
    own = Thresholds.of_classes((0.1, 0.2))
    for others in ({}, {"objectness": 0.5, "iou": None}, {"iou": 0.5, "min_class_confidence": 0.3}):
        found = thresholds_given(own, ("a", "b"), file, said.append, **others)
        confidence = others.get("min_class_confidence", 0.0)
        assert found == Thresholds(0.5, 0.5, confidence, (0.25, 0.5))
    assert said == [f"{file}: no score of b; its boxes count from 0.5 on"] * 3


CHANGES = {
    "nothing": ({}, Thresholds.of_classes((0.1, 0.2))),
    "iou": ({"iou": 0.3}, Thresholds.of_classes((0.1, 0.2), 0.3)),
    "the most probable": ({"class_thresholds": ()}, Thresholds()),
    "above an objectness": ({"class_thresholds": (), "objectness": 0.7}, Thresholds(0.7)),
    "others": ({"class_thresholds": (0.3, 0.4)}, Thresholds.of_classes((0.3, 0.4))),
    "never": ({"class_thresholds": (1.01, 1.01)}, Thresholds(1.0, 0.5, 0.0, (1.01, 1.01))),
    "both": (
        {"class_thresholds": (0.3, 0.4), "objectness": 0.6},
        Thresholds(0.6, 0.5, 0.0, (0.3, 0.4)),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_a_user_gives_takes_the_place_of_what_the_model_says(case):
    given, expected = CHANGES[case]
    own = Thresholds.of_classes((0.1, 0.2))
    assert thresholds_given(
        own, ("a", "b"), **{"class_thresholds": None, "say": print, **given}
    ) == (expected)


def test_an_objectness_does_not_go_with_a_decision():
    own = Thresholds.of_classes((0.1, 0.2))
    message = r"decides by a score of each class \(a 0.1, b 0.2\).*--decision most_probable"
    with pytest.raises(UserError, match=message):
        own.changed(("a", "b"), objectness=0.7)
    with pytest.raises(UserError, match=r"iou must be in \[0, 1\], got 1.5"):
        own.changed(("a", "b"), iou=1.5)
    assert class_thresholds_of("stored", None) is None
    assert class_thresholds_of("most_probable", None) == ()
    assert class_thresholds_of("stored", Path("a.json")) == Path("a.json")
    with pytest.raises(UserError, match=r"or leave out --score-thresholds a\.json"):
        class_thresholds_of("most_probable", Path("a.json"))


FILES = {
    "missing": (None, "No such file or directory; expected a file to read"),
    "no_json": ("{", "expected `thresholds`"),
    "list": ([], "expected `thresholds`"),
    "number": ({"thresholds": {"a": 0.5, "b": None}, "measured_at": MEASURED_AT}, "expected `thr"),
    "not measured": ({"thresholds": {"a": None, "b": None}}, "expected `thr"),
    "classes": (
        {"thresholds": {"a": None}, "measured_at": MEASURED_AT},
        "has the classes a, the network a, b",
    ),
    "range": (
        {"thresholds": {"a": {"score": -2}, "b": None}, "measured_at": MEASURED_AT},
        r"class_thresholds of a must be 1e-06 or more, got -2",
    ),
    "elsewhere": (
        {"thresholds": {"a": None, "b": None}, "measured_at": {"objectness": 0.3, "iou": 0.4}},
        r"was measured at objectness 0\.3 and IoU 0\.4, this is 0\.3 and 0\.5: .*--iou-thresh 0\.4",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_thresholds_that_are_none(case, tmp_path):
    values, message = FILES[case]
    file = tmp_path / "thresholds.json"
    if values is not None:
        file.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(UserError, match=message):
        thresholds_given(Thresholds(), ("a", "b"), file, print)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"decision": "f1", "precision": 0.9},
            "--precision is of --decision precision, this is f1",
        ),
        ({"false_positives": 9.0}, "is of --decision screening, this is most_probable: leave it"),
    ],
)
def test_numbers_of_other_goals_are_refused(workdir, given, message):
    with pytest.raises(UserError, match=message):
        calibrate.calibrate(workdir, **given)


def test_too_few_boxes_are_refused(workdir):
    with pytest.raises(UserError, match=r"true boxes of the val split; a temperature takes 50"):
        calibrate.calibrate(workdir)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "0"], "--precision must be in (0, 1], got 0.0"),
        (["--false-positives", "0"], "--false-positives must be more than 0, got 0"),
        (["--decision", "best"], "invalid choice: 'best'"),
        (["--output", "nowhere/a.json"], "--output nowhere/a.json: nowhere is no folder"),
        (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    ],
)
def test_mistakes_are_told_without_a_traceback(flags, message):
    done = run_command([sys.executable, "-m", "yogo_jax.calibrate", "run", *flags])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
