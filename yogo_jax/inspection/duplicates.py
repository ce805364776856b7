"""Images that are the same, or nearly, among many: by hashing, without comparing all pairs.

Every image is reduced to 16x16 values. The mean of all images (vignetting, dirt on the optics) is
subtracted. The hash is the signs of its products with random directions. Two images with the
correlation r differ in each bit with the probability arccos(r) / pi, whatever they show. (The bits
of a difference hash would be noise on the empty ground of a microscope frame.) Pairs that have a
band of bits in common are compared by all bits, then by their correlation. The pairs that are left
are read from the files again and compared by the correlation of 64x64 values.

References:
  Charikar 2002, Similarity estimation techniques from rounding algorithms, STOC, section 3.
  Indyk and Motwani 1998, Approximate nearest neighbors, STOC (bands, there "tables").
"""

import functools
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt16

from yogo_jax.data.images import decode_file
from yogo_jax.errors import UserError
from yogo_jax.inspection.collected import LabelledImages
from yogo_jax.inspection.findings import Finding
from yogo_jax.inspection.scan import ScannedImages, in_threads, reduce_pixels


# Correlations from which two images are candidates, and nearly the same. Of 13, 364 and 113 frames
# of three real and synthetic sets no two unrelated ones had more than 0.74 and 0.54; a frame and
# itself as a JPEG of quality 70, at half its size, brighter, noisier, or shifted by 0.4 % of its
# width never had less than 0.97 and 0.91.
COARSE_CORRELATION, FINE_CORRELATION = 0.95, 0.85
BANDS, BITS_OF_BAND = 32, 16
# A pair of the least coarse correlation differs in 10 % of the bits: with this many of the 512,
# five deviations more, it is still a candidate.
MOST_DIFFERENT_BITS = 86
# Bounds for sets in which many images are alike, so that their number does not come in squared: in
# a bucket each image is compared with so many neighbours, and of its candidates the best are kept.
MOST_NEIGHBOURS, MOST_PARTNERS = 50, 20
# Frames with one cell each are alike in the coarse form if it lies in one place: an image that was
# read again in vain so often, its best candidates first, is not read for others.
MOST_FAILURES = 3
# With fewer images what they have in common may be that they are the same.
LEAST_TO_CENTRE = 8
AT_ONCE, PAIRS_AT_ONCE = 200_000, 16
SEED = 0
# In place of a split.
UNLABELLED = "unlabelled"


class DuplicateGroup(NamedTuple):
    """Images that are the same, or are linked by pairs of nearly the same.

    Attributes:
      indices: at least two, ascending.
      correlation: the least one of the pairs that link them; 1 for identical files.
    """

    indices: tuple[int, ...]
    correlation: float


def identical_groups(digests: Sequence[bytes]) -> list[DuplicateGroup]:
    """Groups of files with the same bytes; empty digests stand for files that were not read."""
    by_digest = defaultdict(list)
    for i, digest in enumerate(digests):
        if digest:
            by_digest[digest].append(i)
    return [DuplicateGroup(tuple(group), 1.0) for group in by_digest.values() if len(group) > 1]


def near_groups(scanned: ScannedImages, *, workers: int) -> list[DuplicateGroup]:
    """Groups of images that are nearly the same; of identical files only the first takes part.

    Candidates are read again, by as many threads as there are `workers`.
    """
    digests, comparable = scanned.digests, scanned.comparable
    first_of = {digest: i for i, digest in reversed([*enumerate(digests)])}
    chosen = np.array(
        [i for i, digest in enumerate(digests) if comparable[i] and first_of[digest] == i],
        np.int64,
    )
    pairs, _ = candidate_pairs(centred(scanned.coarse[chosen].astype(np.float32)))
    centre = scanned.fine_mean if len(chosen) >= LEAST_TO_CENTRE else 0 * scanned.fine_mean
    correlate = functools.partial(fine_correlation, apply_orientation=scanned.apply_orientation)
    # Late: SciPy takes a while to import.
    from scipy.cluster.hierarchy import DisjointSet

    linked = DisjointSet(np.unique(chosen[pairs]).tolist())
    links: list[tuple[int, int, float]] = []
    failures: Counter[int] = Counter()
    # Some pairs at a time, so that a link or failures may spare the reading of later ones. Always
    # as many, so that threads make no difference.
    left = deque((a, b) for a, b in chosen[pairs].tolist())
    while left:
        some: list[tuple[int, int]] = []
        while left and len(some) < PAIRS_AT_ONCE:
            pair = left.popleft()
            hopeless = max(failures[i] for i in pair) >= MOST_FAILURES
            if not hopeless and not linked.connected(*pair):
                some.append(pair)
        measured = in_threads(
            lambda pair: correlate(scanned.paths[pair[0]], scanned.paths[pair[1]], centre),
            some,
            workers,
        )
        for (first, second), correlation in zip(some, measured, strict=True):
            if correlation >= FINE_CORRELATION:
                linked.merge(first, second)
                links.append((first, second, correlation))
            else:
                failures.update((first, second))
    return linked_groups(links)


def linked_groups(links: Sequence[tuple[int, int, float]]) -> list[DuplicateGroup]:
    """The groups that links (first index, second index, correlation) make, by their first index."""
    from scipy.cluster.hierarchy import DisjointSet

    linked = DisjointSet({index for link in links for index in link[:2]})
    for first, second, _ in links:
        linked.merge(first, second)
    least: dict[int, float] = {}
    for first, _, correlation in links:
        root = linked[first]
        least[root] = min(correlation, least.get(root, 1.0))
    return sorted(
        DuplicateGroup(tuple(sorted(group)), least[linked[min(group)]])
        for group in linked.subsets()
    )


def centred(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Vectors minus their mean (if there are enough for one), of norm 1; zeros stay zeros."""
    if len(vectors) >= LEAST_TO_CENTRE:
        vectors = vectors - vectors.mean(0, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 1e-6, norms, np.inf)


def candidate_pairs(
    vectors: Float32[np.ndarray, "n d"],
) -> tuple[Int64[np.ndarray, "pairs 2"], Float[np.ndarray, " pairs"]]:
    """Pairs of unit vectors with a product of COARSE_CORRELATION or more, and the products.

    The largest product comes first, and no row is the first of more than MOST_PARTNERS pairs. A
    pair with the least product is found with a probability of 0.998, as the bits are random; the
    same each time, as their seed is fixed.
    """
    n = len(vectors)
    bands = hash_bands(vectors)
    keys, products = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for band in bands.T:
        found_keys, found_products = [keys], [products]
        for a, b in _in_one_bucket(band):
            near = np.bitwise_count(bands[a] ^ bands[b]).sum(axis=1) <= MOST_DIFFERENT_BITS
            a, b = np.minimum(a, b)[near], np.maximum(a, b)[near]
            alike = np.einsum("nd,nd->n", vectors[a], vectors[b])
            kept = alike >= COARSE_CORRELATION
            found_keys.append((a * n + b)[kept])
            found_products.append(alike[kept])
        keys, products = _best_partners(
            np.concatenate(found_keys), np.concatenate(found_products), n
        )
    order = np.argsort(-products, kind="stable")
    return np.stack(np.divmod(keys[order], max(n, 1)), axis=1), products[order]


def _best_partners(
    keys: Int64[np.ndarray, " pairs"], products: Float[np.ndarray, " pairs"], n: int
) -> tuple[Int64[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Pairs (a, b), given by the keys a * n + b, once each; of each a those of largest product."""
    keys, index = np.unique(keys, return_index=True)
    products = products[index]
    first = keys // max(n, 1)
    order = np.lexsort((-products, first))
    rank = np.arange(len(order)) - np.searchsorted(first, first)
    kept = np.sort(order[rank < MOST_PARTNERS])
    return keys[kept], products[kept]


def hash_bands(vectors: Float32[np.ndarray, "n d"]) -> UInt16[np.ndarray, "n bands"]:
    """The hash of each vector: signs of its products with random directions, 16 to a band."""
    rng = np.random.default_rng(SEED)
    directions = rng.standard_normal((vectors.shape[1], BANDS * BITS_OF_BAND), np.float32)
    bands = np.zeros((len(vectors), BANDS), np.uint16)
    for start in range(0, len(vectors), AT_ONCE // 10):
        rows = slice(start, start + AT_ONCE // 10)
        signs = vectors[rows] @ directions > 0
        packed = np.packbits(signs, axis=1)
        bands[rows] = packed.reshape(-1, BANDS, 2) @ np.array([256, 1], np.uint16)
    return bands


def _in_one_bucket(
    band: UInt16[np.ndarray, " n"],
) -> Iterator[tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]]:
    """Pairs of rows that agree in a band, some at a time."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    # Rows of one bucket are neighbours now: each is paired with the next one of its bucket, then
    # with the next but one, until no bucket is that large.
    start = np.arange(len(order))
    for offset in range(1, MOST_NEIGHBOURS + 1):
        start = start[start + offset < len(order)]
        start = start[ordered[start] == ordered[start + offset]]
        if not len(start):
            return
        for rows in np.array_split(start, -(-len(start) // AT_ONCE)):
            yield order[rows], order[rows + offset]


def fine_correlation(
    first: str,
    second: str,
    centre: Float[np.ndarray, " fine"],
    *,
    apply_orientation: bool = True,
) -> float:
    """Correlation of the 64x64 reduced forms of two image files, each minus `centre`.

    It is 0 if one has gone, or has nothing that the centre does not have, too.
    """
    forms = []
    for path in (first, second):
        try:
            decoded = decode_file(path, rgb=False, apply_orientation=apply_orientation)
        except UserError:
            return 0.0
        fine = reduce_pixels(decoded.pixels)
        if fine is None or np.linalg.norm(fine - centre) < 1e-6:
            return 0.0
        forms.append((fine - centre) / np.linalg.norm(fine - centre))
    return float(forms[0] @ forms[1])


def duplicate_findings(
    splits: Mapping[str, LabelledImages], scanned: ScannedImages, workers: int
) -> Iterator[Finding]:
    """A finding for each group of identical and of nearly identical images.

    A file that is named twice is one image; it is told apart by `image_in_two_splits`. Scanned are
    the images of the splits in their order, then unlabelled ones.
    """
    split_of = [name for name, images in splits.items() for _ in range(len(images))]
    split_of += [UNLABELLED] * (len(scanned.paths) - len(split_of))
    identical = identical_groups(scanned.digests)
    groups = [("identical", group) for group in identical]
    copies = {group.indices[0]: group.indices for group in identical}
    for firsts, correlation in near_groups(scanned, workers=workers):
        # The first of identical files stood for all of them.
        everyone = sorted(i for first in firsts for i in copies.get(first, (first,)))
        groups.append(("near_duplicate", DuplicateGroup(tuple(everyone), correlation)))
    for kind, group in groups:
        files = {os.path.realpath(scanned.paths[i]): i for i in reversed(group.indices)}
        shown: dict[str, list[int]] = {}
        for i in sorted(files.values()):
            shown.setdefault(split_of[i], []).append(i)
        # One of each split first: these are shown side by side.
        indices = [some[0] for some in shown.values()]
        indices += [i for some in shown.values() for i in some[1:]]
        if len(indices) < 2:
            continue
        counts = ", ".join(f"{len(some)} in {split}" for split, some in shown.items())
        how = (
            "the same" if kind == "identical" else f"nearly the same (r = {group.correlation:.2f})"
        )
        across = len(shown.keys() - {UNLABELLED}) > 1
        paths = tuple(scanned.paths[i] for i in indices)
        yield Finding(
            f"{kind}_across_splits" if across else f"{kind}_within_split",
            paths[0],
            f"{len(indices)} images are {how}: {counts}",
            paths,
            values={
                "splits": [split_of[i] for i in indices],
                "correlation": round(group.correlation, 4),
            },
        )
