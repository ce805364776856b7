"""The scan of all images, once: their problems and sizes, and a reduced form of each to compare.

Images are decoded in threads, because decoders release Python's lock. Less than 1 kB an image is
kept.
"""

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64
from PIL import Image

from yogo_jax.data.headers import UPRIGHT
from yogo_jax.data.images import decode_file
from yogo_jax.errors import UserError
from yogo_jax.progress import with_progress


# Sides of the reduced forms: the coarse one is kept of every image, the fine one made again for
# the few images that look alike in it.
COARSE, FINE = 16, 64
# Standard deviation, in gray levels, under which a reduced image shows nothing to compare.
LEAST_CONTRAST = 0.5

A = TypeVar("A")
B = TypeVar("B")


class ImageScan(NamedTuple):
    """The scan of one image; nothing but `problem` if it cannot be read."""

    problem: str | None
    image_hw: tuple[int, int] = (0, 0)  # rows and columns in px
    stored_as: str = ""  # format and pixels, such as "PNG L"
    digest: bytes = b""  # of the bytes of the file
    fine: Float32[np.ndarray, " fine"] | None = None
    orientation: int = UPRIGHT


@dataclass(frozen=True, eq=False)
class ScannedImages:
    """The scans of n images, in the order of their paths.

    Attributes:
      paths: the n image files.
      images: the scan of each, without its fine form.
      coarse: reduced pixels of each with mean 0 and norm 1; zeros where nothing can be compared.
      fine_mean: mean of the fine reduced forms of all images that can be compared.
      apply_orientation: whether images were turned by it; sizes are those after the turn.
    """

    paths: tuple[str, ...]
    images: list[ImageScan]
    coarse: Float16[np.ndarray, "n coarse"]
    fine_mean: Float64[np.ndarray, " fine"]
    apply_orientation: bool

    @property
    def problems(self) -> dict[int, str]:
        """Index -> why this image cannot be read."""
        return {
            i: image.problem for i, image in enumerate(self.images) if image.problem is not None
        }

    @property
    def orientations(self) -> dict[int, int]:
        """Index -> orientation of those images that are not stored upright."""
        turned = ((i, image.orientation) for i, image in enumerate(self.images))
        return {i: orientation for i, orientation in turned if orientation != UPRIGHT}

    @property
    def digests(self) -> list[bytes]:
        """Digests of the bytes of each file; b"" where it cannot be read."""
        return [image.digest for image in self.images]

    @property
    def comparable(self) -> Bool[np.ndarray, " n"]:
        """Images that could be read and show something."""
        return (self.coarse != 0).any(axis=1)

    @property
    def sizes(self) -> list[tuple[tuple[int, int], int]]:
        """((rows, columns), number of images), the most common first, without unreadable ones."""
        return Counter(each.image_hw for each in self.images if not each.problem).most_common()

    @property
    def formats(self) -> list[tuple[str, int]]:
        """(format and pixels, such as "PNG L", number of images), the most common first."""
        return Counter(each.stored_as for each in self.images if not each.problem).most_common()

    @property
    def usual_hw(self) -> tuple[int, int] | None:
        """(rows, columns) of most images, the larger of two as common; None if none was read."""
        return max(self.sizes, key=lambda each: (each[1], each[0]), default=(None, 0))[0]


def scan_images(
    paths: Sequence[str], *, workers: int, apply_orientation: bool = True
) -> ScannedImages:
    """Scans each image once, with a sign of life on standard error.

    Args:
      paths: image files, labelled or not.
      workers: threads.
      apply_orientation: turn images as their EXIF or TIFF tag says.
    """
    images = []
    coarse = np.zeros((len(paths), COARSE * COARSE), np.float16)
    total, comparable = np.zeros(FINE * FINE), 0
    scan = functools.partial(scan_image, apply_orientation=apply_orientation)
    scans = in_threads(scan, paths, workers)
    for i, image in enumerate(with_progress(scans, what="images", total=len(paths))):
        if image.fine is not None:
            coarse[i] = coarsen(image.fine)
            total += image.fine
            comparable += 1
        images.append(image._replace(fine=None))
    fine_mean = total / max(comparable, 1)
    return ScannedImages(tuple(paths), images, coarse, fine_mean, apply_orientation)


def scan_image(path: str, *, apply_orientation: bool = True) -> ImageScan:
    """Scans one image file."""
    try:
        decoded = decode_file(path, rgb=False, apply_orientation=apply_orientation)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()[:16]
    except (UserError, OSError) as error:  # it may also go away between decoding and hashing
        return ImageScan(str(error).removeprefix(f"{path}: "))
    pixels = decoded.pixels
    return ImageScan(
        problem=None,
        image_hw=(pixels.height, pixels.width),
        # Equal texts are kept once, not once an image.
        stored_as=sys.intern(decoded.stored_as),
        digest=digest,
        fine=reduce_pixels(pixels),
        orientation=decoded.orientation,
    )


def reduce_pixels(pixels: Image.Image) -> Float32[np.ndarray, " fine"] | None:
    """FINE x FINE means of blocks of a gray image, with mean 0 and norm 1; None for a flat image.

    So brightness and contrast of the illumination do not count, nor does the size in pixels.
    """
    small = pixels.convert("F").resize((FINE, FINE), Image.Resampling.BOX)
    values = np.asarray(small, np.float32).reshape(-1)
    values = values - values.mean()
    if values.std() < LEAST_CONTRAST:
        return None
    return values / np.linalg.norm(values)


def coarsen(fine: Float32[np.ndarray, " fine"]) -> Float32[np.ndarray, " coarse"]:
    """The coarse form of a fine one, again with mean 0 and norm 1; zeros if nothing is left."""
    block = FINE // COARSE
    coarse = fine.reshape(COARSE, block, COARSE, block).mean((1, 3)).reshape(-1)
    norm = np.linalg.norm(coarse)
    # The finest texture averages out: such an image has no coarse form to compare.
    return coarse / norm if norm > 1e-3 else np.zeros_like(coarse)


def in_threads(work: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    """Results of `work` in the order of the items, computed a little ahead in threads."""
    with ThreadPoolExecutor(workers) as pool:
        ahead = 4 * workers
        left = iter(items)
        pending = [pool.submit(work, item) for item in islice(left, ahead)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(work, item) for item in islice(left, 1)]
