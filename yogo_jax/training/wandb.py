"""Weights & Biases beside the files of a run, if it is asked for and there."""

import math
import os
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yogo_jax.config.schema import Config
from yogo_jax.data.images import read_image
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.files import write_atomically
from yogo_jax.metrics.curves import Roc
from yogo_jax.metrics.evaluator import Evaluation, ImageResult


# Frames of an evaluation that are shown: the same ones each time, so that one sees them change.
PICTURES = 4
# Of each class's curve.
MAX_ROC_POINTS = 200


def evaluation_media(
    evaluation: Evaluation, spec: ModelSpec, rocs: Mapping[str, Roc | None] | None = None
) -> dict[str, Any]:
    """Pictures, tables and curves of an evaluation for W&B, by name.

    Args:
      evaluation: with its images.
      spec: says how images are read, and the class names.
      rocs: by class, if they were measured.

    Returns:
      `pictures` with the boxes found and the true ones as layers, `classes`, a table of counts and
      metrics by class, `confusion` and, if there are curves, `roc`.

    Raises:
      UserError: an image can no longer be read.
    """
    import wandb

    media: dict[str, Any] = {
        "pictures": [_picture(wandb, image, spec) for image in evaluation.images[:PICTURES]],
        "classes": _classes(wandb, evaluation.metrics, spec.class_names),
        "confusion": _confusion(wandb, evaluation.metrics["confusion"]),
    }
    if rocs is not None and any(rocs.values()):
        media["roc"] = _rocs(wandb, rocs)
    return media


def _picture(wandb: Any, image: ImageResult, spec: ModelSpec) -> Any:
    pixels = read_image(
        image.path, image_hw=spec.image_hw, rgb=spec.rgb, apply_orientation=spec.apply_orientation
    )
    found, names = image.found, dict(enumerate(spec.class_names))
    scores = [
        {"objectness": float(objectness), "score": float(score)}
        for objectness, score in zip(found.objectness, found.scores, strict=True)
    ]
    layers = {
        "found": _boxes(found.boxes_xyxy, found.class_ids, spec.class_names, scores),
        "true": _boxes(image.label_boxes_xyxy, image.label_class_ids, spec.class_names),
    }
    return wandb.Image(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
        caption=f"{image.path}: loss {image.loss:.2f}",
        boxes={name: {"box_data": boxes, "class_labels": names} for name, boxes in layers.items()},
    )


def _boxes(
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    corners = ("minX", "minY", "maxX", "maxY")
    return [
        {
            "position": dict(zip(corners, np.clip(box, 0, 1).tolist(), strict=True)),
            "class_id": int(class_id),
            "box_caption": class_names[class_id],
            **({} if scores is None else {"scores": scores[index]}),
        }
        for index, (box, class_id) in enumerate(zip(boxes_xyxy, class_ids, strict=True))
    ]


_BY_CLASS = ("AP50", "AP50_95", "precision", "recall", "accuracy", "missed", "extra")


def _classes(wandb: Any, metrics: Mapping[str, Any], class_names: Sequence[str]) -> Any:
    # Rows are true, columns are found; the last of both is the background.
    matrix = np.asarray(metrics["confusion"]["matrix"])
    columns = ["class", "true", "found", *_BY_CLASS]
    rows = [
        [
            name,
            int(matrix[index].sum()),
            int(matrix[:, index].sum()),
            *(metrics[f"{key}_by_class"][name] for key in _BY_CLASS),
        ]
        for index, name in enumerate(class_names)
    ]
    return wandb.Table(columns=columns, data=rows)


def _confusion(wandb: Any, confusion: Mapping[str, Any]) -> Any:
    names = confusion["class_names"]
    rows = [
        [true, found, int(count)]
        for true, counts in zip(names, confusion["matrix"], strict=True)
        for found, count in zip(names, counts, strict=True)
    ]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows),
        {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        {"title": "Confusion, true against found"},
    )


def _rocs(wandb: Any, rocs: Mapping[str, Roc | None]) -> Any:
    rows = [
        [name, x, y]
        for name, curve in rocs.items()
        if curve is not None
        for x, y in zip(*curve.thinned(MAX_ROC_POINTS), strict=True)
    ]
    return wandb.plot_table(
        "wandb/area-under-curve/v0",
        wandb.Table(columns=["class", "fpr", "tpr"], data=rows),
        {"x": "fpr", "y": "tpr", "class": "class"},
        {
            "title": "ROC by class",
            "x-axis-title": "false positive rate",
            "y-axis-title": "true positive rate",
        },
    )


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
    """True if a server answers at all within some seconds, also through a proxy."""
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
    track, identity = config.track, {}
    # W&B's own agents name the run themselves.
    if not os.environ.get("WANDB_RUN_ID") and not os.environ.get("WANDB_SWEEP_ID"):
        path = workdir / "wandb" / "run_id"
        if not path.exists():
            write_atomically(path, secrets.token_hex(4))
        identity = {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}
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
        **identity,
    )
    # Steps are a value of their own: W&B's only go up, but a continued run repeats some.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The finite numbers of a nested mapping, under names joined by slashes."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((f"{prefix}{name}", value))
    return found
