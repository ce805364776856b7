"""The range test of the learning rate: drawn losses, and the command on tiny data."""

import json
import math
import sys

import numpy as np
import pytest

from runs import run_command, train_command
from tiny_data import write_dataset
from yogo_jax.errors import UserError
from yogo_jax.training.rate_search import Tried, fastest, rates_between, smoothed


def valley(fall: float, least: float, count: int = 81) -> list[Tried]:
    """Losses that fall fastest at one rate, are least at another, and then rise."""
    rates = rates_between(1e-6, 1.0, count)
    logs = np.log10(rates)
    losses = 10 - 4 / (1 + np.exp(-3 * (logs - math.log10(fall))))
    losses += np.where(logs > math.log10(least), 3 * (logs - math.log10(least)), 0)
    return [Tried(rate, float(loss)) for rate, loss in zip(rates, losses, strict=True)]


@pytest.mark.parametrize(("fall", "least"), [(1e-4, 1e-2), (1e-3, 3e-2), (3e-3, 0.1)])
def test_the_fastest_fall_is_found(fall, least):
    found = fastest(valley(fall, least))
    assert found.learning_rate == pytest.approx(fall, rel=0.5)


def test_a_fall_behind_the_least_does_not_count():
    tried = valley(1e-4, 1e-2)
    tried += [Tried(2.0, 50.0), Tried(3.0, 10.0)]
    assert fastest(tried).learning_rate < 1e-2


@pytest.mark.parametrize("count", [0, 5, 40])
def test_losses_that_only_rise_are_refused(count):
    tried = [Tried(rate, 1.0 + i) for i, rate in enumerate(rates_between(1e-6, 1.0, count))]
    with pytest.raises(UserError, match="the loss did not fall"):
        fastest(tried)


def test_losses_are_smoothed_without_a_bias_until_they_diverge():
    rates = rates_between(1e-3, 1.0, 6)
    assert rates[0] == pytest.approx(1e-3)
    assert np.diff(np.log(rates)) == pytest.approx(np.log(10) * 3 / 5)
    flat = smoothed(rates, [2.0] * 6)
    assert [each.loss for each in flat] == pytest.approx([2.0] * 6)
    assert [each.learning_rate for each in flat] == rates
    rising = smoothed(rates, [1.0, 2.0, 2.0, 1e9, 1.0, 1.0])
    assert [each.loss for each in rising][:2] == pytest.approx([1.0, (0.09 + 0.2) / 0.19])
    assert len(rising) == 3
    assert len(smoothed(rates, [1.0, math.nan, 1.0])) == 1


def command(definition, *extra: str, **fields) -> list[str]:
    _, _, module, *rest = train_command(definition, "unused", **fields)
    assert module == "yogo_jax.train"
    at = rest.index("--workdir")
    return [sys.executable, "-m", "yogo_jax.learning_rate", *rest[:at], *rest[at + 2 :], *extra]


def test_the_command_prints_a_rate_that_it_also_writes(tmp_path):
    definition = write_dataset(tmp_path)
    output = tmp_path / "rates.json"
    done = run_command(
        command(definition, "--steps=40", "--lowest=1e-5", "--highest=0.5", f"--output={output}")
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    rate = found["fastest"]["learning_rate"]
    assert 1e-5 < rate < 0.5
    assert f"--config.optim.learning_rate={rate:.1e}" in done.stdout
    assert "12 images with 72 boxes" in done.stdout
    assert found["tried"][0]["learning_rate"] == pytest.approx(1e-5)
    assert min(each["loss"] for each in found["tried"]) < found["tried"][0]["loss"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--steps=3", "--steps must be 20 or more, got 3"),
        ("--lowest=2", "--lowest must be above 0 and below --highest, got 2 and 1"),
        ("--output=nowhere/a.json", "--output nowhere/a.json: nowhere is no folder"),
        ("--config.optim.learning_rte=1", "did you mean --config.optim.learning_rate?"),
    ],
)
def test_mistakes_are_told_without_a_traceback(flag, message):
    done = run_command(command("d.yml", flag))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
