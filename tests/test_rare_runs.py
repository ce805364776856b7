"""Runs with the fields for rare classes: what they say, and that they go on as if never stopped."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from runs import logged_losses, tiny_config
from tiny_data import write_dataset
from yogo_jax.checkpoint.store import committed_checkpoints, read_metadata, restore_variables
from yogo_jax.reports import evaluation_page
from yogo_jax.training.trainer import train_and_evaluate


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Its figures take seconds, and are no matter here."""
    monkeypatch.setattr(evaluation_page, "evaluation_page", lambda *_: "")


@pytest.fixture(scope="module")
def definition(tmp_path_factory) -> Path:
    """Eight training images, in which all cells but one are healthy."""
    path = write_dataset(
        tmp_path_factory.mktemp("data"), images=16, image_hw=(96, 128), published=True
    )
    for labels in sorted((path.parent / "labels" / "train").iterdir()):
        rows = labels.read_text().splitlines()
        classes = [1 if labels.stem.endswith("0003") and i == 2 else 0 for i in range(len(rows))]
        named = [f"{k} {row.split(' ', 1)[1]}\n" for k, row in zip(classes, rows, strict=True)]
        labels.write_text("".join(named))
    return path


def config_of(definition, epochs, cache="device"):
    return tiny_config(
        definition,
        train__epochs=epochs,
        train__eval_every_epochs=2,
        data__image_hw=(96, 128),
        data__repeat_threshold=0.5,
        data__cache=cache,
        augment__rare_cells=0.5,
        augment__rare_cells_weights=(1.0, 3.0),
        augment__stain=0.3,
        loss__logit_adjustment=1.0,
        loss__effective_number_beta=0.9,
        loss__objectness_target="iou",
        optim__lr_decay_factor=1.0,
    )


def test_a_run_trains_with_all_fields_for_rare_classes(definition, tmp_path, capsys):
    train_and_evaluate(config_of(definition, 1, cache="none"), tmp_path)
    assert "75% ring (1 of 1 boxes)" in capsys.readouterr().out
    # The ring is in an eighth of the images, and that one is seen twice: nine in batches of four.
    losses = logged_losses(tmp_path)
    assert len(losses) == 3
    assert np.isfinite(losses).all()


@pytest.mark.acceptance
def test_a_run_goes_on_as_if_never_stopped(definition, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_and_evaluate(config_of(definition, 2), whole)
    assert "75% ring (1 of 1 boxes)" in capsys.readouterr().out
    # The ring is in an eighth of the images, and that one is seen twice: nine in batches of four.
    assert len(logged_losses(whole)) == 2 * 3
    train_and_evaluate(config_of(definition, 1), parts)
    train_and_evaluate(config_of(definition, 2), parts)
    assert logged_losses(parts) == logged_losses(whole)
    ends = [committed_checkpoints(each / "checkpoints")[-1] for each in (whole, parts)]
    ours, theirs = (restore_variables(end, read_metadata(end).model) for end in ends)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    # Where no step is left, no image is read for cells.
    capsys.readouterr()
    train_and_evaluate(config_of(definition, 2), parts)
    said = capsys.readouterr().out
    assert "is complete" in said
    shutil.rmtree(parts / "test")
    train_and_evaluate(config_of(definition, 2), parts)
    said = capsys.readouterr().out
    assert "tested" in said
    assert "augment.rare_cells" not in said
