"""A synthetic data set as one text: `synthetic`, or `synthetic:smear,imbalance=220,seed=1`."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yogo_jax.errors import UserError
from yogo_jax.synthetic.dataset import DOMAINS, synthetic_dataset


# What each option is, and how its text is read.
OPTIONS: dict[str, tuple[str, Callable[[str], float]]] = {
    "imbalance": ("a number of at least 1", float),
    "seed": ("a whole number of 0 or more", int),
    "train": ("a whole number of at least 1", int),
    "val": ("a whole number of at least 1", int),
    "test": ("a whole number of at least 1", int),
    "cells": ("a number above 0", float),
}


def is_synthetic(definition: str) -> bool:
    """True if a definition is no file: `synthetic`, or `synthetic:OPTION,OPTION=NUMBER`."""
    return definition.partition(":")[0] == "synthetic"


def named_dataset(definition: str, image_hw: tuple[int, int] | None = None) -> Path:
    """Path of the definition file of a synthetic data set that is given as text.

    Args:
      definition: as `data.definition` takes it.
      image_hw: height and width of the frames in px; None: those of the domain's camera.

    Raises:
      UserError: an option is unknown, given twice, or has a value that cannot be drawn.
    """
    options = read_options(definition)
    native = DOMAINS[options.get("domain", "flow")].native_image_hw
    return synthetic_dataset(image_hw or native, **options)


def read_options(definition: str) -> dict[str, Any]:
    """The keyword arguments of `synthetic_dataset` that a text asks for.

    Raises:
      UserError: an option is unknown or given twice, or its value is no number of its kind.
    """
    _, colon, text = definition.partition(":")
    found: dict[str, Any] = {}
    for part in text.split(",") if colon else ():
        word, equals, value = (each.strip() for each in part.partition("="))
        is_domain = word in DOMAINS and not equals
        if not is_domain and word not in OPTIONS:
            raise _unknown(definition, part)
        name = "domain" if is_domain else word
        if name in found:
            raise UserError(f"{definition}: expected {name} once, found it twice; leave one out")
        found[name] = word if is_domain else _number(definition, word, value)
    return found


def _number(definition: str, option: str, value: str) -> float:
    """The value of an option; its range is checked with the size of the frames."""
    expected, read = OPTIONS[option]
    try:
        return read(value)
    except ValueError:
        raise UserError(
            f"{definition}: the option {option} must be {expected}, found {value!r}; write "
            f"{option}=NUMBER"
        ) from None


def _unknown(definition: str, part: str) -> UserError:
    """The error for a part that is neither a domain nor an option."""
    word = part.partition("=")[0].strip()
    near = difflib.get_close_matches(word, [*DOMAINS, *OPTIONS], n=1)
    hint = f"did you mean {near[0]}?" if near else "as in synthetic:smear,imbalance=220,seed=1"
    return UserError(
        f"{definition}: expected {' or '.join(DOMAINS)}, or one of {', '.join(OPTIONS)} with "
        f"=NUMBER, found {part!r}; {hint}"
    )
