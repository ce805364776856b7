"""The 3x3 convolution of the backbones, which CPUs train fast.

XLA's own weight gradients, and its input gradients of strided layers, run on CPUs at a fraction of
the forward pass's rate. There they are written as matrix products, equal but for rounding, and
wide layers of stride 1 are trained with fewer multiplications below. Accelerators, and
whatever takes no gradients, keep the plain path. `benchmarks/step.py` measures the step.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
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


_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PADDING = ((1, 1), (1, 1))
# Copies of an image's taps that a matrix product reads; more would leave the processor's cache.
_BLOCK_BYTES = 12_000_000
# Copies of features or gradients that a layer reads at once, its own or those that XLA makes: more
# than a batch of small images needs, so that those stay whole. A batch of whole frames would need
# gigabytes.
_COPIED_BYTES = 400_000_000
# Channels in and out from which on fewer products are worth more sums: 16 to 32 lose by them.
_WIDE = 64


def _plain_conv3x3(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), _PADDING, dimension_numbers=_LAYOUT
    )


def _images_at_a_time(images: Array, copies: int = 1) -> int:
    """Images of a batch that a layer takes at once, where it copies each so many times."""
    bytes_of_one = copies * math.prod(images.shape[1:]) * 4
    return images_at_a_time(images.shape[0], bytes_of_one, _COPIED_BYTES)


def _some_at_a_time(function: Callable[[Array], Array], images: Array, copies: int = 1) -> Array:
    """The function of a batch, computed for some of its images at a time."""
    size = _images_at_a_time(images, copies)
    if size == images.shape[0]:
        return function(images)
    results = lax.map(function, images.reshape(-1, size, *images.shape[1:]))
    return results.reshape(-1, *results.shape[2:])


def _plain_kernel_gradient(x: Array, grad: Array, stride: int) -> Array:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], grad.shape[-1]), x.dtype)
    linear = jax.linear_transpose(lambda each: _plain_conv3x3(x, each, stride), kernel)
    return linear(grad)[0]


def _kernel_gradient_by_products(x: Array, grad: Array, stride: int) -> Array:
    """Some rows at a time, the gradients times all that each of them saw: one matrix product."""
    _, rows, columns, outputs = grad.shape
    channels = x.shape[-1]
    blocks = min(rows, math.ceil(rows * columns * 9 * channels * 4 / _BLOCK_BYTES))
    block_rows = math.ceil(rows / blocks)
    blocks = math.ceil(rows / block_rows)
    more_rows = blocks * block_rows - rows
    seen_rows = stride * (block_rows - 1) + 3

    def taps_of(seen: Array) -> Array:
        last = (stride * (block_rows - 1) + 1, stride * (columns - 1) + 1)
        taps = [
            lax.slice(seen, (i, j, 0), (i + last[0], j + last[1], channels), (stride, stride, 1))
            for i in range(3)
            for j in range(3)
        ]
        return jnp.concatenate(taps, axis=-1).reshape(block_rows * columns, 9 * channels)

    def add_image(total: Array, image_and_grad: tuple[Array, Array]) -> tuple[Array, None]:
        # Rows that fill the last block have no gradient.
        image = jnp.pad(image_and_grad[0], ((1, 1 + stride * more_rows), (1, 1), (0, 0)))
        image_grad = jnp.pad(image_and_grad[1], ((0, more_rows), (0, 0), (0, 0)))

        def add_block(block: Array | int, total: Array) -> Array:
            top = block * block_rows
            seen = lax.dynamic_slice_in_dim(image, stride * top, seen_rows)
            block_grad = lax.dynamic_slice_in_dim(image_grad, top, block_rows)
            return total + lax.dot_general(
                block_grad.reshape(block_rows * columns, outputs),
                taps_of(seen),
                (((0,), (0,)), ((), ())),
                preferred_element_type=total.dtype,
            )

        if blocks == 1:
            return add_block(0, total), None
        return lax.fori_loop(0, blocks, add_block, total), None

    # The sum is float32 whatever they are.
    zeros = jnp.zeros((outputs, 9 * channels), jnp.float32)
    total, _ = lax.scan(add_image, zeros, (x, grad))
    return total.T.reshape(3, 3, channels, outputs).astype(x.dtype)


def _plain_input_gradient(kernel: Array, grad: Array, stride: int, shape: tuple) -> Array:
    image = jax.ShapeDtypeStruct(shape, grad.dtype)
    linear = jax.linear_transpose(lambda each: _plain_conv3x3(each, kernel, stride), image)
    return linear(grad)[0]


def _input_gradient_by_parity(kernel: Array, grad: Array, shape: tuple[int, ...]) -> Array:
    """At stride 2: the four kinds of pixels, by even and odd row and column, each by a product.

    An even row was seen by the middle tap of one output row, an odd one by the last tap of that
    and the first tap of the next; columns alike.
    """
    _, height, width, _ = shape
    _, rows, columns, _ = grad.shape
    # Of each parity: (output row from this one on, tap).
    seers = (((0, 1),), ((0, 2), (1, 0)))

    def of_group(grad: Array) -> Array:
        padded = jnp.pad(grad, ((0, 0), (0, 1), (0, 1), (0, 0)))

        def kind(row_parity: int, column_parity: int) -> Array:
            pairs = list(itertools.product(seers[row_parity], seers[column_parity]))
            grads = [padded[:, i : i + rows, j : j + columns] for (i, _), (j, _) in pairs]
            taps = [kernel[i, j].T for (_, i), (_, j) in pairs]
            return jnp.concatenate(grads, axis=-1) @ jnp.concatenate(taps)

        # Of an odd size the last row has no odd neighbour.
        kinds = [[kind(row, 0), kind(row, 1)] for row in (0, 1)]
        return interleaved(kinds, height, width)

    # Each tap reads the gradients once.
    return _some_at_a_time(of_group, grad, copies=9)


def _is_wide(kernel: Array, stride: int) -> bool:
    return stride == 1 and min(kernel.shape[2:]) >= _WIDE


def _cpu_gradients(stride: int, x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
    if _is_wide(kernel, stride):
        return gradients(x, kernel, grad)
    if stride == 2:
        of_images = _input_gradient_by_parity(kernel, grad, x.shape)
    else:

        def of_group(grad: Array) -> Array:
            return _plain_input_gradient(kernel, grad, stride, (len(grad), *x.shape[1:]))

        of_images = _some_at_a_time(of_group, grad)
    return of_images, _kernel_gradient_by_products(x, grad, stride)


def _device_axes() -> tuple[str, ...]:
    """Axes of the mesh that images are spread over, none on one device.

    Left to itself the compiler would bring all images to every device, for the loops over them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty or mesh.size == 1 else mesh.axis_names


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    """The convolution where gradients follow, and what they read."""
    plain = functools.partial(_plain_conv3x3, stride=stride)
    on_cpu = convolved
    if not _is_wide(kernel, stride):
        if _images_at_a_time(x) == x.shape[0]:
            return plain(x, kernel), (x, kernel)

        def on_cpu(x: Array, kernel: Array) -> Array:
            return _some_at_a_time(lambda group: plain(group, kernel), x)

    if axes := _device_axes():
        by_image, copied = PartitionSpec(axes), PartitionSpec()
        on_cpu = jax.shard_map(
            on_cpu, in_specs=(by_image, copied), out_specs=by_image, check_vma=False
        )
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def plain(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        of_images = _plain_input_gradient(kernel, grad, stride, x.shape)
        return of_images, _plain_kernel_gradient(x, grad, stride)

    on_cpu: Callable[..., tuple[Array, Array]] = functools.partial(_cpu_gradients, stride)
    if axes := _device_axes():
        by_image, copied = PartitionSpec(axes), PartitionSpec()

        def of_own_images(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
            of_images, of_kernel = _cpu_gradients(stride, x, kernel, grad)
            return of_images, lax.psum(of_kernel, axes)

        on_cpu = jax.shard_map(
            of_own_images,
            in_specs=(by_image, copied, by_image),
            out_specs=(by_image, copied),
            check_vma=False,
        )
    return lax.platform_dependent(x, kernel, grad, cpu=on_cpu, default=plain)


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
