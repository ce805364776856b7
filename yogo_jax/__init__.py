"""YOGO, the one-stage detector that counts malaria parasites in real time, in JAX.

    model = yogo_jax.load("runs/first")
    found = model.predict("frame.png")

Names are imported when they are first used, so that `import yogo_jax` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from yogo_jax.detector.detections import Detections as Detections
    from yogo_jax.detector.thresholds import Thresholds as Thresholds
    from yogo_jax.errors import UserError as UserError
    from yogo_jax.inference.models import Model as Model
    from yogo_jax.inference.models import load as load

# Public names, and the modules that have them; the imports above say the same to type checkers.
_MODULES = {
    "Detections": "yogo_jax.detector.detections",
    "Model": "yogo_jax.inference.models",
    "Thresholds": "yogo_jax.detector.thresholds",
    "UserError": "yogo_jax.errors",
    "load": "yogo_jax.inference.models",
}
__all__ = ["Detections", "Model", "Thresholds", "UserError", "load"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
