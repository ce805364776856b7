"""The test at the end of a run: its best checkpoint on the test split."""

from pathlib import Path
from typing import Any

from yogo_jax.data.records import Records
from yogo_jax.detector.found import Thresholds
from yogo_jax.evaluation.evaluator import Evaluator
from yogo_jax.evaluation.report.history import History
from yogo_jax.evaluation.tables import format_metrics
from yogo_jax.training.checkpoints import find_checkpoint, read_metadata, restore_variables
from yogo_jax.training.preemption import Stop
from yogo_jax.training.tracking import Tracker, read_metrics


# Frames of the test set that are drawn with their boxes.
TEST_PICTURES = 8


def write_test(
    evaluator: Evaluator, workdir: Path, records: Records, tracker: Tracker, stop: Stop
) -> dict[str, Any]:
    """Tests the best checkpoint, writes test/ and prints the metrics.

    Args:
      evaluator: of the run's model, with the default thresholds.
      workdir: of the run.
      records: at least one image.
      tracker: takes the lines, and has logged the training.
      stop: asks to leave it for later.

    Returns:
      What test/metrics.json holds.

    Raises:
      UserError: an image cannot be read.
      Stopped: the run was asked to stop, before test/metrics.json was written.
    """
    # Imported late: scikit-learn takes a second, which the start of a training need not wait for.
    from yogo_jax.evaluation.report.page import Subject
    from yogo_jax.evaluation.report.results import write_results

    folder = find_checkpoint(workdir)
    metadata = read_metadata(folder)
    variables = restore_variables(folder, metadata.model)
    tracker.flush()
    subject = Subject(
        title=f"Test of {workdir.name}",
        subtitle=f"{folder}, {len(records)} images of the test split",
        spec=metadata.model,
        thresholds=Thresholds(),
        config=metadata.config,
        history=History(workdir.name, read_metrics(workdir / "metrics.jsonl")),
    )
    output = workdir / "test"
    with stop.held():
        evaluation = evaluator.run(variables, records, keep_images=True, before_batch=stop.check)
    stop.check()
    metrics = write_results(
        output,
        evaluation,
        subject,
        checkpoint=folder,
        step=metadata.step,
        pictures=TEST_PICTURES,
    )
    tracker.say(format_metrics(metrics))
    tracker.say(
        f"tested {folder}; written {output / 'metrics.json'}, {output / 'report.html'} and "
        f"{output / 'pictures'}"
    )
    return metrics
