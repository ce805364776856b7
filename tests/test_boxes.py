import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from yogo_jax.detector.boxes import area, cxcywh_to_xyxy, intersection, iou, xyxy_to_cxcywh
from yogo_jax.detector.losses import ciou_loss


def random_boxes(seed: int, count: int) -> jax.Array:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (count, 2))
    corners = np.concatenate([low, low + rng.uniform(0.01, 0.3, (count, 2))], 1)
    return jnp.asarray(corners, jnp.float32)


# The functions take arrays of either library, and the host goes without JAX.
LIBRARIES = pytest.mark.parametrize("xp", [jnp, np], ids=["jax", "numpy"])
unit = st.floats(0, 1, width=32)


@given(st.tuples(unit, unit, unit, unit))
def test_conversions_are_inverse(box):
    for xp in (jnp, np):
        there = cxcywh_to_xyxy(xp.asarray(box))
        np.testing.assert_allclose(xyxy_to_cxcywh(there), box, atol=1e-6)


@LIBRARIES
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param((0, 0, 1, 1), (0, 0, 1, 1), 1.0, id="same"),
        pytest.param((0, 0, 1, 1), (0, 0, 1, 0.5), 0.5, id="half"),
        pytest.param((0, 0, 0.5, 1), (0.5, 0, 1, 1), 0.0, id="touching"),
        pytest.param((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1), 0.0, id="apart"),
        pytest.param((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0, id="both empty"),
        pytest.param((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, id="corner"),
        pytest.param((0.2, 0.2, 0.1, 0.1), (0.1, 0.1, 0.2, 0.2), 0.0, id="inside out"),
        pytest.param((0.2, 0.1, 0.1, 0.2), (0.1, 0.1, 0.2, 0.2), 0.0, id="one axis inside out"),
    ],
)
def test_iou_table(a, b, expected, xp):
    assert float(iou(xp.asarray(a, float), xp.asarray(b, float))) == pytest.approx(expected)


def test_numpy_and_jax_give_the_same_boxes_in_their_own_arrays():
    a, b = random_boxes(4, 50), random_boxes(5, 50)
    on_host = np.asarray(a), np.asarray(b)
    for function in (iou, intersection):
        found = function(*on_host)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, jax.jit(function)(a, b), atol=1e-6)
    for function in (cxcywh_to_xyxy, xyxy_to_cxcywh, area):
        found = function(on_host[0])
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, jax.jit(function)(a), atol=1e-6)


def test_iou_and_ciou_agree_with_the_definition():
    a, b = random_boxes(0, 200), random_boxes(1, 200)
    pairs = list(zip(np.asarray(a, float), np.asarray(b, float), strict=True))
    expected = [reference.iou(*pair) for pair in pairs]
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-5)
    expected = [reference.ciou_loss(*pair) for pair in pairs]
    np.testing.assert_allclose(ciou_loss(a, b), expected, atol=2e-5)


def test_iou_is_symmetric_and_broadcasts():
    a, b = random_boxes(2, 7), random_boxes(3, 5)
    table = iou(a[:, None], b[None])
    assert table.shape == (7, 5)
    np.testing.assert_array_equal(table, iou(b[:, None], a[None]).T)
    assert (np.asarray(table) >= 0).all()
    assert (np.asarray(table) <= 1).all()


def test_area_of_a_box():
    assert float(area(jnp.asarray((0.1, 0.2, 0.4, 0.6)))) == pytest.approx(0.12)
