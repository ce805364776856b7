import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yogo_jax.detector import conv
from yogo_jax.detector.conv import conv3x3


@pytest.mark.parametrize("block_bytes", [2_000_000, 7000, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "image_hw", [(12, 16), (13, 16), (12, 17), (13, 17), (5, 5)], ids=lambda hw: f"{hw[0]}x{hw[1]}"
)
def test_gradients_are_those_of_the_plain_convolution(stride, image_hw, block_bytes, monkeypatch):
    monkeypatch.setattr(conv, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, *image_hw, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    expected, expected_gradients = jax.vjp(plain, x, kernel)
    found, gradients = jax.vjp(lambda x, kernel: conv3x3(x, kernel, stride=stride), x, kernel)
    np.testing.assert_array_equal(found, expected)
    weights = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for ours, theirs in zip(gradients(weights), expected_gradients(weights), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(abs(theirs).max()))
