import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yogo_jax.detector import cpu_conv as conv
from yogo_jax.detector.cpu_conv import conv3x3
from yogo_jax.errors import UserError


# Channels in and out, stride, whether training uses Winograd.
CHOICES = [
    (64, 64, 1, True),
    (64, 128, 1, True),
    (32, 64, 1, False),
    (128, 32, 1, False),
    (64, 64, 2, False),
]
SIZES = pytest.mark.parametrize(
    "image_hw",
    [(12, 16), (13, 16), (12, 17), (13, 17), (5, 5), (1, 2), (1, 1)],
    ids=lambda hw: f"{hw[0]}x{hw[1]}",
)


def plain_conv(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def assert_but_for_rounding(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(abs(theirs).max()))


# The copies of a gradient: of all images at once, or of one at a time.
@pytest.mark.slow
@pytest.mark.parametrize("copied_bytes", [400_000_000, 1])
@pytest.mark.parametrize("block_bytes", [2_000_000, 7000, 1])
@pytest.mark.parametrize("stride", [1, 2])
@SIZES
def test_gradients_are_those_of_the_plain_convolution(
    stride, image_hw, block_bytes, copied_bytes, monkeypatch
):
    monkeypatch.setattr(conv, "_TAP_BYTES", block_bytes)
    monkeypatch.setattr(conv, "_COPY_BYTES", copied_bytes)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, *image_hw, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32)

    expected, expected_gradients = jax.vjp(functools.partial(plain_conv, stride=stride), x, kernel)
    found, gradients = jax.vjp(lambda x, kernel: conv3x3(x, kernel, stride=stride), x, kernel)
    np.testing.assert_array_equal(found, expected)
    weights = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for ours, theirs in zip(gradients(weights), expected_gradients(weights), strict=True):
        assert_but_for_rounding(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("group_bytes", [40_000_000, 50_000, 1])
@SIZES
def test_winograd_gives_the_plain_convolution(image_hw, group_bytes, monkeypatch):
    monkeypatch.setattr(conv, "_PRODUCT_BYTES", group_bytes)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, *image_hw, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 5, 4)), jnp.float32)
    expected, expected_gradients = jax.vjp(functools.partial(plain_conv, stride=1), x, kernel)
    assert_but_for_rounding(conv.winograd(x, kernel), expected)
    grad = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    of_images, of_kernel = conv.winograd_gradients(x, kernel, grad)
    images_expected, kernel_expected = expected_gradients(grad)
    assert_but_for_rounding(of_images, images_expected)
    assert_but_for_rounding(of_kernel, kernel_expected)


def test_half_precision_is_summed_in_single():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 64)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 64, 64)), jnp.bfloat16)
    single = [each.astype(jnp.float32) for each in (x, kernel)]
    exact = plain_conv(*single, 1)
    found = conv.winograd(x, kernel)
    assert found.dtype == jnp.bfloat16
    # The result is rounded once, to eight bits.
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(("channels", "outputs", "stride", "is_winograd"), CHOICES)
def test_wide_layers_of_stride_1_use_winograd_in_training_alone(
    channels, outputs, stride, is_winograd, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        conv,
        "winograd_gradients",
        lambda x, kernel, grad: (calls.append("gradients"), (x, kernel))[1],
    )
    x, kernel = jnp.ones((1, 4, 4, channels)), jnp.ones((3, 3, channels, outputs))
    value = conv3x3(x, kernel, stride=stride)
    np.testing.assert_array_equal(value, plain_conv(x, kernel, stride))
    assert not calls
    jax.grad(lambda kernel: conv3x3(x, kernel, stride=stride).sum())(kernel)
    assert bool(calls) == is_winograd


def gradients_of(x, kernel, stride):
    def loss(x, kernel):
        return jnp.sin(conv3x3(x, kernel, stride=stride)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_switch_gives_xlas_convolution_and_the_same_numbers(stride, monkeypatch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 64)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 64, 64)) / 24, jnp.float32)
    fast = gradients_of(x, kernel, stride)
    monkeypatch.setenv(conv.SWITCH, "fast")
    assert fast[0] == gradients_of(x, kernel, stride)[0]

    def refused(*_):
        raise AssertionError("XLA's convolution was asked for")

    for name in ("winograd", "winograd_gradients", "_kernel_gradient", "_image_gradient"):
        monkeypatch.setattr(conv, name, refused)
    monkeypatch.setenv(conv.SWITCH, "xla")
    xla = gradients_of(x, kernel, stride)
    for ours, theirs in zip(jax.tree.leaves(fast), jax.tree.leaves(xla), strict=True):
        assert_but_for_rounding(ours, theirs)


def test_an_unknown_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(conv.SWITCH, "slow")
    with pytest.raises(UserError, match=r"YOGO_JAX_CPU_CONV must be fast .* or xla, got 'slow'"):
        conv3x3(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), stride=1)
