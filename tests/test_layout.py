"""Rules of the layout: imports, lengths of files, and words that the package may not know."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "yogo_jax"
# The rooms of the house, from the ground up. A room may import the rooms before it, except where
# `APART` says otherwise.
ROOMS = (
    *("errors", "files", "startup", "ownership", "progress", "drawing", "command"),
    *("detector", "config", "data", "synthetic", "parallel", "metrics", "checkpoint", "reports"),
    *("training", "inspection", "counting", "inference", "sweeping"),
)
APART = {
    "data": {"detector", "config"},
    "synthetic": {"detector", "config", "data"},
    "metrics": {"config"},
    "inspection": {"training"},
    "counting": {"training", "inspection"},
    "inference": {"training", "inspection"},
}
COMMANDS = {
    *("train", "evaluate", "calibrate", "anchors", "infer", "report", "counts"),
    *("inspect_data", "sweep"),
}
TRAINING_COMMANDS = {"train", "sweep"}
# Know the commands by name only; `old_names` holds those whose file may not stand in the package.
FRONT_DOOR = {"__init__", "__main__", "old_names"}
FILES = sorted(PACKAGE.rglob("*.py"))
BRIDGE_FILES = sorted((ROOT / "bridge").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported_roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


def imported_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported_modules(path)]
    return {part[1] for part in parts if part[0] == "yogo_jax" and len(part) > 1}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def may_import(room: str) -> set[str]:
    if room in COMMANDS:
        return {*ROOMS} - ({"training"} if room not in TRAINING_COMMANDS else set())
    return {room, *ROOMS[: ROOMS.index(room)]} - APART.get(room, set())


def test_every_file_is_in_a_room():
    assert {room_of(path) for path in FILES} - FRONT_DOOR == {*ROOMS, *COMMANDS}


def test_imports_point_one_way():
    wrong = {
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in FILES
        if room_of(path) not in FRONT_DOOR
        for room in imported_rooms(path) - may_import(room_of(path))
    }
    assert not wrong


def test_files_are_short():
    too_long = [path for path in FILES + BRIDGE_FILES if len(path.read_text().splitlines()) > 500]
    assert not too_long


def test_the_data_side_does_not_import_jax():
    data = [path for path in FILES if room_of(path) in ("data", "synthetic")]
    frameworks = {"jax", "flax", "optax", "orbax"}
    assert not [path for path in data if imported_roots(path) & frameworks]


def test_boxes_grids_and_loss_weights_do_not_import_jax():
    names = ("boxes", "grid", "architectures", "loss_weights")
    imports = "; ".join(f"import yogo_jax.detector.{name}" for name in names)
    script = f"{imports}; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_only_the_bridge_knows_other_frameworks():
    others = {"torch", "onnx", "jax2onnx", "openvino", "nncf", "bridge"}
    assert not [path for path in FILES if imported_roots(path) & others]


def test_commands_do_not_wait_for_jax_before_they_look_at_their_flags():
    imports = "; ".join(f"import yogo_jax.{name}" for name in sorted(COMMANDS))
    script = f"{imports}; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_no_module_hides_one_of_python_from_who_stands_in_the_package():
    assert not {path.stem for path in PACKAGE.iterdir()} & sys.stdlib_module_names
    command = [sys.executable, "-c", "import inspect; print(inspect.__file__)"]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == inspect.__file__


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


def test_files_are_utf_8_in_every_locale():
    without = [
        f"{path.relative_to(ROOT)}: {ast.unparse(call)}"
        for path in FILES + BRIDGE_FILES
        for call in calls_that_read_or_write_text(path)
        if "encoding" not in {each.arg for each in call.keywords}
    ]
    assert not without


def test_no_drawer_for_odds_and_ends():
    drawers = ("utils", "misc", "common", "helpers")
    assert not [path for path in FILES + BRIDGE_FILES if path.stem in drawers]


def test_openvino_is_imported_in_one_place_without_telemetry():
    files = [*BRIDGE_FILES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert [path.stem for path in files if "openvino" in imported_roots(path)] == ["quiet_openvino"]


def test_tests_that_open_a_browser_are_slow():
    """Otherwise they are skipped where the browser is installed after the other tests."""
    for path in (ROOT / "tests").glob("test_*.py"):
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
                continue
            if "open_page(" in ast.unparse(function) and path.name != "test_layout.py":
                marks = [ast.unparse(each) for each in function.decorator_list]
                assert "pytest.mark.slow" in marks, f"{path.name}: {function.name}"
