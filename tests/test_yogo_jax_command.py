"""The one command with all others below it: help, mistakes, completion in a real shell."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys

import pytest

from runs import ROOT, run_command
from yogo_jax.__main__ import COMMANDS, main


@pytest.mark.smoke
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: yogo-jax {name}")
    assert max(map(len, text.splitlines())) <= 100
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS[name].module).main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {COMMANDS[name].module}")


@pytest.mark.smoke
def test_inspect_by_the_name_that_no_file_of_the_package_may_have():
    done = run_command([sys.executable, "-m", "yogo_jax.inspect", "--help"])
    assert done.returncode == 0
    assert "What is in a data set and what is wrong with it." in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_the_page_of_all_commands(arguments, capsys):
    main(arguments)
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", text, re.MULTILINE)


def test_flags_in_the_examples_of_the_page_exist(capsys):
    main(["--help"])
    text = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(r"^  yogo-jax ([a-z-]+) (.*)$", text, re.MULTILINE)
    assert len(examples) >= 5
    for name, rest in examples:
        known = {
            flag
            for action in importlib.import_module(COMMANDS[name].module).make_parser()._actions
            for flag in action.option_strings
        }
        asked = {word.split("=")[0] for word in rest.split() if word.startswith("--")}
        assert asked <= known


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'?"),
        (["frobnicate"], "known: inspect, anchors, train"),
        (["frobnicate"], "from-onnx. See yogo-jax --help"),
        (["completion", "fish"], "expected one of bash, zsh, tcsh"),
        (["completion"], "expected one of bash, zsh, tcsh"),
        (["train"], "no config given"),
        (["evaluate", "--outptu", "x"], "--outptu: did you mean --output?"),
        (["counts", "estimate", "--farmes", "3"], "--farmes: did you mean --frames?"),
        (["train", "--config", "base", "--config.seeed=3"], "did you mean --config.seed?"),
        (["export", "run", "--qwxyz"], "--qwxyz: unknown flag"),
        (["evaluate"], "required: checkpoint, --output (see yogo-jax evaluate --help)"),
        (["sweep", "report"], "required: DIR (see yogo-jax sweep report --help)"),
        (["evaluate", "nowhere", "--output", "x", "--batch-size", "0"], "--batch-size must be 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == importlib.metadata.version("yogo_jax")


def test_as_a_module():
    done = run_command([sys.executable, "-m", "yogo_jax", "--help"])
    assert done.returncode == 0
    assert "usage: yogo-jax COMMAND" in done.stdout


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "script"
    done = run_command([sys.executable, "-m", "yogo_jax", "completion", "bash"])
    assert done.returncode == 0, done.stderr
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["yogo-jax", "ev"], {"evaluate"}),
        (["yogo-jax", "from-"], {"from-torch", "from-onnx"}),
        (["yogo-jax", "evaluate", "--spl"], {"--split"}),
        (["yogo-jax", "evaluate", "--split", "t"], {"train", "test"}),
        (["yogo-jax", "train", "--config.optim.lea"], {"--config.optim.learning_rate"}),
        (["yogo-jax", "export", "--tar"], {"--target"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_completion_in_bash(bash_script, words, expected):
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f"source {bash_script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "function_name=$(complete -p yogo-jax | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        '$function_name; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_what_is_not_installed_is_named(tmp_path):
    """A package of an extra that is missing is the user's to install, not a traceback."""
    (tmp_path / "jax2onnx.py").write_text("raise ModuleNotFoundError(name='jax2onnx')\n")
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from yogo_jax.errors import exit_on_user_error\n"
            "with exit_on_user_error():\n    import jax2onnx",
        ],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "jax2onnx is not installed" in done.stderr
    assert "'.[bridge]'" in done.stderr
    assert "Traceback" not in done.stderr
