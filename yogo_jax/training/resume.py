"""Where a run starts: from nothing, from what its workdir holds, or from a given checkpoint."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from yogo_jax.config import Config, differences, with_defaults
from yogo_jax.errors import UserError
from yogo_jax.given import given_path
from yogo_jax.output.files import write_atomically, write_json
from yogo_jax.training.checkpoints import committed_checkpoints, find_checkpoint, read_metadata
from yogo_jax.training.metadata import Metadata
from yogo_jax.training.run_data import same_path, with_paths_of


# What may change when a run goes on: it alters where work is done or how often it is saved, not
# what is computed.
MAY_CHANGE = {
    # The fingerprint holds the data, wherever it lies.
    "data": {"workers", "cache", "definition"},
    "train": {"resume", "checkpoint_every_minutes", "eval_every_epochs", "max_hours", "patience"},
    "track": None,
}


def that_must_agree(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config, as plain values, that what is computed follows from."""
    kept: dict[str, Any] = {}
    for group, fields in values.items():
        free = MAY_CHANGE.get(group, set())
        if free is None:
            continue
        if isinstance(fields, Mapping):
            kept[group] = {name: value for name, value in fields.items() if name not in free}
        else:
            kept[group] = fields
    return kept


class Start(NamedTuple):
    """The checkpoint that a run goes on from; `own` if it lies in the run's workdir already."""

    folder: Path
    metadata: Metadata
    own: bool


def find_start(config: Config, workdir: Path, data_fingerprint: str) -> Start | None:
    """The checkpoint to go on from, None for a run that starts from nothing.

    Raises:
      UserError: the workdir is in use and `train.resume` does not allow that, or what it would
        continue has another config or other data.
    """
    resume = config.train.resume
    own = committed_checkpoints(workdir / "checkpoints")
    if resume == "never":
        if own or (workdir / "config.json").exists():
            raise UserError(
                f"{workdir} holds a run already and train.resume is 'never': choose another "
                "--workdir, or continue it with --config.train.resume=auto"
            )
        return None
    if own:
        if resume != "auto" and not same_path(_recorded_resume(workdir), resume):
            raise UserError(
                f"{workdir} holds checkpoints of its own, so train.resume={resume} would pass "
                "them over: choose another --workdir, or --config.train.resume=auto"
            )
        folder = own[-1]
    elif resume == "auto":
        _check_unsaved_run(config, workdir)
        return None
    else:
        given = given_path(resume)
        # A run is continued where it stopped, not where it was best.
        runs = committed_checkpoints(given / "checkpoints")
        folder = runs[-1] if runs else find_checkpoint(given)
    metadata = read_metadata(folder)
    _check_same(config, metadata, data_fingerprint, folder)
    return Start(folder, metadata, own=bool(own))


def adopt(start: Start, workdir: Path) -> None:
    """Takes another run's progress over into the workdir, which then stands on its own.

    Args:
      start: a checkpoint that lies elsewhere; of a run's workdir, its best goes along, and its
        metrics.
      workdir: of the new run.
    """
    folders = [start.folder]
    if start.folder.parent.name == "checkpoints":
        other = start.folder.parent.parent
        best = find_checkpoint(other)
        if read_metadata(best).step < start.metadata.step:
            folders.append(best)
        metrics = other / "metrics.jsonl"
        if metrics.exists():
            write_atomically(workdir / "metrics.jsonl", metrics.read_text(encoding="utf-8"))
    for folder in folders:
        place = workdir / "checkpoints" / str(read_metadata(folder).step)
        # Renamed when complete: a kill must not leave half a checkpoint under a valid name.
        unfinished = place.with_name(f".{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        unfinished.rename(place)


def _check_unsaved_run(config: Config, workdir: Path) -> None:
    """Refuses to start over a run that has logged steps but saved none yet."""
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); choose another --workdir") from error
    different = _differences(recorded, config)
    if different:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(different)}) that has no "
            "checkpoint yet: delete it, or choose another --workdir"
        )


def record_config(config: Config, workdir: Path) -> None:
    """Writes `config.json`."""
    write_json(workdir / "config.json", config.to_dict())


def _differences(recorded: Mapping[str, Any], config: Config) -> list[str]:
    """Fields of a recorded config that must agree with those of now, and do not."""
    now = config.to_dict()
    recorded = with_paths_of(now, with_defaults(recorded))
    return differences(that_must_agree(recorded), that_must_agree(now))


def _recorded_resume(workdir: Path) -> str:
    try:
        return json.loads((workdir / "config.json").read_text(encoding="utf-8"))["train"]["resume"]
    except (OSError, ValueError, KeyError):
        return ""


def _check_same(config: Config, metadata: Metadata, data_fingerprint: str, folder: Path) -> None:
    if not metadata.config:
        raise UserError(
            f"{folder} holds weights only, there is no run to continue: use "
            f"--config.train.from_pretrained={folder}"
        )
    different = _differences(metadata.config, config)
    if different:
        raise UserError(
            f"{folder} was trained with another config ({'; '.join(different)}): give the same "
            "values to continue it, or choose another --workdir"
        )
    if metadata.data_fingerprint != data_fingerprint:
        raise UserError(
            f"{folder} was trained on other data: images, labels or thumbnails of "
            f"{config.data.definition}, or train.teacher, have changed since. Restore them to "
            "continue it, or choose another --workdir"
        )
