"""A run that was written with Python 3.11, JAX 0.10.2 and Orbax 0.11.36: read, tested, continued.

`fixtures/run_of_python_3_11.zip` holds its data set and its workdir after the one epoch that its
config says. The numbers below are of that environment.
"""

import json
import zipfile

import pytest

from parity import FIXTURES
from yogo_jax.config.schema import from_mapping
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.training.trainer import train_and_evaluate


# Versions of XLA round otherwise.
TOLERANCE = 1e-5
LOSS_AFTER_ANOTHER_EPOCH = 71.32060813903809


@pytest.mark.smoke
@pytest.mark.optimized
def test_a_run_of_python_3_11_is_tested_again_and_continued(tmp_path):
    with zipfile.ZipFile(FIXTURES / "run_of_python_3_11.zip") as archive:
        archive.extractall(tmp_path)
    workdir, definition = tmp_path / "run", tmp_path / "data" / "definition.yml"
    before = json.loads((workdir / "test" / "metrics.json").read_text())

    output = tmp_path / "again"
    evaluate_command([str(workdir), "--definition", str(definition), "--output", str(output)])
    again = json.loads((output / "metrics.json").read_text())
    assert again["confusion"] == before["confusion"]
    assert again["test_loss"] == pytest.approx(before["test_loss"], rel=TOLERANCE)

    values = json.loads((workdir / "config.json").read_text())
    values["data"]["definition"] = str(definition)
    values["train"]["epochs"] = 2
    longer = train_and_evaluate(from_mapping(values), workdir)
    assert longer["step"] == 2
    assert longer["test_loss"] == pytest.approx(LOSS_AFTER_ANOTHER_EPOCH, rel=TOLERANCE)
