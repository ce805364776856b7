"""Shapes that drawings of cells are made of, on a patch of pixels around the centre of an object.

SciPy is imported late, because frames that were drawn before are only read.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


Patch = Float32[np.ndarray, "p q"]


class Plane(NamedTuple):
    """Pixel coordinates relative to the centre of an object."""

    y: Patch
    x: Patch


class Sprite(NamedTuple):
    """The part of a frame that one object adds, on a square of pixels around its centre."""

    # Optical density, negative in the bright halo around a cell; or the amount of each stain.
    density: Float32[np.ndarray, "*stains p q"]
    coverage: Patch  # 0 to 1: how far the object hides what lies below it


def plane_around(half: int, offset_yx: tuple[float, float]) -> Plane:
    """Coordinates of a patch of 2 * half + 1 pixels a side."""
    axis = np.arange(-half, half + 1, dtype=np.float32)
    y, x = np.meshgrid(
        axis - np.float32(offset_yx[0]), axis - np.float32(offset_yx[1]), indexing="ij"
    )
    return Plane(y, x)


def bump(distance: Patch, width: float) -> Patch:
    """Gaussian of a distance, 1 at distance 0."""
    return np.exp(-np.square(distance / np.float32(width)))


def texture(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Patch:
    """Random texture of mean 0 and standard deviation about 1, with grains of `scale` pixels."""
    from scipy import ndimage

    noise = rng.standard_normal(shape, dtype=np.float32)
    # Smoothing white noise by a Gaussian divides its standard deviation by 2 sqrt(pi) sigma.
    return ndimage.gaussian_filter(noise, scale) * np.float32(2 * np.sqrt(np.pi) * scale)


def random_point(rng: np.random.Generator, distance: tuple[float, float]) -> tuple[float, float]:
    """(y, x) of a random point between two distances of the centre."""
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(*distance)
    return length * np.sin(angle), length * np.cos(angle)


def distance_to(plane: Plane, point_yx: tuple[float, float]) -> Patch:
    """Distance of every pixel to a point, in pixels."""
    y, x = plane.y - np.float32(point_yx[0]), plane.x - np.float32(point_yx[1])
    return np.sqrt(y * y + x * x)  # a fraction of the time of np.hypot, whose range none needs


def turned(plane: Plane, angle: float) -> tuple[Patch, Patch]:
    """Coordinates along and across a direction, given as its angle from the x axis."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return plane.x * cos + plane.y * sin, plane.y * cos - plane.x * sin


def outline(
    plane: Plane,
    rng: np.random.Generator,
    radius: float,
    *,
    eccentricity: float,
    wobble: float,
) -> Patch:
    """Distance to the centre in units of the outline there: 1 on the edge of the object.

    The outline is an ellipse of half-axes `radius` and `radius * (1 - eccentricity)` in a random
    direction, with three harmonics of relative size `wobble` on top.
    """
    along, across = turned(plane, rng.uniform(0, 2 * np.pi))
    distance = np.maximum(np.sqrt(along * along + across * across), np.float32(1e-3))
    cos, sin = along / distance, across / distance
    minor = np.float32(1 - eccentricity)
    # The middle has no direction: there, both are 0.
    edge = minor / np.maximum(np.sqrt(np.square(minor * cos) + np.square(sin)), np.float32(0.1))
    cos_k, sin_k = cos, sin
    for _ in (2, 3, 4):
        cos_k, sin_k = cos_k * cos - sin_k * sin, sin_k * cos + cos_k * sin
        size_cos, size_sin = rng.uniform(-wobble, wobble, size=2).astype(np.float32)
        edge = edge + size_cos * cos_k + size_sin * sin_k
    return distance / (np.float32(radius) * edge)


def inside(distance: Patch) -> Patch:
    """1 within an outline, 0 outside, from the distance to it, which is negative inside."""
    return np.clip(0.5 - distance, 0, 1)
