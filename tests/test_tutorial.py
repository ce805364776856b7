"""Every block of the tutorial runs, in its order, with a shorter training."""

import re
import shlex

import pytest

from runs import ROOT
from yogo_jax.__main__ import main


SHORTER = ["--config.train.epochs=10", "--config.train.eval_every_epochs=5"]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path, monkeypatch):
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
            if arguments[0] == "train":
                arguments += SHORTER
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
