"""Evaluations of a run: the validations between its epochs, and the test of its best checkpoint."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from yogo_jax.checkpoint.metadata import Decision, Metadata
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.store import (
    find_checkpoint,
    read_metadata,
    restore_variables,
    rewrite_metadata,
)
from yogo_jax.config.schema import Config
from yogo_jax.data.pipeline import PackedImages
from yogo_jax.data.records import Records
from yogo_jax.detector.detections import NotNumbersError, Thresholds
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.decisions import Goal, candidates_of, caveats, choose_thresholds
from yogo_jax.metrics.evaluator import IMAGES_AT_A_TIME, Evaluation, Evaluator
from yogo_jax.parallel import Devices
from yogo_jax.reports.tables import format_metrics
from yogo_jax.training.tracking import NotFiniteError, Tracker


# Frames of the test set that are drawn with their boxes.
TEST_PICTURES = 8
# Of each class's ROC curve, in the log.
MAX_ROC_POINTS = 100
# Of a run that has no data to choose a decision by.
STAYS_MOST_PROBABLE = "each box stays with its most probable class (train.decision)"


def make_evaluator(
    spec: ModelSpec, config: Config, max_boxes: int, devices: Devices, thresholds: Thresholds
) -> Evaluator:
    """The evaluator of a run, for its model or one that differs by a temperature.

    Args:
      spec: of the model.
      config: of the run.
      max_boxes: of an image.
      devices: of the run.
      thresholds: of the detections that are counted.
    """
    return Evaluator(
        spec,
        loss_weights=config.loss.for_evaluation(),
        batch_size=min(config.train.batch_size, IMAGES_AT_A_TIME),
        max_boxes=max_boxes,
        workers=config.data.workers,
        thresholds=thresholds,
        devices=devices,
    )


def validate(
    evaluator: Evaluator,
    variables: Mapping[str, Any],
    records: Records,
    tracker: Tracker,
    *,
    step: int,
    epoch: int,
    before_batch: Callable[[], None],
    packed: PackedImages | None = None,
) -> dict[str, Any] | None:
    """Metrics of the validation split, logged; None without such a split.

    Args:
      variables: `params` and `batch_stats` after so many steps.
      records: of the split, maybe none.
      before_batch: called before each batch; what it raises ends the validation, unlogged.
      packed: the images of the split, if they are packed.

    Raises:
      NotFiniteError: the loss is no longer finite.
    """
    if len(records) == 0:
        tracker.say("no validation split in this data set: the latest checkpoint is the best")
        return None
    tracker.doing(f"validating with {len(records)} images")
    try:
        evaluation = evaluator.run(
            variables,
            records,
            keep_images=tracker.shows_images,
            before_batch=before_batch,
            packed=packed,
        )
    except NotNumbersError as error:
        raise NotFiniteError(
            f"the validation after step {step} cannot be used: lower "
            f"--config.optim.learning_rate ({error})"
        ) from error
    metrics = evaluation.metrics
    tracker.log("validation", step, {"epoch": epoch, **metrics})
    tracker.show("validation", step, evaluation, evaluator.spec)
    m_ap = metrics["mAP50"]
    tracker.say(
        f"epoch {epoch}: validation loss {metrics['loss']:.4f}, mAP50 "
        f"{'-' if m_ap is None else f'{m_ap:.4f}'}"
    )
    return metrics


EvaluatorOf = Callable[[ModelSpec, Thresholds], Evaluator]


class Best(NamedTuple):
    """The best checkpoint of a run, and its description."""

    folder: Path
    metadata: Metadata


class TestResult(NamedTuple):
    """The best checkpoint of a run, and what it finds in the test split."""

    folder: Path
    metadata: Metadata
    evaluation: Evaluation


def find_best(workdir: Path) -> Best:
    """The best checkpoint of a run."""
    folder = find_checkpoint(workdir)
    return Best(folder, read_metadata(folder))


def other_decision_lines(config: Config, workdir: Path, *, validated: bool) -> list[str]:
    """A line for a finished run that decides otherwise than its config asks for now, if it does.

    Args:
      validated: whether there is a validation split to decide by.
    """
    decision, asked = find_best(workdir).metadata.decision, config.train.decision
    goal = "most_probable" if decision is None else decision.goal
    if goal == asked or not validated:
        return []
    change = f"yogo-jax calibrate {workdir} --decision {asked}"
    if asked == "most_probable":
        change = "--decision most_probable of evaluate and infer"
    return [f"the run decides classes by {goal}, not by train.decision={asked}: {change} does"]


def decide_best(
    evaluator_of: EvaluatorOf,
    best: Best,
    records: Records,
    goal: Goal,
    *,
    before_batch: Callable[[], None],
    packed: PackedImages | None,
    say: Callable[[str], None],
) -> Best:
    """Chooses thresholds of classes and keeps them in the best checkpoint.

    All processes of a run do it together; the first one writes.

    Args:
      evaluator_of: an evaluator of a model; what the best checkpoint says of itself may differ from
        the run's by a temperature.
      best: as it is.
      records: of the validation split.
      goal: what they are chosen for.
      before_batch: called before each batch; what it raises ends the evaluation.
      packed: the images of the split, if they are packed.
      say: takes what there is to say.

    Returns:
      The checkpoint as it is then; as it was if there is no true box to choose by.

    Raises:
      UserError: an image cannot be read.
    """
    folder, metadata = best
    names = metadata.model.class_names
    evaluator = evaluator_of(metadata.model, Thresholds())
    variables = restore_variables(folder, metadata.model, evaluator.devices.copied)
    evaluation = evaluator.run(
        variables, records, keep_images=True, before_batch=before_batch, packed=packed
    )
    candidates = candidates_of(evaluation.images, len(names))
    if not candidates.objects.any():
        say(f"no true box in the validation split: {STAYS_MOST_PROBABLE}")
        return best
    thresholds = choose_thresholds(candidates, goal)
    decision = Decision(goal=goal.name, class_thresholds=thresholds, **goal.numbers)
    metadata = dataclasses.replace(metadata, decision=decision)
    if evaluator.devices.first:
        rewrite_metadata(folder, metadata)
    evaluator.devices.wait("decided")
    shown = ", ".join(f"{name} {score:.3f}" for name, score in zip(names, thresholds, strict=True))
    say(f"classes are decided for {goal.name}, by the thresholds {shown}")
    for line in caveats(candidates, thresholds, names, goal):
        say(line)
    return Best(folder, metadata)


def evaluate_best(
    evaluator_of: EvaluatorOf,
    best: Best,
    records: Records,
    *,
    before_batch: Callable[[], None],
) -> TestResult:
    """Evaluates the best checkpoint as it decides; all processes of a run do it together.

    Args:
      evaluator_of: an evaluator of a model; what the best checkpoint says of itself may differ from
        the run's by a temperature.
      best: that checkpoint.
      records: at least one image.
      before_batch: called before each batch; what it raises ends the evaluation.

    Raises:
      UserError: an image cannot be read.
    """
    folder, metadata = best
    evaluator = evaluator_of(metadata.model, metadata.thresholds)
    variables = restore_variables(folder, metadata.model, evaluator.devices.copied)
    evaluation = evaluator.run(variables, records, keep_images=True, before_batch=before_batch)
    return TestResult(folder, metadata, evaluation)


def write_test(result: TestResult, workdir: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes test/ and prints the metrics; the tracker has logged the training.

    Returns:
      What test/metrics.json holds.

    Raises:
      UserError: an image can no longer be read.
    """
    # Imported late: scikit-learn takes a second, which the start of a training need not wait for.
    from yogo_jax.reports.evaluation_page import Subject, write_results
    from yogo_jax.reports.history import History

    folder, metadata, evaluation = result
    tracker.flush()
    tracker.doing("writing the report of the test")
    subject = Subject(
        title=f"Test of {workdir.name}",
        subtitle=f"{folder}, {len(evaluation.images)} images of the test split",
        spec=metadata.model,
        thresholds=metadata.thresholds,
        config=metadata.config,
        history=History(workdir.name, read_metrics(workdir / "metrics.jsonl"), metadata.keep_best),
    )
    output = workdir / "test"
    metrics = write_results(
        output,
        evaluation,
        subject,
        checkpoint=folder,
        step=metadata.step,
        pictures=TEST_PICTURES,
    )
    tracker.say(format_metrics(metrics))
    for finding in metrics["findings"]:
        tracker.say(finding)
    tracker.say(
        f"tested {folder}; written {output / 'metrics.json'}, {output / 'report.html'} and "
        f"{output / 'pictures'}"
    )
    return metrics


def read_test(workdir: Path) -> dict[str, Any] | None:
    """The metrics in test/ of a run's best checkpoint as it is now; None if not tested yet."""
    output = workdir / "test"
    # Logged is a test after everything is written; a run that goes on takes it out of the log.
    logged = any(each["kind"] == "test" for each in read_metrics(workdir / "metrics.jsonl"))
    if not logged or not (output / "report.html").exists():
        return None
    metadata = read_metadata(find_checkpoint(workdir))
    try:
        metrics: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        # A calibration gives a checkpoint another temperature, and maybe another decision.
        tested = (
            metrics["step"],
            metrics.get("class_temperature", 1.0),
            tuple(metrics.get("thresholds", {}).get("class_thresholds", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    thresholds = metadata.thresholds.class_thresholds
    now = metadata.step, metadata.model.class_temperature, thresholds
    return metrics if tested == now else None


def log_test(result: TestResult, metrics: Mapping[str, Any], step: int, tracker: Tracker) -> None:
    """Logs the test and its ROC curves."""
    from yogo_jax.metrics.curves import roc

    names, images = result.metadata.model.class_names, result.evaluation.images
    rocs = {name: roc(images, index) for index, name in enumerate(names)}
    points = {
        name: None
        if curve is None
        else dict(zip(("fpr", "tpr"), curve.thinned(MAX_ROC_POINTS), strict=True))
        for name, curve in rocs.items()
    }
    tracker.log("test", step, {**metrics, "roc_by_class": points})
    tracker.show("test", step, result.evaluation, result.metadata.model, rocs)
