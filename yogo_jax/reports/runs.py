"""Reads runs from their workdirs, finished or not: config, log and test metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.config.fields import flat, with_current_names
from yogo_jax.errors import UserError
from yogo_jax.files import read_json
from yogo_jax.reports.history import History


NOTHING_LOGGED = "nothing is logged yet"


@dataclass(frozen=True)
class LoggedRun:
    """A run as its workdir records it.

    Attributes:
      workdir: the folder.
      config: fields of the config.
      history: the log.
      test: test metrics; None before the test, and while the run continues after a test.
    """

    workdir: Path
    config: Mapping[str, Any]
    history: History
    test: Mapping[str, Any] | None

    @property
    def state(self) -> str:
        """State as text: nothing logged, unfinished with its progress, trained, or finished."""
        epochs, done = self.config["train"]["epochs"], self.epochs_done
        if not self.history.last_step:
            return NOTHING_LOGGED
        if self.test is not None:
            return "finished"
        if done is None:
            return f"unfinished: step {self.history.last_step} of epoch 1 of {epochs}"
        return "trained" if done >= epochs else f"unfinished: epoch {done:.1f} of {epochs}"

    @property
    def epochs_done(self) -> float | None:
        """Finished epochs, as a fraction; None during the first epoch."""
        steps = self.history.steps_per_epoch
        return self.history.last_step / steps if steps else None


def read_run(workdir: Path, name: str) -> LoggedRun:
    """Reads the workdir of a run; a line of the log that is just being written is left out.

    Args:
      workdir: workdir of the run.
      name: name under which the run is shown.

    Raises:
      UserError: the folder is no workdir, or one of its files is damaged.
    """
    if not (workdir / "config.json").is_file():
        found = "no config.json in it" if workdir.is_dir() else "no such folder"
        raise UserError(f"{workdir}: expected the workdir of a run, found {found}")
    config = _read_fields(workdir / "config.json", ("train",))
    if not isinstance(config["train"], dict) or "epochs" not in config["train"]:
        raise UserError(f"{workdir / 'config.json'}: expected train.epochs; is it of a run?")
    records = read_metrics(workdir / "metrics.jsonl")
    keep_best = config["train"].get("keep_best", "loss")
    history = History(name, [each for each in records if _is_record(each)], keep_best)
    if len(history.records) < len(records):
        raise UserError(
            f"{workdir / 'metrics.jsonl'}: expected objects with 'kind', 'step' and 'epoch', found "
            "others: is it of this version?"
        )
    test_file = workdir / "test" / "metrics.json"
    test = _read_fields(test_file, ("mAP50", "test_loss")) if test_file.exists() else None
    # A run that continues removes the test from its log: the file is of an earlier checkpoint.
    return LoggedRun(workdir, config, history, test if history.of_kind("test") else None)


def _is_record(record: object) -> bool:
    if not isinstance(record, Mapping) or not {"kind", "step"} <= record.keys():
        return False
    return record["kind"] in ("start", "test") or {"epoch", "loss"} <= record.keys()


def _read_fields(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict) or not set(fields) <= values.keys():
        raise UserError(f"{path}: expected an object with {', '.join(fields)}; is it of a run?")
    return values


def names_of(workdirs: Sequence[Path]) -> list[str]:
    """Returns names for runs: the names of their folders, or the paths if two names are equal."""
    names = [workdir.resolve().name for workdir in workdirs]
    shared = {name for name in names if names.count(name) > 1}
    return [
        str(workdir) if name in shared else name
        for name, workdir in zip(names, workdirs, strict=True)
    ]


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Returns the fields in which configs differ, with each value; None for a missing field."""
    all_fields = [flat(with_current_names(config)) for config in configs]
    names = list(dict.fromkeys(name for each in all_fields for name in each))
    rows = [(name, [each.get(name) for each in all_fields]) for name in names]
    return [(name, values) for name, values in rows if any(each != values[0] for each in values)]
