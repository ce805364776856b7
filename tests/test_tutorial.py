"""Every block of the tutorial runs, in its order."""

import re
import shlex

import pytest

from runs import ROOT
from yogo_jax.__main__ import main


# What `make test-all` adds to save time.
SHORTER = ["--config.train.epochs=1", "--config.train.eval_every_epochs=1"]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "is_whole",
    [
        pytest.param(False, id="shorter", marks=pytest.mark.slow),
        pytest.param(True, id="whole", marks=pytest.mark.acceptance),
    ],
)
def test_the_tutorial_runs_as_it_is_written(is_whole, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    page = blocks((ROOT / "docs" / "tutorial.md").read_text("utf-8"))
    assert [language for language, _ in page].count("console") == 5
    names: dict = {}
    for language, text in page:
        if language == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), names)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "yogo-jax"
            if arguments[0] == "train" and not is_whole:
                arguments += SHORTER
            if arguments[0] == "counts" and not is_whole:
                # A network of one epoch confuses too much: its counts cannot be corrected.
                arguments = arguments[: arguments.index("--validation")]
            if "definition" in names:
                paths = {
                    "DEFINITION": str(names["definition"]),
                    "IMAGES": str(names["definition"].parent / "images" / "test"),
                }
                arguments = [paths.get(each, each) for each in arguments]
            main(arguments)
    assert (tmp_path / "found.png").exists()
    assert (tmp_path / "inspection" / "inspection.html").exists()
    assert len(names["exported"].predict(names["frames"][0])) == len(names["found"])
