"""The 3x3 convolution of stride 1 with fewer multiplications, for the training step on CPUs.

Two by two pixels of the result come from tiles of four by four, with 16 products of a sum of pixels
and a sum of taps, where the plain convolution has 36. The sums are a pixel's and cost little where
a pixel has many channels. Results are the plain convolution's but for rounding.

References:
  Lavin, Gray 2016, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308, section
  4.1: F(2x2, 3x3). The gradients are the same three transforms, transposed.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


# Of both axes; B transforms a tile's four pixels, G a kernel's three taps, A the four products.
_B_TRANSPOSED = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_TRANSPOSED = ((1, 1, 1, 0), (0, 1, -1, -1))
# Products that are held at once; more would leave the processor's cache, and whole frames would
# need gigabytes.
_GROUP_BYTES = 40_000_000

# Rows of columns, each an array.
Parts = list[list[Array]]


def _transposed(rows: Sequence[Sequence]) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)]


def _sums(matrix: Sequence[Sequence[float]], parts: Sequence[Array]) -> list[Array]:
    """`matrix` times the vector of arrays, without what is multiplied by zero."""
    return [
        functools.reduce(
            operator.add,
            (factor * part for factor, part in zip(row, parts, strict=True) if factor),
        )
        for row in matrix
    ]


def _transform(matrix: Sequence[Sequence[float]], parts: Parts) -> Parts:
    """`matrix` times `parts` times `matrix` transposed."""
    by_column = _transposed([_sums(matrix, row) for row in parts])
    return _transposed([_sums(matrix, column) for column in by_column])


def _pairs(left: Parts, right: Parts, product: Callable[[Array, Array], Array]) -> Parts:
    return [
        [product(*pair) for pair in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]


def _tile_counts(image: Array) -> tuple[int, int]:
    return math.ceil(image.shape[1] / 2), math.ceil(image.shape[2] / 2)


def _tiles(x: Float[Array, "n h w c"]) -> Parts:
    """The 4x4 pixels of all tiles, which begin two pixels apart, one outside of the image."""
    _, height, width, _ = x.shape
    rows, columns = _tile_counts(x)
    x = jnp.pad(x, ((0, 0), (1, 1 + 2 * rows - height), (1, 1 + 2 * columns - width), (0, 0)))
    # Rows 0 and 1 of a tile are rows 2 and 3 of the one above.
    return [
        [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)]
        for i in range(4)
    ]


def _tiles_transposed(parts: Parts) -> Parts:
    """What the 2x2 pixels in each tile's middle get when its pixels go where they came from."""

    def along(axis: int, taps: list[Array]) -> list[Array]:
        length = taps[0].shape[axis]

        def moved(tap: Array, before: int) -> Array:
            pad = [(before, 1 - before) if each == axis else (0, 0) for each in range(tap.ndim)]
            return jnp.pad(tap, pad)

        # Tap 1 is the middle's first pixel, and so is tap 3 of the tile before; tap 2 is its
        # second, and so is tap 0 of the tile behind.
        first = moved(taps[1], 0) + moved(taps[3], 1)
        second = moved(taps[0], 0) + moved(taps[2], 1)
        return [
            lax.slice_in_dim(first, 0, length, axis=axis),
            lax.slice_in_dim(second, 1, length + 1, axis=axis),
        ]

    by_column = _transposed([along(2, row) for row in parts])
    return _transposed([along(1, column) for column in by_column])


def interleaved(parts: Parts, height: int, width: int) -> Float[Array, "n h w c"]:
    """The image whose even and odd rows, and columns of each, are `parts`, cut to its size."""
    by_row = [jnp.stack(row, axis=3) for row in parts]
    pixels = jnp.stack(by_row, axis=2)
    images, rows, _, columns, _, channels = pixels.shape
    return pixels.reshape(images, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _group(x: Array, outputs: int) -> int:
    """How many images at a time: a divisor of their number."""
    rows, columns = _tile_counts(x)
    of_one = 16 * rows * columns * max(x.shape[-1], outputs) * 4
    return next(
        size
        for size in range(x.shape[0], 0, -1)
        if x.shape[0] % size == 0 and (size == 1 or size * of_one <= _GROUP_BYTES)
    )


def _tile_sums(x: Array) -> Parts:
    return _transform(_B_TRANSPOSED, _tiles(x))


def _tap_sums(kernel: Array) -> Parts:
    return _transform(_G, [list(row) for row in kernel])


def _convolved(x: Array, kernel: Array) -> Array:
    products = _pairs(_tile_sums(x), _tap_sums(kernel), operator.matmul)
    return interleaved(_transform(_A_TRANSPOSED, products), *x.shape[1:3])


def _gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
    images, height, width, channels = x.shape
    rows, columns = _tile_counts(x)

    def flat(parts: Parts) -> Parts:
        # Products of matrices are faster than those of more axes.
        return [[part.reshape(-1, part.shape[-1]) for part in row] for row in parts]

    grad = jnp.pad(grad, ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
    of_results = [[grad[:, i::2, j::2] for j in range(2)] for i in range(2)]
    of_products = flat(_transform(_transposed(_A_TRANSPOSED), of_results))
    of_tap_sums = _pairs(flat(_tile_sums(x)), of_products, lambda v, d: v.T @ d)
    of_taps = _transform(_transposed(_G), of_tap_sums)
    of_tile_sums = _pairs(
        of_products,
        _tap_sums(kernel),
        lambda d, u: (d @ u.T).reshape(images, rows, columns, channels),
    )
    of_pixels = _tiles_transposed(_transform(_transposed(_B_TRANSPOSED), of_tile_sums))
    return interleaved(of_pixels, height, width), jnp.stack([jnp.stack(row) for row in of_taps])


def convolved(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c oc"]
) -> Float[Array, "n h w oc"]:
    """Convolution of stride 1 with one pixel of zeros around, summed in float32."""
    images, height, width, _ = x.shape
    size = _group(x, kernel.shape[-1])
    taps = kernel.astype(jnp.float32)
    groups = x.reshape(images // size, size, *x.shape[1:])
    results = lax.map(lambda group: _convolved(group.astype(jnp.float32), taps), groups)
    return results.reshape(images, height, width, -1).astype(x.dtype)


def gradients(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c oc"], grad: Float[Array, "n h w oc"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "3 3 c oc"]]:
    """Those of images and kernel, where the result's is `grad`; summed in float32."""
    images = x.shape[0]
    size = _group(x, kernel.shape[-1])
    taps = kernel.astype(jnp.float32)

    def add_group(total: Array, group_and_grad: tuple[Array, ...]) -> tuple[Array, Array]:
        group, group_grad = (each.astype(jnp.float32) for each in group_and_grad)
        of_group, of_kernel = _gradients(group, taps, group_grad)
        return total + of_kernel, of_group

    groups = tuple(each.reshape(images // size, size, *each.shape[1:]) for each in (x, grad))
    of_kernel, of_images = lax.scan(add_group, jnp.zeros_like(taps), groups)
    return of_images.reshape(x.shape).astype(x.dtype), of_kernel.astype(kernel.dtype)
