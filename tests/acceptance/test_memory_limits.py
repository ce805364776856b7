"""The original's recipe as it stands, on machines with 16 GB and with 3 GB of memory (cgroups)."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runs import ROOT


pytestmark = pytest.mark.acceptance

ROOT_GROUP = Path("/sys/fs/cgroup")
GB = 10**9


@contextmanager
def cgroup(limit: int) -> Iterator[tuple[Path, str]]:
    """A cgroup with a limit of memory: its folder, and the file that holds the peak."""
    first = (ROOT_GROUP / "memory").is_dir()
    folder = (ROOT_GROUP / "memory" if first else ROOT_GROUP) / f"yogo_jax_{os.getpid()}"
    limit_file, peak_file = (
        ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        if first
        else ("memory.max", "memory.peak")
    )
    try:
        folder.mkdir()
        (folder / limit_file).write_text(str(limit))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield folder, peak_file
    finally:
        time.sleep(1)
        folder.rmdir()


def train_base(limit: int, workdir: Path) -> tuple[subprocess.CompletedProcess, int, float]:
    """One epoch of configs/base.py under a limit: what came out, its peak in bytes, its seconds."""
    command = [sys.executable, "-m", "yogo_jax.train", "--config", "configs/base.py"]
    command += ["--workdir", str(workdir), "--config.train.epochs=1"]
    with cgroup(limit) as (folder, peak_file):
        script = f"echo $$ > {folder}/cgroup.procs; exec {shlex.join(command)}"
        began = time.monotonic()
        done = subprocess.run(
            ["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
        return done, int((folder / peak_file).read_text()), seconds


def test_the_original_recipe_trains_on_16_gb(tmp_path):
    done, peak, seconds = train_base(16 * GB, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "computes some features twice" in done.stdout
    print(f"\nconfigs/base.py on 16 GB: peak {peak / GB:.2f} GB, {seconds:.0f} s")
    assert peak < 10 * GB


def test_too_little_memory_is_one_line(tmp_path):
    done, _, seconds = train_base(3 * GB, tmp_path / "run")
    print(f"\nconfigs/base.py on 3 GB: {done.stderr.strip()} ({seconds:.0f} s)")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(
        r"batch_size=\d+ \(the largest that fits\), or set --config.data.image_hw", done.stderr
    )
    assert seconds < 120
