"""Checkpoints of converted networks, and a model in one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yogo_jax.checkpoint.metadata import Metadata, git_revision
from yogo_jax.checkpoint.store import write_weights
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError


def write_converted(
    folder: Path,
    spec: ModelSpec,
    variables: Mapping[str, Any],
    *,
    source: str,
    step: int = 0,
    epoch: int = 0,
) -> None:
    """Writes the weights that were converted from the file `source`.

    Raises:
      UserError: the place is not writable.
    """
    metadata = Metadata(
        model=spec,
        config={},
        step=step,
        epoch=epoch,
        position=0,
        data_fingerprint="",
        validation=None,
        git_revision=git_revision(),
        source=source,
    )
    write_weights(folder, variables, metadata)


def split_names(names: str | None) -> tuple[str, ...]:
    """The classes of `--class-names A,B,C`; none if it was not given."""
    return tuple(names.split(",")) if names else ()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file at fault before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def describe(spec: ModelSpec) -> str:
    """A model in one line."""
    rows, columns = spec.image_hw
    return (
        f"{spec.architecture} for {rows}x{columns} px {'RGB' if spec.rgb else 'gray'}, "
        f"{'divided by 255' if spec.normalize_images else 'not divided by 255'}, "
        f"anchor {spec.anchor_wh[0]:.6g},{spec.anchor_wh[1]:.6g}, "
        f"classes {', '.join(spec.class_names)}"
    )
