"""Weights & Biases beside the files of a run, if it is asked for and there."""

import math
import os
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yogo_jax.config import Config
from yogo_jax.errors import UserError
from yogo_jax.output.files import write_atomically


# Longest wait for a sign of W&B's server: a cluster's nodes often have no way out.
SECONDS_TO_REACH = 1.0
# Longest wait for a run to be accepted, and at its end for what is still to be sent: it lies in the
# workdir, too, and a job that has to go has little time.
SECONDS_TO_BEGIN = 20
SECONDS_TO_END = 20


def start_wandb(config: Config, workdir: Path, say: Callable[[str], None]) -> Any:
    """A W&B run, or None; never asks anything, and waits for no network that is not there.

    A run that is continued goes on in the W&B run that it began; a W&B agent names its own.

    Args:
      config: with `track.wandb_mode`, where "auto" is online when logged in, and else off.
      workdir: W&B's own files go below it.
      say: takes the one line that tells why "auto" is off.

    Raises:
      UserError: "online" or "offline" without wandb, or "online" without its server or a login.
    """
    mode: Any = config.track.wandb_mode
    if mode == "disabled":
        return None
    try:
        import wandb
    except ImportError as error:
        if mode == "auto":
            say("Weights & Biases is off: wandb is not installed")
            return None
        raise UserError(
            f"config.track.wandb_mode={mode} needs wandb: pip install -c constraints.txt -e "
            "'.[wandb]', or set --config.track.wandb_mode=disabled"
        ) from error
    try:
        if mode != "offline":
            _require_login(wandb)
        return _init(wandb, config, workdir, "offline" if mode == "offline" else "online")
    except (_Unusable, wandb.Error) as error:
        reason = " ".join(str(error).split())
        if mode == "auto":
            say(f"Weights & Biases is off: {reason}")
            return None
        raise UserError(
            f"config.track.wandb_mode={mode}: {reason}; mend that, or set "
            "--config.track.wandb_mode=offline and `wandb sync` the folder later"
        ) from error


class _Unusable(Exception):
    """W&B cannot be used online, and why."""


def _require_login(wandb: Any) -> None:
    url = wandb.setup().settings.base_url
    if not can_reach(url, SECONDS_TO_REACH):
        raise _Unusable(f"{url} cannot be reached")
    if not wandb.login(prompt=False):
        raise _Unusable("not logged in, see `wandb login`")


def can_reach(url: str, seconds: float) -> bool:
    """Whether a server answers at all within some seconds, also through a proxy."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer, too
        except (OSError, ValueError):
            return
        answered.set()

    # In a thread, because looking up a name may take longer than any timeout says.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _init(wandb: Any, config: Config, workdir: Path, mode: str) -> Any:
    track = config.track
    run = wandb.init(
        mode=mode,
        entity=track.entity or None,
        project=track.project,
        name=track.name or workdir.name,
        notes=track.note or None,
        tags=list(track.tags),
        dir=str(workdir),
        config=config.to_dict(),
        settings=wandb.Settings(
            silent=True, init_timeout=SECONDS_TO_BEGIN, finish_timeout=SECONDS_TO_END
        ),
        **_identity(workdir),
    )
    # Steps are a value of their own: W&B's only go up, but a continued run repeats some.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _identity(workdir: Path) -> dict[str, Any]:
    """Under which name W&B knows the run; its own agents choose it themselves."""
    if os.environ.get("WANDB_RUN_ID") or os.environ.get("WANDB_SWEEP_ID"):
        return {}
    path = workdir / "wandb" / "run_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4))
    return {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}


def scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The finite numbers of a nested mapping, under names joined by slashes."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((f"{prefix}{name}", value))
    return found
