"""The two paths of docs/architecture.md are those of the code."""

import ast
import re

import pytest

from test_layout import PACKAGE, ROOT, imported_modules


ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| `(\w+)` \|.*\| (\d*) ?\|$", re.MULTILINE)
PATHS = ("From an image to the loss", "From a frame to a count")


def rows(heading: str) -> list[tuple[int, str, str, int | None]]:
    """Number, file, name and caller of each step of a path."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = ROW.findall(section)
    return [(int(n), file, name, int(by) if by else None) for n, file, name, by in found]


def module_of(file: str) -> str:
    return f"yogo_jax.{file.removesuffix('.py').replace('/', '.')}"


@pytest.mark.parametrize("heading", PATHS)
def test_a_path_has_few_files_and_its_names_exist(heading):
    steps = rows(heading)
    assert [number for number, *_ in steps] == list(range(1, len(steps) + 1))
    assert 8 <= len({file for _, file, _, _ in steps}) <= 12
    for _, file, name, _ in steps:
        tree = ast.parse((PACKAGE / file).read_text("utf-8"))
        assert name in {getattr(node, "name", None) for node in tree.body}, f"{file}: {name}"


@pytest.mark.parametrize("heading", PATHS)
def test_each_step_is_one_call_from_its_caller_and_nothing_points_back(heading):
    steps = rows(heading)
    files = {number: file for number, file, _, _ in steps}
    callers = {number: caller for number, _, _, caller in steps}
    for _, file, _, caller in steps:
        if caller is not None:
            assert module_of(file) in imported_modules(PACKAGE / files[caller]), (file, caller)
        above = set()
        while caller is not None:
            above.add(module_of(files[caller]))
            caller = callers[caller]
        assert not above & imported_modules(PACKAGE / file), file
