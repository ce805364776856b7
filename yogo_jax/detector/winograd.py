"""The 3x3 convolution of stride 1 with fewer multiplications, for the training step on CPUs.

Two by two pixels of the result come from tiles of four by four, with 16 products of a sum of pixels
and a sum of taps, where the plain convolution has 36. The sums are a pixel's and cost little where
a pixel has many channels. Results are the plain convolution's but for rounding.

Sums of one kind are stacked, and all products are one batch of matrices: sixteen arrays of each
kind would be as fast, but three times as long to compile.

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


def _transposed(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _times(factor: float, part: Array) -> Array:
    return part if factor == 1 else -part if factor == -1 else factor * part


def _sums(matrix: Sequence[Sequence[float]], parts: Sequence[Array]) -> list[Array]:
    """`matrix` times the vector of arrays, without what is multiplied by zero."""
    return [
        functools.reduce(
            operator.add,
            (_times(factor, part) for factor, part in zip(row, parts, strict=True) if factor),
        )
        for row in matrix
    ]


def _unstacked(x: Array, axis: int) -> list[Array]:
    return [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]


def _tile_counts(image: Array) -> tuple[int, int]:
    return math.ceil(image.shape[1] / 2), math.ceil(image.shape[2] / 2)


def _tile_pixels(x: Array, axis: int) -> list[Array]:
    """The four pixels of each tile along an axis of even length; tiles begin two pixels apart."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    last = pairs.shape[axis] - 1
    # Pixels 0 and 1 of a tile are pixels 2 and 3 of the one before.
    return [
        lax.slice_in_dim(each, behind, last + behind, axis=axis)
        for behind in (0, 1)
        for each in _unstacked(pairs, axis + 1)
    ]


def _transformed(
    matrix: Sequence[Sequence[float]],
    x: Array,
    axes: tuple[int, int],
    parts_along: Callable[[Array, int], list[Array]] = _unstacked,
) -> Array:
    """`matrix` times the parts of `x` times `matrix` transposed, both stacked in front.

    Args:
      matrix: makes sums of parts.
      x: what is taken apart.
      axes: that of the rows, and that of the columns where sums of rows are stacked in front.
      parts_along: takes an array apart along an axis.
    """
    by_row = jnp.stack(_sums(matrix, parts_along(x, axes[0])))
    return jnp.stack(_sums(matrix, parts_along(by_row, axes[1])), 1)


def _tile_sums(x: Float[Array, "n h w c"]) -> Float[Array, "16 tiles c"]:
    _, height, width, channels = x.shape
    rows, columns = _tile_counts(x)
    # One pixel around the image, and another where its size is odd.
    x = jnp.pad(x, ((0, 0), (1, 1 + 2 * rows - height), (1, 1 + 2 * columns - width), (0, 0)))
    return _transformed(_B_TRANSPOSED, x, (1, 3), _tile_pixels).reshape(16, -1, channels)


def _tap_sums(kernel: Float[Array, "3 3 c oc"]) -> Float[Array, "16 c oc"]:
    return _transformed(_G, kernel, (0, 1)).reshape(16, *kernel.shape[2:])


def _pixels_transposed(of_sums: Array, axis: int) -> Array:
    """What the two pixels in each tile's middle get along an axis, stacked behind it.

    Args:
      of_sums: what the four sums of a tile get, stacked in front.
      axis: along the tiles, without the one in front.
    """
    taps = _sums(_transposed(_B_TRANSPOSED), _unstacked(of_sums, 0))

    def moved(tap: Array, by: int) -> Array:
        padding = [(0, 0, 0)] * tap.ndim
        padding[axis] = (by, -by, 0)
        return lax.pad(tap, jnp.zeros((), tap.dtype), padding)

    # Tap 1 is the middle's first pixel, and so is tap 3 of the tile before; tap 2 is its second,
    # and so is tap 0 of the tile behind.
    return jnp.stack([taps[1] + moved(taps[3], 1), taps[2] + moved(taps[0], -1)], axis + 1)


def _image(pixels: Float[Array, "n r 2 k 2 c"], height: int, width: int) -> Float[Array, "n h w c"]:
    """The image of blocks of 2x2 pixels, cut to its size."""
    images, rows, _, columns, _, channels = pixels.shape
    return pixels.reshape(images, 2 * rows, 2 * columns, channels)[:, :height, :width]


def interleaved(
    parts: Sequence[Sequence[Float[Array, "n r k c"]]], height: int, width: int
) -> Float[Array, "n h w c"]:
    """The image whose even and odd rows, and columns of each, are `parts`, cut to its size."""
    return _image(jnp.stack([jnp.stack(row, 3) for row in parts], 2), height, width)


def images_at_a_time(images: int, bytes_of_one: int, limit: int) -> int:
    """The largest divisor of a number of images whose temporary memory stays below a limit.

    Args:
      images: in the batch.
      bytes_of_one: temporary memory that one image takes.
      limit: in bytes; one image may exceed it.
    """
    return next(
        size
        for size in range(images, 0, -1)
        if images % size == 0 and (size == 1 or size * bytes_of_one <= limit)
    )


def _group(x: Array, outputs: int) -> int:
    rows, columns = _tile_counts(x)
    of_one = 16 * rows * columns * max(x.shape[-1], outputs) * 4
    return images_at_a_time(x.shape[0], of_one, _GROUP_BYTES)


def _convolved(x: Array, tap_sums: Array) -> Array:
    images, height, width, _ = x.shape
    products = (_tile_sums(x) @ tap_sums).reshape(4, 4, images, *_tile_counts(x), -1)
    rows = _sums(_A_TRANSPOSED, _unstacked(products, 0))
    return interleaved([_sums(_A_TRANSPOSED, _unstacked(row, 0)) for row in rows], height, width)


def _gradients(x: Array, tap_sums: Array, grad: Array) -> tuple[Array, Array]:
    """Those of the images, and of the sums of taps."""
    images, height, width, channels = x.shape
    rows, columns = _tile_counts(x)
    grad = jnp.pad(grad, ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
    blocks = grad.reshape(images, rows, 2, columns, 2, -1)
    of_products = _transformed(_transposed(_A_TRANSPOSED), blocks, (2, 4))
    of_products = of_products.reshape(16, -1, grad.shape[-1])
    of_tap_sums = jnp.einsum("atc,ato->aco", _tile_sums(x), of_products)
    of_tile_sums = jnp.einsum("ato,aco->atc", of_products, tap_sums)
    of_tile_sums = of_tile_sums.reshape(4, 4, images, rows, columns, channels)
    of_pixels = _pixels_transposed(_pixels_transposed(of_tile_sums, 2), 3)
    return _image(of_pixels, height, width), of_tap_sums


def convolved(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c oc"]
) -> Float[Array, "n h w oc"]:
    """Convolution of stride 1 with one pixel of zeros around, summed in float32."""
    images, height, width, _ = x.shape
    size = _group(x, kernel.shape[-1])
    tap_sums = _tap_sums(kernel.astype(jnp.float32))
    groups = x.reshape(images // size, size, *x.shape[1:])
    results = lax.map(lambda group: _convolved(group.astype(jnp.float32), tap_sums), groups)
    return results.reshape(images, height, width, -1).astype(x.dtype)


def gradients(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c oc"], grad: Float[Array, "n h w oc"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "3 3 c oc"]]:
    """Those of images and kernel, where the result's is `grad`; summed in float32."""
    images = x.shape[0]
    size = _group(x, kernel.shape[-1])
    tap_sums = _tap_sums(kernel.astype(jnp.float32))

    def add_group(total: Array, group_and_grad: tuple[Array, ...]) -> tuple[Array, Array]:
        group, group_grad = (each.astype(jnp.float32) for each in group_and_grad)
        of_group, of_tap_sums = _gradients(group, tap_sums, group_grad)
        return total + of_tap_sums, of_group

    groups = tuple(each.reshape(images // size, size, *each.shape[1:]) for each in (x, grad))
    of_tap_sums, of_images = lax.scan(add_group, jnp.zeros_like(tap_sums), groups)
    of_kernel = _transformed(
        _transposed(_G), of_tap_sums.reshape(4, 4, *of_tap_sums.shape[1:]), (0, 1)
    )
    return of_images.reshape(x.shape).astype(x.dtype), of_kernel.astype(kernel.dtype)
