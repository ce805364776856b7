import json
import os
import subprocess
import sys

import pytest

from runs import ROOT
from yogo_jax.huge_pages import with_huge_pages


MADVISE = "always [madvise] never\n"
ASKED = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("environment", "setting", "libc", "expected"),
    [
        ({"A": "b"}, MADVISE, "glibc 2.36", {"A": "b", "GLIBC_TUNABLES": ASKED}),
        ({}, MADVISE, "glibc 2.35", {"GLIBC_TUNABLES": ASKED}),
        ({}, MADVISE, "glibc 3.0", {"GLIBC_TUNABLES": ASKED}),
        ({}, MADVISE, "glibc 2.34", None),
        ({}, MADVISE, "glibc 2.9", None),
        ({}, MADVISE, "", None),
        ({}, "[always] madvise never\n", "glibc 2.36", None),
        ({}, "always madvise [never]\n", "glibc 2.36", None),
        ({"GLIBC_TUNABLES": ASKED}, MADVISE, "glibc 2.36", None),
        ({"GLIBC_TUNABLES": ""}, MADVISE, "glibc 2.36", None),
    ],
)
def test_where_a_program_is_to_ask(environment, setting, libc, expected):
    assert with_huge_pages(environment, setting=setting, libc=libc) == expected


def test_a_command_is_started_again_as_it_was(tmp_path):
    script = tmp_path / "a command.py"
    script.write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from yogo_jax import huge_pages\n"
        "huge_pages._SETTING = Path(sys.argv[1])\n"
        "huge_pages._libc = lambda: 'glibc 2.36'\n"
        "print('starts', flush=True)\n"
        "huge_pages.use_huge_pages()\n"
        "found = [sys.argv[2:], sys.flags.optimize, os.getpid(), os.environ['GLIBC_TUNABLES']]\n"
        "print(json.dumps(found))\n"
    )
    setting = tmp_path / "enabled"
    setting.write_text(MADVISE)
    environment = {key: each for key, each in os.environ.items() if key != "GLIBC_TUNABLES"}
    arguments = ["--config.a=b c", "", "ü"]
    process = subprocess.Popen(
        [sys.executable, "-O", str(script), str(setting), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    *starts, found = said.splitlines()
    assert starts == ["starts", "starts"]
    assert json.loads(found) == [arguments, 1, process.pid, ASKED]


@pytest.mark.parametrize(
    "command", [["-m", "yogo_jax.train"], ["-m", "yogo_jax", "train"]], ids=str
)
def test_commands_that_train_ask_for_huge_pages(command, tmp_path):
    """Each of them, as it is called, sees the environment that was asked for."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "def told(file, argv, environment):\n"
        "    print('again', argv[1:], environment['GLIBC_TUNABLES'])\n"
        "    os._exit(0)\n"
        "os.execve = told\n"
        "from yogo_jax import huge_pages\n"
        "huge_pages._libc = lambda: 'glibc 2.36'\n"
        "huge_pages._SETTING = huge_pages.Path(os.environ['SETTING'])\n"
    )
    (tmp_path / "enabled").write_text(MADVISE)
    environment = {key: each for key, each in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    environment |= {"SETTING": str(tmp_path / "enabled"), "PYTHONUNBUFFERED": "1"}
    arguments = [*command, "--config", "x.py"]
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"again {arguments} {ASKED}\n", done.stderr
