"""Where the progress of a run goes: terminal, `train.log`, `metrics.jsonl`, and W&B if asked."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from yogo_jax.config import Config
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.evaluation.curves import Roc
from yogo_jax.evaluation.evaluator import Evaluation
from yogo_jax.output.files import write_atomically
from yogo_jax.output.progress import Heartbeat
from yogo_jax.training.wandb_run import scalars, start_wandb


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsLog:
    """Appends to `metrics.jsonl`.

    A continued run first drops what came after its checkpoint, and what comes again: the test, and
    the checkpoint's validation if that was cut short.
    """

    def __init__(self, path: Path, *, first_step: int, validated: bool = True) -> None:
        again = {("validation", first_step)} if not validated else set()
        kept = [
            record
            for record in read_metrics(path)
            if record["step"] <= first_step
            and record["kind"] != "test"
            and (record["kind"], record["step"]) not in again
        ]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """One object as one line."""
        self._file.write(json.dumps(dict(record)) + "\n")

    def flush(self) -> None:
        """Hands everything written to the operating system, which a kill does not undo."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()


class Console:
    """Lines to the terminal and to the log file, and a live bar if there is a terminal."""

    def __init__(self, log_path: Path, *, total_steps: int, first_step: int) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = log_path.open("a", buffering=1, encoding="utf-8")
        self._live = sys.stdout.isatty()
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=first_step)
        self._progress.start()
        self._heartbeat = Heartbeat(self._say_still)
        self._heartbeat.__enter__()

    def say(self, line: str) -> None:
        """A line that stays, with the time in the log file."""
        self._heartbeat.said()
        self._print(line)
        self._write(line)

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write(self, line: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.writelines(f"{stamp} {part}\n" for part in line.splitlines())

    def _say_still(self, line: str) -> None:
        # A bar shows the same, and moves.
        if not self._live:
            self._print(line)
        self._write(line)

    def doing(self, text: str, step: int | None = None) -> None:
        """Shows what is done from now on, and how many steps of the run are done."""
        self._heartbeat.doing(text)
        if self._live:
            self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        """Takes the bar away and closes the log file."""
        self._heartbeat.__exit__()
        self._progress.stop()
        self._log.close()


class Tracker:
    """Everything above together, and Weights & Biases beside it.

    Use as a context manager. Records carry "kind" and "step"; the same go to every place.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        *,
        total_steps: int,
        first_step: int = 0,
        validated: bool = True,
    ) -> None:
        path = workdir / "metrics.jsonl"
        self._metrics = MetricsLog(path, first_step=first_step, validated=validated)
        self._console = Console(
            workdir / "train.log", total_steps=total_steps, first_step=first_step
        )
        try:
            self._wandb = start_wandb(config, workdir, self.say)
        except BaseException:
            self._close_files()
            raise

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        code = 0 if kind is None else 1
        try:
            self._to_wandb(lambda run: run.finish(exit_code=code))
        finally:
            self._close_files()

    def _close_files(self) -> None:
        self._metrics.close()
        self._console.close()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.say(line)

    def doing(self, text: str, step: int | None = None) -> None:
        """What is done from now on: in the bar if there is one, and in a line from time to time.

        Args:
          text: in some words.
          step: steps of the run that are done; None leaves the bar where it is.
        """
        self._console.doing(text, step)

    def flush(self) -> None:
        """Hands everything logged to the operating system, which a kill does not undo."""
        self._metrics.flush()

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record of a kind ("train", "validation", "test"), after `step` updates."""
        self._metrics.write({"kind": kind, "step": step, **values})
        if kind != "train":
            # Before the checkpoint that says it is done: a kill between must not lose it.
            self._metrics.flush()

        def log_scalars(run: Any) -> None:
            flat = {f"{kind}/{name}": value for name, value in scalars(values)}
            run.log({"step": step, **flat})

        self._to_wandb(log_scalars)

    def start(self, step: int, environment: Mapping[str, Any]) -> None:
        """Where and by what the run is computed from `step` on, until it stops."""
        self._metrics.write({"kind": "start", "step": step, **environment})
        self._metrics.flush()
        values = {"environment": dict(environment)}
        self._to_wandb(lambda run: run.config.update(values, allow_val_change=True))

    @property
    def shows_images(self) -> bool:
        """Whether `show` needs the images of an evaluation."""
        return self._wandb is not None

    def show(
        self,
        kind: str,
        step: int,
        evaluation: Evaluation,
        spec: ModelSpec,
        rocs: Mapping[str, Roc | None] | None = None,
    ) -> None:
        """Pictures and tables of an evaluation, where there is a place for them.

        Args:
          kind: "validation" or "test".
          step: updates of the weights evaluated.
          evaluation: with its images, if `shows_images`.
          spec: of the model.
          rocs: curves by class, if they were measured.
        """

        def log_media(run: Any) -> None:
            from yogo_jax.training.wandb_media import evaluation_media

            media = evaluation_media(evaluation, spec, rocs)
            run.log({"step": step} | {f"{kind}/{key}": media[key] for key in media})

        self._to_wandb(log_media)

    def _to_wandb(self, action: Callable[[Any], None]) -> None:
        """Does something with the W&B run, if there is one; a trouble there ends that run alone."""
        if self._wandb is None:
            return
        try:
            action(self._wandb)
        except Exception as error:  # of its service, its network, or an image that has gone
            self._wandb = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"Weights & Biases is off from here on: {reason}")


class SilentTracker(Tracker):
    """Reports nothing: of several processes of a run only the first one writes."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, line: str) -> None:
        """Nothing."""

    def doing(self, text: str, step: int | None = None) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def start(self, step: int, environment: Mapping[str, Any]) -> None:
        """Nothing."""

    @property
    def shows_images(self) -> bool:
        """No."""
        return False

    def show(self, *_: object) -> None:
        """Nothing."""
