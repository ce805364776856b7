"""YOGO, the one-stage detector that counts malaria parasites in real time, in JAX.

    model = yogo_jax.load("runs/first")
    found = model.predict("frame.png")

Names are imported when they are first used, so that `import yogo_jax` takes no time.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any


# So `python -m yogo_jax.inspect` is a command, but in this folder no file hides Python's `inspect`.
__path__.append(f"{__path__[0]}/old_names")

if TYPE_CHECKING:
    from yogo_jax.config.schema import Config as Config
    from yogo_jax.detector.detections import Detections as Detections
    from yogo_jax.detector.detections import Thresholds as Thresholds
    from yogo_jax.errors import UserError as UserError
    from yogo_jax.evaluate import evaluate as evaluate
    from yogo_jax.inference.models import Model as Model
    from yogo_jax.inference.models import load as load
    from yogo_jax.synthetic.dataset import synthetic_dataset as synthetic_dataset
    from yogo_jax.train import Run as Run
    from yogo_jax.train import train as train

# Public names, and the modules that have them; the imports above say the same to type checkers.
_MODULES = {
    "Config": "yogo_jax.config.schema",
    "Detections": "yogo_jax.detector.detections",
    "Model": "yogo_jax.inference.models",
    "Run": "yogo_jax.train",
    "Thresholds": "yogo_jax.detector.detections",
    "UserError": "yogo_jax.errors",
    "evaluate": "yogo_jax.evaluate",
    "load": "yogo_jax.inference.models",
    "synthetic_dataset": "yogo_jax.synthetic.dataset",
    "train": "yogo_jax.train",
}
__all__ = [
    *("Config", "Detections", "Model", "Run", "Thresholds", "UserError"),
    *("evaluate", "load", "synthetic_dataset", "train"),
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


class _Package(types.ModuleType):
    """This package, in which `train` and `evaluate` are functions.

    The import system would set each to the command's module of the same name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
