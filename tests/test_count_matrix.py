"""Validations: what is read, what is refused, and the matrices of the instrument's deskewer."""

import numpy as np
import pytest

from count_samples import CONFUSION, metrics, write
from yogo_jax.counting.matrix import (
    check_invertible,
    mean_and_inverse_scatter,
    pool,
    read_validation,
    response_matrix,
)
from yogo_jax.errors import UserError
from yogo_jax.metrics.confusion import DetectionMetrics


def validation_of(tmp_path, values):
    return read_validation(write(tmp_path / "metrics.json", values))


def changed(row: int, cells: list[int]) -> list[list[int]]:
    return [cells if index == row else counts for index, counts in enumerate(CONFUSION)]


def test_what_an_evaluation_writes_is_read(tmp_path):
    found = DetectionMetrics(["healthy", "ring"])
    boxes = np.array([[0, 0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6]], np.float32)
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    found.update(boxes, probs, boxes[:1], np.array([1], np.int32))
    validation = validation_of(tmp_path, found.compute())
    assert validation.class_names == ("healthy", "ring")
    np.testing.assert_array_equal(validation.matrix, [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(validation.extra, [0, 1])
    assert validation.images == 1


def test_folds_are_pooled(tmp_path):
    one = validation_of(tmp_path, metrics())
    both = pool([one, one])
    np.testing.assert_array_equal(both.matrix, 2 * one.matrix)
    np.testing.assert_array_equal(both.extra, 2 * one.extra)
    assert both.images == 1000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param("{", "cannot be read as JSON", id="no-json"),
        pytest.param([1], "expected `confusion`", id="a-list"),
        pytest.param({"images": 3}, "'confusion' is missing", id="no-matrix"),
        pytest.param({**metrics(), "images": 0}, "of 1 image or more", id="no-images"),
        pytest.param(metrics(CONFUSION[:-1]), "'background' last", id="no-background"),
        pytest.param(metrics(np.full((8, 8), 0.5).tolist()), "whole numbers", id="shares"),
        pytest.param(metrics(np.full((8, 8), -1).tolist()), "must hold counts", id="negative"),
        pytest.param(metrics(images="many"), "expected `confusion`", id="images-as-text"),
    ],
)
def test_no_validation(tmp_path, values, expected):
    with pytest.raises(UserError, match=r"metrics\.json") as error:
        validation_of(tmp_path, values)
    assert expected in str(error.value)


def test_other_classes_or_thresholds_are_no_folds(tmp_path):
    one = validation_of(tmp_path, metrics())
    with pytest.raises(UserError, match="same classes in the same order"):
        pool([one, one._replace(class_names=one.class_names[::-1])])
    thresholds = {"objectness": 0.5, "iou": 0.5, "min_class_confidence": 0.95}
    with pytest.raises(UserError, match="same thresholds"):
        pool([one, validation_of(tmp_path, metrics(thresholds=thresholds))])


def test_a_class_without_a_cell_is_named_with_the_way_out(tmp_path):
    validation = validation_of(tmp_path, metrics(changed(4, [0] * 8)))
    with pytest.raises(UserError, match="has no true cell of gametocyte") as error:
        check_invertible(validation)
    assert "--assume-right gametocyte" in str(error.value)
    check_invertible(validation, assume_right=["gametocyte"])
    np.testing.assert_array_equal(response_matrix(validation)[4], np.eye(7)[4])


@pytest.mark.parametrize(
    ("name", "expected"), [("ring", "has 800 true cells"), ("worm", "no such class")]
)
def test_what_is_known_or_no_class_is_not_assumed(tmp_path, name, expected):
    with pytest.raises(UserError, match=expected):
        check_invertible(validation_of(tmp_path, metrics()), assume_right=[name])


@pytest.mark.parametrize(
    ("row", "cells", "culprits"),
    [
        # Schizonts as trophozoites are called: 1 in 100 the same way.
        pytest.param(3, [8, 12, 352, 12, 0, 0, 4, 12], "trophozoite and schizont", id="alike"),
        pytest.param(3, [0, 0, 0, 0, 0, 0, 0, 9], "schizont is almost never", id="never-found"),
    ],
)
def test_a_singular_matrix_names_its_classes(tmp_path, row, cells, culprits):
    with pytest.raises(UserError, match="cannot be inverted") as error:
        check_invertible(validation_of(tmp_path, metrics(changed(row, cells))))
    assert culprits in str(error.value)


def test_rows_are_shares_of_true_cells_or_of_found_ones(tmp_path):
    validation = validation_of(tmp_path, metrics())
    np.testing.assert_allclose(response_matrix(validation)[1, 1], 688 / 800)
    matched = response_matrix(validation, matched_only=True)
    np.testing.assert_allclose(matched[1, 1], 688 / 768)
    np.testing.assert_allclose(matched.sum(1), 1)


def test_mean_and_scatter_of_folds(tmp_path):
    folds = [
        validation_of(tmp_path, metrics(changed(1, [60, right, 24, 0, 0, 0, 8, 32])))
        for right in (600, 700, 800)
    ]
    mean, scatter = mean_and_inverse_scatter(folds, matched_only=False)
    matrices = [np.array(fold.matrix[:, :7]) / fold.matrix.sum(1)[:, None] for fold in folds]
    np.testing.assert_allclose(mean, sum(matrices) / 3)
    inverses = [np.linalg.inv(matrix) for matrix in matrices]
    middle = sum(inverses) / 3
    expected = np.sqrt(sum((inverse - middle) ** 2 for inverse in inverses) / 2)
    np.testing.assert_allclose(scatter, expected, atol=1e-12)


def test_scatter_of_one_validation_is_that_of_validations_like_it(tmp_path):
    validation = validation_of(tmp_path, metrics())
    mean, scatter = mean_and_inverse_scatter([validation], matched_only=False)
    np.testing.assert_array_equal(mean, response_matrix(validation))
    generator = np.random.default_rng(0)
    again = []
    for _ in range(2000):
        rows = [
            generator.multinomial(int(row.sum()), row / row.sum()) / row.sum()
            for row in validation.matrix
        ]
        again.append(np.linalg.inv(np.stack(rows)[:, :7]))
    # Where the validation saw enough: a count of 0 does not scatter in such draws, here it may.
    expected = np.std(again, axis=0)
    large = expected > 5e-3
    np.testing.assert_allclose(scatter[large], expected[large], rtol=0.15)
    assert large.sum() > 15
    assert (scatter > 0).all()
