"""Drawings of single synthetic cells, one function for each class, and of dirt.

What a cell absorbs is missing on the camera, which sees `background * exp(-density)`. Each drawing
is a `Sprite`: density and coverage on a square of pixels. Lengths are pixels of the microscope,
whose scale is fixed: a red cell measures some 40 px whatever the size of the frame. SciPy is
imported late, because frames that were drawn before are only read.
"""

from collections.abc import Callable

import numpy as np

from yogo_jax.synthetic.shapes import (
    Patch,
    Plane,
    Sprite,
    bump,
    distance_to,
    inside,
    outline,
    plane_around,
    random_point,
    texture,
    turned,
)


CLASS_NAMES = ("healthy", "ring", "trophozoite", "schizont", "gametocyte", "wbc", "misc")

# Half the largest extent of a cell of each class, in pixels: (least, most).
CELL_RADIUS = {
    "healthy": (18.0, 22.5),
    "ring": (18.0, 22.0),
    "trophozoite": (18.5, 22.5),
    "schizont": (19.0, 23.0),
    "gametocyte": (26.0, 30.0),
    "wbc": (25.0, 30.0),
    "misc": (15.0, 24.0),
}


def draw_cell(
    class_name: str,
    rng: np.random.Generator,
    *,
    radius: float,
    offset_yx: tuple[float, float],
    defocus: float,
) -> Sprite:
    """Sprite of one cell, its centre `offset_yx` away from the centre pixel of the patch.

    Args:
      class_name: one of `CLASS_NAMES`.
      rng: source of everything that varies within a class.
      radius: half the largest extent in pixels.
      offset_yx: subpixel position, each in [-0.5, 0.5].
      defocus: standard deviation of the blur in pixels.
    """
    plane = plane_around(round(1.25 * radius + 4 * defocus) + 4, offset_yx)
    sprite = _PAINTERS[class_name](plane, rng, radius)
    return _blurred(sprite, defocus)


def draw_speck(rng: np.random.Generator, *, offset_yx: tuple[float, float]) -> Sprite:
    """Sprite of a grain of dust, a bright dot in a thin dark ring: dirt without a label."""
    plane = plane_around(7, offset_yx)
    distance = distance_to(plane, (0.0, 0.0))
    if rng.random() < 0.3:
        density = rng.uniform(0.1, 0.5) * bump(distance, rng.uniform(1.0, 1.8))
    else:
        density = rng.uniform(0.1, 0.35) * bump(distance - rng.uniform(1.8, 2.6), 1.0)
        density = density - 0.12 * bump(distance, 1.0)
    return _blurred(Sprite(density, np.zeros_like(density)), rng.uniform(0.5, 1.2))


def draw_shadow(rng: np.random.Generator, *, offset_yx: tuple[float, float]) -> Sprite:
    """Sprite of something far out of focus, too faint for a label: a ghost cell or a smear."""
    radius = rng.uniform(6, 20)
    plane = plane_around(round(radius) + 12, offset_yx)
    rho = outline(plane, rng, radius, eccentricity=rng.uniform(0, 0.35), wobble=0.06)
    density = rng.uniform(0.02, 0.06) * inside((rho - 1) * radius)
    if radius < 12:
        density = density * (0.4 + 1.5 * np.abs(texture(rng, density.shape, 2.0)))
    return _blurred(Sprite(density, np.zeros_like(density)), rng.uniform(1.5, 3.0))


def _red_cell(
    plane: Plane, rng: np.random.Generator, radius: float, depth: float
) -> tuple[Sprite, Patch]:
    """A red cell's body and its `rho` (see `outline`)."""
    rho = outline(plane, rng, radius, eccentricity=rng.beta(1.2, 5) * 0.4, wobble=0.014)
    return _body(rho, (rho - 1) * radius, depth), rho


def _healthy(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """A smooth dark disc; most have a light crescent at the upper rim, some a pale middle."""
    depth = rng.uniform(*((0.85, 1.0) if rng.random() < 0.1 else (1.12, 1.4)))
    cell, rho = _red_cell(plane, rng, radius, depth)
    look = rng.random()
    if look < 0.55:
        direction = rng.normal(-np.pi / 2, 0.6)
        shift = radius * rng.uniform(0.25, 0.5)
        centre = -shift * np.sin(direction), -shift * np.cos(direction)
        # Bright where the cell is not shadowed by a copy of itself, moved away from the light.
        crescent = 1 / (1 + np.exp(-(distance_to(plane, centre) - np.float32(radius)) / 1.2))
        return cell._replace(density=cell.density * (1 - rng.uniform(0.35, 0.7) * crescent))
    if look < 0.7:
        pallor = bump(rho, rng.uniform(0.4, 0.6))
        return cell._replace(density=cell.density * (1 - rng.uniform(0.15, 0.35) * pallor))
    return cell


def _ring(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """A dark cell with one or two small bright rings, each in a thin dark outline."""
    cell, _ = _red_cell(plane, rng, radius, rng.uniform(1.08, 1.25))
    density = cell.density
    first = random_point(rng, (0.1 * radius, 0.55 * radius))
    points = [first, (-first[0], -first[1])] if rng.random() < 0.2 else [first]
    for point in points:
        distance, size = distance_to(plane, point), rng.uniform(2.8, 3.8)
        density = density - rng.uniform(0.75, 0.95) * bump(distance - size, 1.6)
        density = density + 0.22 * bump(distance - (size + 3.2), 1.2)
    return cell._replace(density=density)


def _trophozoite(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """A dark cell with a large bright irregular vacuole that holds a dark spot of pigment."""
    cell, _ = _red_cell(plane, rng, radius, rng.uniform(1.0, 1.25))
    vacuole_yx = random_point(rng, (0.05 * radius, 0.32 * radius))
    shifted = Plane(plane.y - np.float32(vacuole_yx[0]), plane.x - np.float32(vacuole_yx[1]))
    size = radius * rng.uniform(0.42, 0.55)
    rho = outline(shifted, rng, size, eccentricity=rng.uniform(0.05, 0.3), wobble=0.09)
    density = cell.density * (1 - rng.uniform(0.6, 0.75) * inside((rho - 1) * size))
    pigment_yx = random_point(rng, (0.25 * size, 0.55 * size))
    pigment = bump(distance_to(shifted, pigment_yx), rng.uniform(2.6, 3.4))
    return cell._replace(density=density + rng.uniform(0.9, 1.2) * pigment)


def _schizont(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """A cell filled by 8 to 16 small bright spots around a clump of dark pigment."""
    cell, _ = _red_cell(plane, rng, radius, rng.uniform(0.9, 1.1))
    density = cell.density
    spots = int(rng.integers(8, 17))
    inner = max(0, spots - 10)
    turn = rng.uniform(0, 2 * np.pi)
    for spot in range(spots):
        count, place, reach = (
            (inner, spot, 0.32) if spot < inner else (spots - inner, spot - inner, 0.66)
        )
        angle = turn + 2 * np.pi * (place + rng.uniform(-0.15, 0.15)) / count
        length = radius * reach * rng.uniform(0.92, 1.08)
        distance = distance_to(plane, (length * np.sin(angle), length * np.cos(angle)))
        density = density - rng.uniform(0.5, 0.7) * bump(distance, 2.3)
    pigment = bump(distance_to(plane, random_point(rng, (0, 0.08 * radius))), rng.uniform(3.0, 4.2))
    return cell._replace(density=density + 0.7 * pigment)


def _gametocyte(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """A banana: long, bent, with grains of pigment in its middle and pale ends."""
    from scipy import ndimage

    bend, width = rng.uniform(0.2, 0.4), radius * rng.uniform(0.33, 0.4)
    along, straight = turned(plane, rng.uniform(0, 2 * np.pi))
    across = straight - np.float32(bend) * (np.square(along) / np.float32(radius) - radius / 3)
    rho = np.hypot(along / np.float32(radius), across / np.float32(width))
    across_slope = across / width**2
    along_slope = along * (1 / radius**2 - 2 * bend / radius * across_slope)
    # The distance to the outline is (rho - 1) over the slope of rho near it, but not far outside.
    slope = np.maximum(np.hypot(along_slope, across_slope), np.float32(1e-4))
    outside = ndimage.distance_transform_edt(rho > 1).astype(np.float32)
    distance = np.maximum((rho - 1) * rho / slope, outside - 1)
    cell = _body(rho, distance, rng.uniform(0.75, 0.95), dome=0.3)
    density = cell.density
    for _ in range(int(rng.integers(6, 11))):
        point = rng.normal(0, 0.16 * radius), rng.normal(0, 0.25 * width)
        distance = distance_to(Plane(along, across), point)
        density = density + rng.uniform(0.2, 0.45) * bump(distance, 1.9)
    return cell._replace(density=density)


def _wbc(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """A large pale granular cell with a dark nucleus of two to four lobes."""
    rho = outline(plane, rng, radius, eccentricity=rng.uniform(0, 0.12), wobble=0.025)
    cell = _body(rho, (rho - 1) * radius, rng.uniform(0.32, 0.45), dome=0.1)
    grains = 0.09 * texture(rng, rho.shape, 1.3) + 0.12 * bump((rho - 0.96) * radius, 1.5)
    nucleus = np.zeros_like(rho)
    lobes = int(rng.integers(2, 5))
    start, sweep = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 0.85) * 2 * np.pi
    for lobe in range(lobes):
        angle, size = start + sweep * lobe / lobes, radius * rng.uniform(0.25, 0.34)
        length = radius * rng.uniform(0.3, 0.4)
        distance = distance_to(plane, (length * np.sin(angle), length * np.cos(angle)))
        nucleus = np.maximum(nucleus, np.clip((size - distance) / 3, 0, 1))
    density = cell.density + grains * cell.coverage
    return cell._replace(density=density + rng.uniform(0.6, 0.8) * nucleus)


def _misc(plane: Plane, rng: np.random.Generator, radius: float) -> Sprite:
    """Debris: a granular smear, a platelet, or a cluster of dark specks on pale material."""
    rho = outline(plane, rng, radius, eccentricity=rng.uniform(0.1, 0.4), wobble=0.1)
    look = rng.random()
    if look < 0.35:
        grains = np.clip(0.55 + 0.4 * texture(rng, rho.shape, 1.5), 0, None)
        density = rng.uniform(0.8, 1.1) * np.clip(1.8 * (1 - rho), 0, 1) * grains
        return Sprite(density.astype(np.float32), np.zeros_like(rho))
    specks, paleness = (1, 0.22) if look < 0.45 else (int(rng.integers(3, 7)), 0.15)
    density = paleness * inside((rho - 1) * radius) * (1 + 0.5 * texture(rng, rho.shape, 1.5))
    for _ in range(specks):
        distance = distance_to(plane, random_point(rng, (0.2 * radius, 0.75 * radius)))
        size = rng.uniform(2.4, 4.6)
        density = density + rng.uniform(0.7, 1.2) * bump(distance, size)
        density = density - 0.06 * bump(distance - (size + 3.5), 1.8)
    return Sprite(np.maximum(density, -0.06).astype(np.float32), np.zeros_like(rho))


_PAINTERS: dict[str, Callable[[Plane, np.random.Generator, float], Sprite]] = {
    "healthy": _healthy,
    "ring": _ring,
    "trophozoite": _trophozoite,
    "schizont": _schizont,
    "gametocyte": _gametocyte,
    "wbc": _wbc,
    "misc": _misc,
}


def _blurred(sprite: Sprite, sigma: float) -> Sprite:
    """The sprite out of focus by `sigma` pixels."""
    from scipy import ndimage

    density, coverage = ndimage.gaussian_filter(np.stack(sprite), (0, sigma, sigma), truncate=3)
    return Sprite(density, coverage)


def _body(rho: Patch, distance: Patch, depth: float, *, dome: float = 0.45) -> Sprite:
    """A cell without inner structure: thinner, so lighter, at its edge; a faint halo around it.

    `depth` is the optical density of the middle, of which the part `dome` is missing at the edge.
    """
    coverage = inside(distance)
    thickness = 1 - np.float32(dome) * np.minimum(rho, 1) ** 5
    halo = bump(distance - 4.5, 3.0) * (1 - coverage)
    return Sprite(np.float32(depth) * thickness * coverage - 0.03 * halo, coverage)
