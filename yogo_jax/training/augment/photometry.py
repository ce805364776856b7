"""Random changes of the light and the lens of one training image; its boxes stay."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


# Taps of the blur to each side: of what lies beyond two and a half sigmas a pixel would not tell.
_BLUR_REACH = 3


def relight(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    *,
    brightness: float,
    contrast: float,
    gamma: float,
    colour: float,
) -> Float[Array, "h w c"]:
    """The image under another light, cut to what a camera gives, 0 to 255.

    Args:
      key: of the image.
      image: pixels from 0 to 255.
      brightness: most that is added or taken away, as a share of 255.
      contrast: the distance from the mean is multiplied by between `1 / (1 + contrast)` and
        `1 + contrast`.
      gamma: the exponent lies between `1 / (1 + gamma)` and `1 + gamma`.
      colour: most that one channel is brightened or darkened on its own, as a factor.
    """
    keys = jax.random.split(key, 4)

    def factor(which: int, most: float, shape: tuple[int, ...] = ()) -> Array:
        return (1 + most) ** jax.random.uniform(keys[which], shape, minval=-1, maxval=1)

    light = image / 255
    if gamma:
        # The gradient is not asked for, so that 0 needs no care.
        light = jnp.clip(light, 0, 1) ** factor(0, gamma)
    if contrast:
        mean = light.mean()
        light = (light - mean) * factor(1, contrast) + mean
    if colour:
        light = light * factor(2, colour, (1, 1, image.shape[-1]))
    if brightness:
        light = light + brightness * jax.random.uniform(keys[3], minval=-1, maxval=1)
    return jnp.clip(light, 0, 1) * 255


def add_noise(
    key: Key[Array, ""], image: Float[Array, "h w c"], *, noise: float
) -> Float[Array, "h w c"]:
    """The image with normal noise of a standard deviation from 0 to `noise`, a share of 255."""
    size_key, noise_key = jax.random.split(key)
    std = 255 * noise * jax.random.uniform(size_key)
    return jnp.clip(image + std * jax.random.normal(noise_key, image.shape), 0, 255)


def blur(
    key: Key[Array, ""], image: Float[Array, "h w c"], *, sigma: float
) -> Float[Array, "h w c"]:
    """The image out of focus: a Gaussian of a standard deviation from 0 to `sigma` px."""
    drawn = jnp.maximum(sigma * jax.random.uniform(key), 1e-3)
    offsets = jnp.arange(-_BLUR_REACH, _BLUR_REACH + 1)
    weights = jnp.exp(-0.5 * jnp.square(offsets / drawn))
    weights = weights / weights.sum()
    for axis in (0, 1):
        pad = [(_BLUR_REACH, _BLUR_REACH) if each == axis else (0, 0) for each in range(3)]
        wide = jnp.pad(image, pad, mode="edge")
        size = image.shape[axis]
        image = sum(
            (
                jax.lax.slice_in_dim(wide, tap, tap + size, axis=axis) * weights[tap]
                for tap in range(2 * _BLUR_REACH + 1)
            ),
            start=jnp.zeros_like(image),
        )
    return image
