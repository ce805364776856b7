"""The 3x3 convolution of the backbones, trained fast on CPUs.

XLA computes the gradients of a convolution slowly on CPUs. There, and in training alone, they are
matrix products:

- The gradient of the kernel is im2col transposed times gradient, a block of rows at a time.
- The gradient of the images at stride 2 is four products, one for each parity of row and column.
- Layers of stride 1 with many channels use Winograd's algorithm for the convolution and for both
  gradients: 16 multiplications in place of 36.

Results are equal but for rounding. Accelerators, validation, inference and exported models use
XLA's own convolution. With `YOGO_JAX_CPU_CONV=xla` in the environment CPUs use it in training, too.
`benchmarks/step.py` measures the step.

References:
  Chellapilla, Puri and Simard 2006, High Performance Convolutional Neural Networks for Document
  Processing, section 3.1 (convolutions as matrix products).
  Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308, section
  4.1 (Winograd's F(2x2, 3x3)).
"""

import functools
import itertools
import math
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from yogo_jax.errors import UserError


SWITCH = "YOGO_JAX_CPU_CONV"
# Least channels in and out at which Winograd is faster; at 16 to 32 its sums cost more than the
# multiplications that it saves.
_WINOGRAD_CHANNELS = 64
# Limits of temporary arrays in bytes. The first two fit the processor's cache: the taps of a block
# of rows, and Winograd's products of a group of images. The third is for copies of features or of
# gradients: a batch of small images stays whole, a batch of whole frames would need gigabytes.
_TAP_BYTES = 12_000_000
_PRODUCT_BYTES = 40_000_000
_COPY_BYTES = 400_000_000


# The convolution, and the choice of its gradients.


def conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c oc"], *, stride: int
) -> Float[Array, "b oh ow oc"]:
    """Convolution with a 3x3 kernel and one pixel of zeros around.

    The padding is explicit: at stride 2 "SAME" would pad only one side of even sizes.

    Args:
      x: images or features.
      kernel: taps of rows, columns, channels in and out.
      stride: 1 or 2, of both axes.

    Raises:
      UserError: the environment variable YOGO_JAX_CPU_CONV has an unknown value.
    """
    choice = os.environ.get(SWITCH) or "fast"
    if choice not in ("fast", "xla"):
        raise UserError(f"{SWITCH} must be fast (the default) or xla, got {choice!r}")
    return _conv3x3(x, kernel, stride) if choice == "fast" else _xla_conv3x3(x, kernel, stride)


def flax_conv3x3(x: Array, kernel: Array, strides: Any, *_: Any, **__: Any) -> Array:
    """`conv3x3` in the form in which `flax.linen.Conv` calls its convolution."""
    return conv3x3(x, kernel, stride=strides[0])


def _xla_conv3x3(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _device_axes() -> tuple[str, ...]:
    """Axes of the mesh that images are spread over, none on one device.

    Each device then loops over its own images; left alone, XLA would bring all of them to each.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty or mesh.size == 1 else mesh.axis_names


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    """The convolution where gradients follow, and what they read."""
    xla = functools.partial(_xla_conv3x3, stride=stride)
    on_cpu = winograd
    if not _is_for_winograd(kernel, stride):
        if _group_size(x, _image_bytes(x), _COPY_BYTES) == len(x):
            return xla(x, kernel), (x, kernel)

        def on_cpu(x: Array, kernel: Array) -> Array:
            return _in_groups(lambda group: xla(group, kernel), x, _image_bytes(x), _COPY_BYTES)

    if axes := _device_axes():
        by_image, copied = PartitionSpec(axes), PartitionSpec()
        on_cpu = jax.shard_map(
            on_cpu, in_specs=(by_image, copied), out_specs=by_image, check_vma=False
        )
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=xla), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """The gradients of images and kernel."""
    axes = _device_axes()

    def xla(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        _, gradients = jax.vjp(functools.partial(_xla_conv3x3, stride=stride), x, kernel)
        return gradients(grad)

    def on_cpu(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        if _is_for_winograd(kernel, stride):
            of_images, of_kernel = winograd_gradients(x, kernel, grad)
        else:
            of_images = _image_gradient(kernel, grad, stride, x.shape)
            of_kernel = _kernel_gradient(x, grad, stride)
        return of_images, lax.psum(of_kernel, axes) if axes else of_kernel

    if axes:
        by_image, copied = PartitionSpec(axes), PartitionSpec()
        on_cpu = jax.shard_map(
            on_cpu,
            in_specs=(by_image, copied, by_image),
            out_specs=(by_image, copied),
            check_vma=False,
        )
    return lax.platform_dependent(*saved, grad, cpu=on_cpu, default=xla)


_conv3x3 = jax.custom_vjp(_xla_conv3x3, nondiff_argnums=(2,))
_conv3x3.defvjp(_forward, _backward)


# Groups of images: what a layer copies of a whole batch of frames would not fit into memory.


def _image_bytes(images: Array, copies: int = 1) -> int:
    """Bytes of one image of a batch in float32, or of copies of it."""
    return copies * math.prod(images.shape[1:]) * 4


def _group_size(images: Array, bytes_of_one: int, limit: int) -> int:
    """The largest divisor of the number of images that keeps below a limit of bytes, 1 at least."""
    sizes = (size for size in range(len(images), 0, -1) if len(images) % size == 0)
    return next((size for size in sizes if size * bytes_of_one <= limit), 1)


def _in_groups(
    function: Callable[[Array], Array], images: Array, bytes_of_one: int, limit: int
) -> Array:
    """The function of a batch, computed for one group of its images after the other."""
    size = _group_size(images, bytes_of_one, limit)
    if size == len(images):
        return function(images)
    results = lax.map(function, images.reshape(-1, size, *images.shape[1:]))
    return results.reshape(-1, *results.shape[2:])


# Gradients as matrix products.


def _kernel_gradient(x: Array, grad: Array, stride: int) -> Array:
    """The kernel's gradient: im2col transposed times gradient, a block of rows at a time."""
    _, rows, columns, outputs = grad.shape
    channels = x.shape[-1]
    blocks = min(rows, math.ceil(rows * columns * 9 * channels * 4 / _TAP_BYTES))
    block_rows = math.ceil(rows / blocks)
    blocks = math.ceil(rows / block_rows)
    more_rows = blocks * block_rows - rows
    seen_rows = stride * (block_rows - 1) + 3

    def im2col(seen: Array) -> Array:
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
                im2col(seen),
                (((0,), (0,)), ((), ())),
                preferred_element_type=total.dtype,
            )

        if blocks == 1:
            return add_block(0, total), None
        return lax.fori_loop(0, blocks, add_block, total), None

    # The sum is float32 in half precision, too.
    zeros = jnp.zeros((outputs, 9 * channels), jnp.float32)
    total, _ = lax.scan(add_image, zeros, (x, grad))
    return total.T.reshape(3, 3, channels, outputs).astype(x.dtype)


def _image_gradient(kernel: Array, grad: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """The images' gradient, where the images have that shape."""
    if stride == 2:
        of_group = functools.partial(_image_gradient_by_parity, kernel, image_hw=shape[1:3])
        # Each of the nine taps reads the gradients once.
        return _in_groups(of_group, grad, _image_bytes(grad, copies=9), _COPY_BYTES)

    def by_xla(grad: Array) -> Array:
        images = jax.ShapeDtypeStruct((len(grad), *shape[1:]), grad.dtype)
        transposed = jax.linear_transpose(lambda x: _xla_conv3x3(x, kernel, stride), images)
        return transposed(grad)[0]

    return _in_groups(by_xla, grad, _image_bytes(grad), _COPY_BYTES)


def _image_gradient_by_parity(kernel: Array, grad: Array, *, image_hw: tuple[int, ...]) -> Array:
    """The images' gradient at stride 2, one product for each parity of row and column.

    An even row was read by the middle tap of one output row, an odd one by the last tap of that
    and by the first tap of the next; columns alike.
    """
    _, rows, columns, _ = grad.shape
    # Of each parity: (output row from this one on, tap).
    readers = (((0, 1),), ((0, 2), (1, 0)))
    padded = jnp.pad(grad, ((0, 0), (0, 1), (0, 1), (0, 0)))

    def pixels(row_parity: int, column_parity: int) -> Array:
        pairs = list(itertools.product(readers[row_parity], readers[column_parity]))
        grads = [padded[:, i : i + rows, j : j + columns] for (i, _), (j, _) in pairs]
        taps = [kernel[i, j].T for (_, i), (_, j) in pairs]
        return jnp.concatenate(grads, axis=-1) @ jnp.concatenate(taps)

    # Of an odd size the last row has no odd neighbour: the image is cut.
    return _interleaved([[pixels(row, 0), pixels(row, 1)] for row in (0, 1)], *image_hw)


def _interleaved(parts: Sequence[Sequence[Array]], height: int, width: int) -> Array:
    """The image whose even and odd rows, and columns of each, are `parts`, cut to its size."""
    return _image(jnp.stack([jnp.stack(row, 3) for row in parts], 2), height, width)


def _image(pixels: Float[Array, "n r 2 k 2 c"], height: int, width: int) -> Float[Array, "n h w c"]:
    """The image of blocks of 2x2 pixels, cut to its size."""
    images, rows, _, columns, _, channels = pixels.shape
    return pixels.reshape(images, 2 * rows, 2 * columns, channels)[:, :height, :width]


# Winograd's algorithm F(2x2, 3x3). A tile of 4x4 pixels gives 2x2 results. Along each axis, B makes
# four sums of a tile's pixels, G four sums of a kernel's taps; they are multiplied one by one, and
# A makes two results of the four products. Gradients are the same steps transposed.

_B_TRANSPOSED = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A_TRANSPOSED = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def _is_for_winograd(kernel: Array, stride: int) -> bool:
    return stride == 1 and min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS


def winograd(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c oc"]
) -> Float[Array, "n h w oc"]:
    """Convolution of stride 1 with one pixel of zeros around, summed in float32."""
    _, height, width, _ = x.shape
    tap_sums = _tap_sums(kernel)

    def of_group(group: Array) -> Array:
        products = _tile_sums(group) @ tap_sums
        products = products.reshape(4, 4, len(group), *_tile_counts(group), -1)
        rows = _sums(_A_TRANSPOSED, jnp.unstack(products))
        results = [_sums(_A_TRANSPOSED, jnp.unstack(row)) for row in rows]
        return _interleaved(results, height, width)

    return _in_groups(of_group, x, _product_bytes(x, kernel), _PRODUCT_BYTES).astype(x.dtype)


def winograd_gradients(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c oc"], grad: Float[Array, "n h w oc"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "3 3 c oc"]]:
    """The gradients of images and kernel, where the result's is `grad`; summed in float32."""
    _, height, width, channels = x.shape
    rows, columns = _tile_counts(x)
    size = _group_size(x, _product_bytes(x, kernel), _PRODUCT_BYTES)
    tap_sums = _tap_sums(kernel)

    def add_group(total: Array, group_and_grad: tuple[Array, ...]) -> tuple[Array, Array]:
        group, grad = group_and_grad
        padding = ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0))
        blocks = jnp.pad(grad.astype(jnp.float32), padding).reshape(size, rows, 2, columns, 2, -1)
        of_products = _sums_of_both(_A_TRANSPOSED.T, blocks, (2, 4))
        of_products = of_products.reshape(16, -1, grad.shape[-1])
        of_tap_sums = jnp.einsum("atc,ato->aco", _tile_sums(group), of_products)
        of_tile_sums = jnp.einsum("ato,aco->atc", of_products, tap_sums)
        of_tile_sums = of_tile_sums.reshape(4, 4, size, rows, columns, channels)
        of_pixels = _pixel_gradients(_pixel_gradients(of_tile_sums, 2), 3)
        return total + of_tap_sums, _image(of_pixels, height, width)

    groups = tuple(each.reshape(-1, size, *each.shape[1:]) for each in (x, grad))
    of_tap_sums, of_images = lax.scan(add_group, jnp.zeros_like(tap_sums), groups)
    of_tap_sums = of_tap_sums.reshape(4, 4, *of_tap_sums.shape[1:])
    of_kernel = _sums_of_both(_G.T, of_tap_sums, (0, 1))
    return of_images.reshape(x.shape).astype(x.dtype), of_kernel.astype(kernel.dtype)


def _product_bytes(x: Array, kernel: Array) -> int:
    """Bytes of one image's products, or of its sums of pixels if these are more."""
    return 16 * math.prod(_tile_counts(x)) * max(kernel.shape[2:]) * 4


def _tile_counts(images: Array) -> tuple[int, int]:
    """Rows and columns of the tiles, which begin two pixels apart."""
    return math.ceil(images.shape[1] / 2), math.ceil(images.shape[2] / 2)


def _tile_sums(x: Float[Array, "n h w c"]) -> Float[Array, "16 tiles c"]:
    _, height, width, channels = x.shape
    rows, columns = _tile_counts(x)
    # One pixel around the image, and another where its size is odd.
    padding = ((0, 0), (1, 1 + 2 * rows - height), (1, 1 + 2 * columns - width), (0, 0))
    x = jnp.pad(x.astype(jnp.float32), padding)
    return _sums_of_both(_B_TRANSPOSED, x, (1, 3), _tile_pixels).reshape(16, -1, channels)


def _tap_sums(kernel: Float[Array, "3 3 c oc"]) -> Float[Array, "16 c oc"]:
    sums = _sums_of_both(_G, kernel.astype(jnp.float32), (0, 1))
    return sums.reshape(16, *kernel.shape[2:])


def _tile_pixels(x: Array, *, axis: int) -> list[Array]:
    """The four pixels of each tile along an axis of even length."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    last = pairs.shape[axis] - 1
    # Pixels 0 and 1 of a tile are pixels 2 and 3 of the one before.
    return [
        lax.slice_in_dim(each, behind, last + behind, axis=axis)
        for behind in (0, 1)
        for each in jnp.unstack(pairs, axis=axis + 1)
    ]


def _pixel_gradients(of_sums: Array, axis: int) -> Array:
    """The gradients of the two middle pixels of each tile along an axis, stacked behind it.

    Those of the four sums of a tile are stacked in front, which `axis` does not count.
    """
    pixels = _sums(_B_TRANSPOSED.T, jnp.unstack(of_sums))

    def moved(pixel: Array, by: int) -> Array:
        padding = [(0, 0, 0)] * pixel.ndim
        padding[axis] = (by, -by, 0)
        return lax.pad(pixel, jnp.zeros((), pixel.dtype), padding)

    # Pixel 1 is the middle's first, and so is pixel 3 of the tile before; pixel 2 is its second,
    # and so is pixel 0 of the tile behind.
    middle = [pixels[1] + moved(pixels[3], 1), pixels[2] + moved(pixels[0], -1)]
    return jnp.stack(middle, axis + 1)


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """`matrix` times the vector of parts, without what is multiplied by zero."""

    def times(factor: float, part: Array) -> Array:
        return part if factor == 1 else -part if factor == -1 else factor * part

    products = (
        [times(factor, part) for factor, part in zip(row, parts, strict=True) if factor]
        for row in matrix.tolist()
    )
    return [functools.reduce(operator.add, each) for each in products]


def _sums_of_both(
    matrix: np.ndarray,
    x: Array,
    axes: tuple[int, int],
    parts_along: Callable[..., Sequence[Array]] = jnp.unstack,
) -> Array:
    """`matrix` times the parts of `x` times `matrix` transposed, both stacked in front.

    The second axis, of the columns, counts the one of the sums of rows in front.
    """
    by_row = jnp.stack(_sums(matrix, parts_along(x, axis=axes[0])))
    return jnp.stack(_sums(matrix, parts_along(by_row, axis=axes[1])), 1)
