"""Links, commands, config fields and file names in the documentation: all of them exist."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from configs import sweep
from yogo_jax.__main__ import COMMANDS


ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OTHER_COMMANDS = {"completion"}


def anchors(page: Path) -> set[str]:
    """The anchors of headings, as code hosts make them of a heading's text."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in headings}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def field_names(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Names of all fields and groups of fields, with dots."""
    names: set[str] = set()
    for key, value in values.items():
        names.add(prefix + key)
        if isinstance(value, Mapping):
            names |= field_names(value, f"{prefix}{key}.")
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_fields_and_files_exist(page):
    text = page.read_text("utf-8")
    commands = set(re.findall(r"(?<![\w./-])yogo-jax ([a-z][a-z-]*)", text))
    assert commands <= {*COMMANDS, *OTHER_COMMANDS}
    fields = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)", text))
    assert fields <= field_names(sweep.get_config().to_dict())
    rooms = "yogo_jax|bridge|tests|benchmarks|configs|slurm"
    files = re.findall(rf"`((?:{rooms})/[a-z0-9_/.-]+\.[a-z]+)`", text)
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_page_of_the_python_api_is_that_of_the_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_api

    assert make_api.PAGE.read_text("utf-8") == make_api.page(), "run python docs/make_api.py"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
        assert named <= targets, page


def test_the_scripts_of_the_documentation_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_frame

    assert make_frame.PICTURE.exists()
