"""Weights & Biases beside the files of a run, if it is asked for and there."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yogo_jax.config import Config
from yogo_jax.errors import UserError


def start_wandb(config: Config, workdir: Path, say: Callable[[str], None]) -> Any:
    """A W&B run, or None; never asks anything.

    Args:
      config: with `track.wandb_mode`, where "auto" is online when logged in, and else off.
      workdir: W&B's own files go below it.
      say: takes the one line that tells why "auto" is off.

    Raises:
      UserError: "online" or "offline" without wandb, or "online" without a login.
    """
    track = config.track
    mode: Any = track.wandb_mode
    if mode == "disabled":
        return None
    try:
        import wandb
    except ImportError as error:
        if mode == "auto":
            say("Weights & Biases is off: wandb is not installed")
            return None
        raise UserError(
            f"config.track.wandb_mode={mode} needs wandb: pip install 'yogo-jax[wandb]', or set "
            "--config.track.wandb_mode=disabled"
        ) from error
    if mode in ("auto", "online") and not wandb.login(prompt=False):
        if mode == "auto":
            say("Weights & Biases is off: not logged in")
            return None
        raise UserError(
            "config.track.wandb_mode=online needs a login: run `wandb login` first, or set "
            "--config.track.wandb_mode=offline"
        )
    return wandb.init(
        mode="online" if mode == "auto" else mode,
        entity=track.entity or None,
        project=track.project,
        name=track.name or workdir.name,
        notes=track.note or None,
        tags=list(track.tags),
        dir=str(workdir),
        config=config.to_dict(),
        settings=wandb.Settings(silent=True),
    )


def scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The finite numbers of a nested mapping, under names joined by slashes."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((f"{prefix}{name}", value))
    return found
