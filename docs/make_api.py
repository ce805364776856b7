"""Writes docs/api.md from the docstrings of the package's public names.

python docs/make_api.py
"""

import inspect
from pathlib import Path
from typing import Any

import yogo_jax


PAGE = Path(__file__).with_name("api.md")
ORDER = (
    *("load", "Model", "Detections", "Thresholds"),
    *("train", "Run", "evaluate", "Config", "synthetic_dataset", "UserError"),
)
# Methods of models that `predict` and `infer` call.
INNER = {"batch_size_for", "stream", "path", "from_mapping", "to_dict"}
HEAD = """\
# Python API

```python
import yogo_jax

model = yogo_jax.load("runs/first")  # or an .xml or .onnx, which need no JAX
found = model.predict("frame.png")
found.counts()
```

Everything below is a name of `yogo_jax`, imported when it is first used. Mistakes raise
`yogo_jax.UserError`, a `ValueError` whose text names what was expected and what was found. A
trained network is needed: the [tutorial](tutorial.md) makes one in two minutes.

This page is made from the docstrings by `python docs/make_api.py`.
"""


def signature(name: str, item: Any) -> str:
    """The call of a function or method, one argument a line if it is long."""
    parameters = inspect.signature(item).parameters.values()
    empty = inspect.Parameter.empty
    shown = [str(each.replace(annotation=empty)) for each in parameters]
    shown = [each for each in shown if each not in ("self", "cls")]
    keyword = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    if keyword and not any(each.startswith("*") for each in shown):
        shown.insert(len(shown) - len(keyword), "*")
    line = f"{name}({', '.join(shown)})"
    return line if len(line) <= 90 else f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"


def block(text: str) -> str:
    """A block of code."""
    return f"```text\n{text}\n```\n"


def section(name: str) -> str:
    """The part of the page on one public name."""
    item = getattr(yogo_jax, name)
    parts = [f"## {name}\n"]
    if inspect.isfunction(item):
        parts.append(block(f"yogo_jax.{signature(name, item)}"))
    parts.append(block(inspect.getdoc(item) or ""))
    if not inspect.isclass(item):
        return "\n".join(parts)
    for member, value in vars(item).items():
        if member.startswith("_") or member in INNER:
            continue
        value = inspect.unwrap(getattr(value, "__func__", value))
        if inspect.isfunction(value) and inspect.getdoc(value):
            parts.append(f"### {name}.{member}\n")
            parts.append(block(f"{signature(member, value)}\n\n{inspect.getdoc(value)}"))
        elif isinstance(value, property):
            parts.append(f"### {name}.{member}\n")
            parts.append(block(inspect.getdoc(value) or ""))
    return "\n".join(parts)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(name) for name in ORDER)])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
