"""The long checks, run by hand before a release: `make acceptance`. Prints what it measured.

Speed is printed and not asserted. PyTorch for the comparison comes from the interpreter named by
`YOGO_TORCH_PYTHON` (a virtual environment with `pip install torch==2.13.0`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from kills import assert_equals_a_run_in_peace, train_under_fire
from parity import SHARED
from runs import ROOT, environment, train_command
from tiny_data import write_dataset
from yogo_jax.training.tracking import read_metrics


pytestmark = pytest.mark.acceptance


def data_set(name: str):
    definition = SHARED / "data" / name / "dataset_published.yml"
    if not definition.exists():
        pytest.skip(f"the data set {name} is not here: it is not part of the project")
    return definition


def run_aloud(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    print("\n$", " ".join(command))
    done = subprocess.run(
        command,
        cwd=options.pop("cwd", ROOT),
        env=environment(optimized=True),
        text=True,
        capture_output=True,
        check=False,
        **options,
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_ten_kills(tmp_path):
    definition = write_dataset(tmp_path / "data", images=16, published=True)
    overrides = {
        "train__epochs": 400,
        "train__eval_every_epochs": 50,
        "train__checkpoint_every_minutes": 0.002,
        "data__workers": 2,
    }
    command = train_command(definition, tmp_path / "run", **overrides)
    rows = train_under_fire(command, tmp_path / "run", kills=10, seed=1, log=tmp_path / "log")
    print("\nkill  seconds  steps logged  checkpoints that can be read")
    for index, row in enumerate(rows, start=1):
        print(f"{index:>4}{row['seconds']:>9}{row['logged']:>14}  {row['checkpoints']}")
    assert_equals_a_run_in_peace(definition, tmp_path, overrides, steps=800)


@pytest.mark.parametrize("seed", [0, 1])
def test_bccd(tmp_path, seed):
    fields = {
        "data__image_hw": "240,320",
        "data__normalize_images": True,
        "data__workers": 0,
        "model__name": "base_model",
        "model__anchor": "auto",
        "train__batch_size": 8,
        "train__epochs": 64,
        "train__eval_every_epochs": 4,
        "seed": seed,
    }
    run_aloud(train_command(data_set("bccd"), tmp_path / "run", **fields))
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    print(f"seed {seed}: mAP50 {metrics['mAP50']:.3f}, {metrics['AP50_by_class']}")
    assert metrics["AP50_by_class"]["RBC"] >= 0.72


def test_lfm_at_full_size(tmp_path):
    fields = {
        "data__image_hw": "772,1032",
        "data__normalize_images": True,
        "model__name": "base_model",
        "train__batch_size": 4,
        "train__epochs": 5,
    }
    run_aloud(train_command(data_set("lfm"), tmp_path / "run", **fields))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_demo_in_an_empty_clone(tmp_path):
    run_aloud(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")])
    began = time.monotonic()
    done = run_aloud(["make", "demo"], cwd=tmp_path / "clone")
    print(f"make demo took {time.monotonic() - began:.0f} s with installation")
    metrics = json.loads((tmp_path / "clone/runs/demo/test/metrics.json").read_text())
    assert metrics["mAP50"] >= 0.8
    assert list((tmp_path / "clone/runs/demo/test/pictures").glob("*.png"))
    assert "Next:" in done.stdout


def test_epoch_is_spent_in_the_step():
    script = [sys.executable, "benchmarks/epoch.py", "--definition", str(data_set("bccd"))]
    done = run_aloud(script)
    assert "'train_step': 1, 'eval_step': 1" in done.stdout
    assert float(re.search(r"peak_memory_gib\s+(\S+)", done.stdout)[1]) < 3


def test_step_against_pytorch():
    python = os.environ.get("YOGO_TORCH_PYTHON", "")
    if not shutil.which(python):
        pytest.skip("set YOGO_TORCH_PYTHON to an interpreter with torch==2.13.0")
    done = run_aloud([sys.executable, "benchmarks/step.py", "--torch-python", python])
    assert "ratio_to_torch" in done.stdout
