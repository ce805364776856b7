"""Evaluations of a run: the validations between its epochs, and the test of its best checkpoint."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.config.schema import Config
from yogo_jax.data.pipeline import PackedImages
from yogo_jax.data.records import Records
from yogo_jax.detector.detections import NotNumbersError, Thresholds
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.metrics.evaluator import IMAGES_AT_A_TIME, Evaluation, Evaluator
from yogo_jax.parallel import Devices
from yogo_jax.reports.tables import format_metrics
from yogo_jax.training.tracking import NotFiniteError, Tracker


# Frames of the test set that are drawn with their boxes.
TEST_PICTURES = 8
# Of each class's ROC curve, in the log.
MAX_ROC_POINTS = 100


def make_evaluator(spec: ModelSpec, config: Config, max_boxes: int, devices: Devices) -> Evaluator:
    """The evaluator of a run, for its model or one that differs by a temperature."""
    return Evaluator(
        spec,
        loss_weights=config.loss.for_evaluation(),
        batch_size=min(config.train.batch_size, IMAGES_AT_A_TIME),
        max_boxes=max_boxes,
        workers=config.data.workers,
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


class TestResult(NamedTuple):
    """The best checkpoint of a run, and what it finds in the test split."""

    folder: Path
    metadata: Metadata
    evaluation: Evaluation


def evaluate_best(
    evaluator_of: Callable[[ModelSpec], Evaluator],
    workdir: Path,
    records: Records,
    *,
    before_batch: Callable[[], None],
) -> TestResult:
    """Evaluates the best checkpoint; all processes of a run do it together.

    Args:
      evaluator_of: an evaluator of a model, with the default thresholds; what the best checkpoint
        says of itself may differ from the run's by a temperature.
      records: at least one image.
      before_batch: called before each batch; what it raises ends the evaluation.

    Raises:
      UserError: an image cannot be read.
    """
    folder = find_checkpoint(workdir)
    metadata = read_metadata(folder)
    evaluator = evaluator_of(metadata.model)
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
        thresholds=Thresholds(),
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
        # A calibration gives a checkpoint another temperature.
        tested = metrics["step"], metrics.get("class_temperature", 1.0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return metrics if tested == (metadata.step, metadata.model.class_temperature) else None


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
