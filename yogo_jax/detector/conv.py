"""The 3x3 convolution of the backbones, with a weight gradient that CPUs compute fast.

XLA's own weight gradient of a wide layer runs on CPUs at a fraction of the forward pass's rate.
There it is written as one matrix product per tap of the kernel, which is equal but for rounding;
accelerators keep the plain path. `benchmarks/step.py` measures the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PADDING = ((1, 1), (1, 1))


def _plain_conv3x3(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), _PADDING, dimension_numbers=_LAYOUT
    )


def _plain_kernel_gradient(x: Array, grad: Array, stride: int) -> Array:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], grad.shape[-1]), x.dtype)
    linear = jax.linear_transpose(lambda each: _plain_conv3x3(x, each, stride), kernel)
    return linear(grad)[0]


def _kernel_gradient_by_taps(x: Array, grad: Array, stride: int) -> Array:
    """Per tap: the product of the pixels that it saw with the gradients of what it made."""
    batch, rows, columns, outputs = grad.shape
    channels = x.shape[-1]
    padded = jnp.pad(x, ((0, 0), *_PADDING, (0, 0)))
    flat_grad = grad.reshape(-1, outputs)

    def tap(row: int, column: int) -> Array:
        last = (row + stride * (rows - 1) + 1, column + stride * (columns - 1) + 1)
        seen = lax.slice(
            padded, (0, row, column, 0), (batch, *last, channels), (1, stride, stride, 1)
        )
        return lax.dot_general(seen.reshape(-1, channels), flat_grad, (((0,), (0,)), ((), ())))

    return jnp.stack([jnp.stack([tap(row, column) for column in range(3)]) for row in range(3)])


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _plain_conv3x3(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    image = jax.ShapeDtypeStruct(x.shape, x.dtype)
    (x_gradient,) = jax.linear_transpose(lambda each: _plain_conv3x3(each, kernel, stride), image)(
        grad
    )
    kernel_gradient = lax.platform_dependent(
        x,
        grad,
        cpu=lambda x, grad: _kernel_gradient_by_taps(x, grad, stride),
        default=lambda x, grad: _plain_kernel_gradient(x, grad, stride),
    )
    return x_gradient, kernel_gradient


_conv3x3 = jax.custom_vjp(_plain_conv3x3, nondiff_argnums=(2,))
_conv3x3.defvjp(_forward, _backward)


def conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c oc"], *, stride: int
) -> Float[Array, "b oh ow oc"]:
    """Convolution with a 3x3 kernel and one pixel of zeros around.

    The padding is explicit: at stride 2 "SAME" would pad only one side of even sizes.

    Args:
      x: images or features.
      kernel: taps of rows, columns, channels in and out.
      stride: 1 or 2, of both axes.
    """
    return _conv3x3(x, kernel, stride)


def flax_conv3x3(x: Array, kernel: Array, strides: Any, *_: Any, **__: Any) -> Array:
    """`conv3x3` in the form in which `flax.linen.Conv` calls its convolution."""
    return conv3x3(x, kernel, stride=strides[0])
