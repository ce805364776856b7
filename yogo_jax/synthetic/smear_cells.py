"""Drawings of single cells of a Giemsa-stained thin blood smear, and of what is mistaken for them.

A drawing holds the amount of each of four stains; the slide says what light a stain takes. One unit
of eosin is the haemoglobin of a red cell, one of azure its like in a parasite's cytoplasm, one of
chromatin the dot of a ring, one of pigment a grain of haemozoin. Lengths are pixels of a fixed
scale: a red cell measures some 42 px whatever the size of the frame. The stages differ inside the
cell, as in the plates of the WHO's bench aids for the diagnosis of malaria.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

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


CLASS_NAMES = ("healthy", "ring", "trophozoite", "schizont", "gametocyte", "leukocyte")

# Half the largest extent of a cell of each class, in pixels: (least, most).
CELL_RADIUS = {
    "healthy": (18.0, 23.0),
    "ring": (18.0, 23.0),
    "trophozoite": (19.5, 24.0),
    "schizont": (19.0, 23.5),
    "gametocyte": (20.0, 24.0),
    "leukocyte": (25.0, 30.0),
}

STAIN_NAMES = ("eosin", "azure", "chromatin", "pigment")
_EOSIN, _AZURE, _CHROMATIN, _PIGMENT = range(4)

# Share of healthy cells with a dot of chromatin, a Howell-Jolly body. The spleen removes them.
_DOTTED = 0.002
_REFRACTILE = 0.03  # and with bright spots where the stain has dried
_BANANAS = 0.3  # share of gametocytes
_TWO_RINGS = 0.12  # share of ring cells


Stains = Float32[np.ndarray, "4 p q"]


def draw_cell(
    class_name: str,
    rng: np.random.Generator,
    *,
    radius: float,
    offset_yx: tuple[float, float],
    pallor: float,
) -> Sprite:
    """Sprite of one cell in perfect focus, its centre `offset_yx` from the centre of the patch.

    Args:
      class_name: one of `CLASS_NAMES`.
      rng: source of everything that varies within a class.
      radius: half the largest extent in pixels.
      offset_yx: subpixel position, each in [-0.5, 0.5].
      pallor: how much of the haemoglobin is missing in the middle of the slide's red cells, 0 to 1.
    """
    plane = plane_around(round(1.25 * radius) + 4, offset_yx)
    return _PAINTERS[class_name](plane, rng, radius, pallor)


def draw_platelet(
    rng: np.random.Generator, *, offset_yx: tuple[float, float], on_cell: bool = False
) -> Sprite:
    """Sprite of a platelet, purple and granular, 6 to 14 px wide; often in a halo if on a cell."""
    size = rng.uniform(3, 7)
    plane = plane_around(16, offset_yx)
    rho = outline(plane, rng, size, eccentricity=rng.uniform(0, 0.4), wobble=0.1)
    body = inside((rho - 1) * size / 2)
    stains = _no_stain(plane)
    grains = np.clip(0.6 + 0.4 * texture(rng, body.shape, 1.1), 0, None)
    if rng.random() < 0.2:  # grains at the edge only, as a ring has its wall
        grains = grains * (1 - 0.8 * bump(rho, 0.5))
    stains[_CHROMATIN] = rng.uniform(0.4, 0.85) * body * grains
    stains[_AZURE] = rng.uniform(0.1, 0.4) * body
    if on_cell and rng.random() < 0.5:
        stains[_EOSIN] = -rng.uniform(0.2, 0.6) * bump((rho - 1.3) * size, 1.6)
    return Sprite(stains, np.zeros_like(rho))


def draw_precipitate(rng: np.random.Generator, *, offset_yx: tuple[float, float]) -> Sprite:
    """Sprite of stain that fell out: a dark purple speck, or a clump of some."""
    plane = plane_around(16, offset_yx)
    stains = _no_stain(plane)
    specks, spread = (1, 0.1) if rng.random() < 0.75 else (int(rng.integers(4, 18)), 4.0)
    strength = rng.uniform(0.6, 1.8)
    for _ in range(specks):
        distance = distance_to(plane, (rng.normal(0, spread), rng.normal(0, spread)))
        speck = strength * rng.uniform(0.5, 1) * bump(distance, rng.uniform(0.7, 2.0))
        stains[_CHROMATIN] += 0.7 * speck
        stains[_AZURE] += 0.6 * speck
    return Sprite(stains, np.zeros_like(plane.y))


def draw_dust(rng: np.random.Generator, *, offset_yx: tuple[float, float]) -> Sprite:
    """Sprite of a faint grain of dust, a bubble out of focus, or the end of a scratch."""
    plane = plane_around(24, offset_yx)
    stains = _no_stain(plane)
    look = rng.random()
    if look < 0.5:
        grain = bump(distance_to(plane, (0.0, 0.0)), rng.uniform(1.5, 4.0))
        stains[_PIGMENT] = rng.uniform(0.08, 0.3) * grain
    elif look < 0.65:
        size = rng.uniform(5, 15)
        rim = distance_to(plane, (0.0, 0.0)) - np.float32(size)
        stains[_PIGMENT] = rng.uniform(0.02, 0.07) * (bump(rim, 1.5) - bump(rim + 3, 2.0))
    else:
        along, across = turned(plane, rng.uniform(0, 2 * np.pi))
        line = bump(across - np.float32(0.004) * along * along, 0.9) * bump(along, 11)
        stains[_EOSIN] = -rng.uniform(0.1, 0.4) * line
    return Sprite(stains, np.zeros_like(plane.y))


# Classes -----------------------------------------------------------------------------------------


def _healthy(plane: Plane, rng: np.random.Generator, radius: float, pallor: float) -> Sprite:
    """A pink disc with a pale middle; a few with a single dot or bright spots."""
    cell, _ = _red_cell(plane, rng, radius, pallor)
    look = rng.random()
    if look < _DOTTED:
        distance = distance_to(plane, random_point(rng, (0.1 * radius, 0.75 * radius)))
        cell.density[_CHROMATIN] += rng.uniform(0.7, 1.2) * bump(distance, rng.uniform(1.3, 2.2))
    elif look < _DOTTED + _REFRACTILE:
        for _ in range(int(rng.integers(1, 5))):
            distance = distance_to(plane, random_point(rng, (0, 0.8 * radius)))
            size = rng.uniform(1.2, 3)
            cell.density[_EOSIN] -= rng.uniform(0.3, 0.8) * bump(distance, size)
            cell.density[_PIGMENT] += rng.uniform(0, 0.3) * bump(distance - size, 1.0)
    return cell


def _ring(plane: Plane, rng: np.random.Generator, radius: float, pallor: float) -> Sprite:
    """A red cell of usual size with a thin blue ring and its dot of chromatin, at times two."""
    cell, _ = _red_cell(plane, rng, radius, pallor)
    place = rng.uniform(0.72, 0.86) if rng.random() < 0.2 else rng.uniform(0.05, 0.55)
    first = random_point(rng, (place * radius, place * radius))
    points = [first, (-first[0], -first[1])] if rng.random() < _TWO_RINGS else [first]
    for point in points:
        _add_ring(cell.density, _moved(plane, point), rng, rng.uniform(4, 7))
    return cell


def _add_ring(stains: Stains, plane: Plane, rng: np.random.Generator, size: float) -> None:
    """A ring form: its thin wall is open on one side, the chromatin lies on the other."""
    rho = outline(plane, rng, size - 1, eccentricity=rng.uniform(0, 0.35), wobble=0.07)
    angle = rng.uniform(0, 2 * np.pi)
    along, _ = turned(plane, angle)
    towards_gap = along / np.maximum(distance_to(plane, (0.0, 0.0)), np.float32(1))
    gap = rng.uniform(0.85, 1) if rng.random() < 0.35 else rng.uniform(0, 0.6)
    wall = bump((rho - 1) * size, rng.uniform(1.0, 1.6))
    wall = wall * (1 - np.float32(gap) * np.clip((towards_gap - 0.3) / 0.4, 0, 1))
    stains[_AZURE] += rng.uniform(0.5, 1.0) * wall
    stains[_CHROMATIN] += rng.uniform(0.05, 0.25) * wall
    stains[_EOSIN] *= 1 - rng.uniform(0.05, 0.35) * inside((rho - 0.9) * size / 2)
    turn = angle + np.pi + rng.uniform(-0.4, 0.4)
    for _ in range(2 if rng.random() < 0.3 else 1):
        at = (size - 1) * np.sin(turn), (size - 1) * np.cos(turn)
        dot = bump(distance_to(plane, at), rng.uniform(1.3, 2.1))
        stains[_CHROMATIN] += rng.uniform(0.7, 1.2) * dot
        turn += rng.uniform(0.7, 2.6)


def _trophozoite(plane: Plane, rng: np.random.Generator, radius: float, pallor: float) -> Sprite:
    """A cell with one large ragged blue body, a vacuole in it, a big dot, and grains of pigment."""
    cell, rho = _red_cell(plane, rng, radius, 0.6 * pallor)
    stains = cell.density
    stains[_EOSIN] *= rng.uniform(0.75, 1)
    if rng.random() < 0.4:  # Schueffner's dots
        stippling = np.clip(texture(rng, rho.shape, 0.9), 0.4, None) - 0.4
        stains[_CHROMATIN] += rng.uniform(0.05, 0.15) * stippling * cell.coverage
    size = radius * rng.uniform(0.4, 0.75)
    body = _moved(plane, random_point(rng, (0, 0.7 * (radius - size))))
    ragged = outline(body, rng, size, eccentricity=rng.uniform(0.05, 0.45), wobble=0.1)
    ragged = ragged + 0.16 * texture(rng, rho.shape, 3.0) * np.minimum(ragged, 1)
    cytoplasm = inside((ragged - 1) * size / 2) * (rho < 0.95)
    for _ in range(int(rng.integers(1, 3))):
        hole = distance_to(body, random_point(rng, (0.1 * size, 0.5 * size)))
        cytoplasm = cytoplasm * (1 - rng.uniform(0.6, 0.95) * bump(hole, rng.uniform(2.5, 4.5)))
    stains[_AZURE] += rng.uniform(0.55, 1.0) * cytoplasm * (1 + 0.15 * texture(rng, rho.shape, 2.0))
    dot = bump(distance_to(body, random_point(rng, (0.3 * size, 0.75 * size))), rng.uniform(2.2, 4))
    stains[_CHROMATIN] += rng.uniform(0.9, 1.4) * dot
    _add_pigment(stains, body, rng, grains=int(rng.integers(4, 14)), spread=0.4 * size)
    return cell


def _schizont(plane: Plane, rng: np.random.Generator, radius: float, pallor: float) -> Sprite:
    """A cell filled by 8 to 20 dots of chromatin in blue, around a clump of brown pigment."""
    cell, rho = _red_cell(plane, rng, radius, 0.3 * pallor)
    stains = cell.density
    filled = rng.uniform(0.72, 0.95)
    body = inside((rho - filled) * radius / 2)
    stains[_EOSIN] *= 1 - 0.4 * body
    stains[_AZURE] += rng.uniform(0.35, 0.75) * body
    middle = random_point(rng, (0, 0.3 * radius))
    points: list[tuple[float, float]] = []
    for _ in range(int(rng.integers(8, 21))):
        # The loneliest of some candidates: the dots fill the cell without a pattern.
        tried = [random_point(rng, (0, (filled - 0.12) * radius)) for _ in range(8)]
        tried = [
            (length * y, length * x)
            for (y, x), length in zip(tried, rng.uniform(0.75, 1, 8), strict=True)
        ]
        points.append(
            max(
                tried,
                key=lambda point: min(
                    np.hypot(point[0] - y, point[1] - x) for y, x in [*points, middle]
                ),
            )
        )
    strength = rng.uniform(0.8, 1.25)
    for point in points:
        dot = bump(distance_to(plane, point), rng.uniform(1.7, 2.7))
        stains[_CHROMATIN] += strength * rng.uniform(0.8, 1.1) * dot
        stains[_AZURE] += 0.3 * bump(distance_to(plane, point), 4)
    _add_pigment(stains, _moved(plane, middle), rng, grains=int(rng.integers(8, 20)), spread=1.8)
    return cell


def _gametocyte(plane: Plane, rng: np.random.Generator, radius: float, pallor: float) -> Sprite:
    """An even blue-gray body that nearly fills a round cell, or a banana with its cell left over.

    The chromatin is one diffuse area, and the pigment lies scattered.
    """
    if rng.random() < _BANANAS:
        cell, body, spread = _banana(plane, rng, radius)
    else:
        cell, rho = _red_cell(plane, rng, radius, 0.0)
        body = inside((rho - rng.uniform(0.8, 0.95)) * radius / 2)
        spread = 0.4 * radius
    stains = cell.density
    stains[_EOSIN] *= 1 - rng.uniform(0.1, 0.4) * body
    stains[_AZURE] += rng.uniform(0.5, 0.95) * body
    at = random_point(rng, (0, spread))
    area = outline(
        _moved(plane, at), rng, rng.uniform(4.5, 8), eccentricity=rng.uniform(0, 0.4), wobble=0.08
    )
    stains[_CHROMATIN] += rng.uniform(0.4, 0.8) * np.exp(-(area**3)) * body
    stains[_AZURE] *= 1 - 0.5 * np.exp(-(area**3))
    count = int(rng.integers(8, 28))
    _add_pigment(stains, plane, rng, grains=count, spread=spread, within=body)
    return cell


def _banana(plane: Plane, rng: np.random.Generator, radius: float) -> tuple[Sprite, Patch, float]:
    """A bent body in the faint rest of its red cell; the body's mask; the spread of its grains."""
    bend, width = rng.uniform(0.25, 0.45), rng.uniform(0.34, 0.42)
    along, across = turned(plane, rng.uniform(0, 2 * np.pi))
    along, across = along / np.float32(radius), across / np.float32(radius)
    bent = across - np.float32(bend) * (along * along - np.float32(1 / 3))
    # A power above 2 makes blunt ends.
    rho = (np.abs(along) ** 2.6 + np.abs(bent / np.float32(width)) ** 2.6) ** np.float32(1 / 2.6)
    body = inside((rho - 1) * width * radius)
    rest = np.hypot(along, (across + np.float32(0.15)) / np.float32(0.62))
    stains = _no_stain(plane)
    stains[_EOSIN] = 0.5 * body + rng.uniform(0, 0.35) * inside((rest - 0.85) * radius) * (1 - body)
    return Sprite(stains, np.float32(0.2) * body), body, 0.3 * radius


def _leukocyte(plane: Plane, rng: np.random.Generator, radius: float, pallor: float) -> Sprite:
    """A large cell with a purple nucleus, of lobes in pale cytoplasm or round in blue."""
    del pallor
    rho = outline(plane, rng, radius, eccentricity=rng.uniform(0, 0.15), wobble=0.03)
    body = inside((rho - 1) * radius / 2)
    stains = _no_stain(plane)
    nucleus = np.zeros_like(rho)
    if rng.random() < 0.35:
        off = _moved(plane, random_point(rng, (0, 0.1 * radius)))
        size = radius * rng.uniform(0.72, 0.84)
        nucleus = inside(
            (outline(off, rng, size, eccentricity=rng.uniform(0, 0.2), wobble=0.05) - 1) * size / 3
        )
        stains[_AZURE] = rng.uniform(0.4, 0.7) * body
    else:
        lobes = int(rng.integers(2, 5))
        start, sweep = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 0.9) * 2 * np.pi
        for lobe in range(lobes):
            angle, length = start + sweep * lobe / lobes, radius * rng.uniform(0.3, 0.42)
            size = radius * rng.uniform(0.26, 0.36)
            distance = distance_to(plane, (length * np.sin(angle), length * np.cos(angle)))
            nucleus = np.maximum(nucleus, np.clip((size - distance) / 3, 0, 1))
        grains = np.clip(texture(rng, rho.shape, 1.2), 0, None)
        stains[_EOSIN] = (rng.uniform(0.3, 0.5) + 0.12 * grains) * body
        stains[_CHROMATIN] = rng.uniform(0.02, 0.07) * (0.5 + grains) * body
    stains[_CHROMATIN] += rng.uniform(0.9, 1.3) * nucleus * (1 + 0.12 * texture(rng, rho.shape, 3))
    return Sprite(stains, np.float32(0.6) * body)


_PAINTERS: dict[str, Callable[[Plane, np.random.Generator, float, float], Sprite]] = {
    "healthy": _healthy,
    "ring": _ring,
    "trophozoite": _trophozoite,
    "schizont": _schizont,
    "gametocyte": _gametocyte,
    "leukocyte": _leukocyte,
}


# Parts -------------------------------------------------------------------------------------------


def _red_cell(
    plane: Plane, rng: np.random.Generator, radius: float, pallor: float
) -> tuple[Sprite, Patch]:
    """A red cell without inner structure and its `rho` (see `outline`)."""
    wobble = 0.05 if rng.random() < 0.12 else 0.015
    rho = outline(plane, rng, radius, eccentricity=0.4 * rng.beta(1.2, 4), wobble=wobble)
    body = inside((rho - 1) * radius / 2)
    missing = np.clip(rng.normal(pallor, 0.15), 0, 0.8)
    thickness = 1 - missing * bump(rho, rng.uniform(0.35, 0.62))
    stains = _no_stain(plane)
    stains[_EOSIN] = np.clip(rng.normal(1, 0.09), 0.7, 1.3) * body * thickness
    return Sprite(stains, np.float32(0.2) * body), rho


def _add_pigment(
    stains: Stains,
    plane: Plane,
    rng: np.random.Generator,
    *,
    grains: int,
    spread: float,
    within: Patch | float = 1.0,
) -> None:
    """Adds grains of brown pigment, normally distributed around the centre."""
    total = np.zeros_like(plane.y)
    for _ in range(grains):
        distance = distance_to(plane, (rng.normal(0, spread), rng.normal(0, spread)))
        total += rng.uniform(0.35, 0.9) * bump(distance, rng.uniform(0.8, 1.4))
    stains[_PIGMENT] += total * within


def _moved(plane: Plane, point_yx: tuple[float, float]) -> Plane:
    """Coordinates around another point."""
    return Plane(plane.y - np.float32(point_yx[0]), plane.x - np.float32(point_yx[1]))


def _no_stain(plane: Plane) -> Stains:
    """Empty layers for the amounts of the stains."""
    return np.zeros((len(STAIN_NAMES), *plane.y.shape), np.float32)
