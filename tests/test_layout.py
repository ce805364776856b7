"""Who may import whom, how long files may be, and which words a library may not know."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "yogo_jax"
ENTRY_POINTS = {
    *("train", "evaluate", "calibrate", "anchors", "infer", "report", "counts"),
    *("inspect", "sweep"),
}
# Groups of modules, each with the groups that it may import.
MAY_IMPORT = {
    "errors": set(),
    "command": {"errors", "cache"},
    "given": {"errors"},
    "detector": {"errors", "detector"},
    "schema": {"errors"},
    "recipe": {"schema", "detector"},
    "config": {"errors", "schema", "recipe", "detector"},
    "disk": set(),
    "data": {"errors", "given", "cache", "disk", "data"},
    "output": {"errors", "given", "disk", "detector", "output"},
    "evaluation": {"errors", "given", "detector", "data", "output", "evaluation"},
    "training": {
        "cache",
        "errors",
        "given",
        "command",
        "config",
        "recipe",
        "detector",
        "data",
        "output",
        "evaluation",
        "training",
    },
    "inference": {"errors", "given", "detector", "data", "output", "training", "inference"},
    "config_file": {"errors", "given"},
    "sweeping": {
        "errors",
        "given",
        "schema",
        "config",
        "detector",
        "data",
        "output",
        "evaluation",
        "training",
        "sweeping",
    },
    "cache": {"given"},
    "startup": {"cache"},
    "huge_pages": set(),
    # Knows the other entry points by name.
    "__main__": {"errors", "command", "huge_pages"},
    **{
        entry: {
            "errors",
            "given",
            "command",
            "config",
            "config_file",
            "startup",
            "huge_pages",
            "detector",
            "data",
            "output",
            "evaluation",
            "inference",
            "training",
            "sweeping",
        }
        for entry in ENTRY_POINTS
    },
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def group_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    if path.name == "__init__.py":
        assert not imported_modules(path)
        return
    modules = {
        name.split(".")[1] for name in imported_modules(path) if name.startswith("yogo_jax.")
    }
    groups = modules & MAY_IMPORT.keys()
    assert groups <= MAY_IMPORT[group_of(path)]


BRIDGE_FILES = sorted((ROOT / "bridge").rglob("*.py"))


@pytest.mark.parametrize(
    "path", [*FILES, *BRIDGE_FILES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_are_short(path):
    assert path.read_text().count("\n") <= 500


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("data/*.py")), ids=lambda path: path.stem)
def test_the_data_side_does_not_import_jax(path):
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert not roots & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_bridge_knows_other_frameworks(path):
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert not roots & {"torch", "onnx", "jax2onnx", "openvino", "nncf", "bridge"}


def test_commands_do_not_wait_for_jax_before_they_look_at_their_flags():
    imports = "; ".join(f"import yogo_jax.{name}" for name in sorted(ENTRY_POINTS))
    script = f"{imports}; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def calls_that_read_or_write_text(path: Path) -> list[ast.Call]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if is_method else getattr(node.func, "id", "")
        modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
        modes = [each for each in modes if isinstance(each, str) and set(each) <= set("rwax+b")]
        # Methods that are called so mostly open no file, or one that is no text.
        opens = not is_method or bool(modes) or "newline" in {each.arg for each in node.keywords}
        is_open = name in ("open", "fdopen") and not any("b" in mode for mode in modes)
        if name in ("read_text", "write_text") or (is_open and opens):
            found.append(node)
    return found


@pytest.mark.parametrize("path", [*FILES, *BRIDGE_FILES], ids=lambda path: path.stem)
def test_files_are_utf_8_in_every_locale(path):
    for call in calls_that_read_or_write_text(path):
        assert "encoding" in {each.arg for each in call.keywords}, ast.unparse(call)


def test_no_drawer_for_odds_and_ends():
    assert not [
        path
        for path in [*FILES, *BRIDGE_FILES]
        if path.stem in ("utils", "misc", "common", "helpers")
    ]


def test_openvino_is_imported_in_one_place_without_telemetry():
    files = [*BRIDGE_FILES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    importing = [
        path.stem
        for path in files
        if "openvino" in {name.split(".")[0] for name in imported_modules(path)}
    ]
    assert importing == ["quiet_openvino"]
