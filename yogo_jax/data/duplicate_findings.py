"""Groups of the same or nearly the same images, as findings: leakage between splits comes first."""

import os
from collections.abc import Iterator, Mapping

from yogo_jax.data.collected import LabelledImages
from yogo_jax.data.duplicates import DuplicateGroup, identical_groups, near_groups
from yogo_jax.data.findings import Finding
from yogo_jax.data.scan import ScannedImages


UNLABELLED = "unlabelled"


def duplicate_findings(
    splits: Mapping[str, LabelledImages], scanned: ScannedImages, workers: int
) -> Iterator[Finding]:
    """A finding for each group of identical and of nearly identical images.

    A file that is named twice is one image; it is told apart by `image_in_two_splits`.

    Args:
      splits: name -> images, in the order that they were scanned in.
      scanned: those, then unlabelled ones.
      workers: threads that read candidates again.
    """
    split_of = [name for name, images in splits.items() for _ in range(len(images))]
    split_of += [UNLABELLED] * (len(scanned.paths) - len(split_of))
    identical = identical_groups(scanned.digests)
    for group in identical:
        yield from _finding("identical", group, scanned.paths, split_of)
    copies = {group.indices[0]: group.indices for group in identical}
    for group in near_groups(scanned, workers=workers):
        # The first of identical files stood for all of them.
        everyone = sorted(i for first in group.indices for i in copies.get(first, (first,)))
        whole = DuplicateGroup(tuple(everyone), group.correlation)
        yield from _finding("near_duplicate", whole, scanned.paths, split_of)


def _finding(
    kind: str, group: DuplicateGroup, paths: tuple[str, ...], split_of: list[str]
) -> Iterator[Finding]:
    files = {os.path.realpath(paths[i]): i for i in reversed(group.indices)}
    if len(files) < 2:
        return
    # One of each split first: these are shown side by side.
    shown: dict[str, list[int]] = {}
    for i in sorted(files.values()):
        shown.setdefault(split_of[i], []).append(i)
    indices = [some[0] for some in shown.values()] + [
        i for some in shown.values() for i in some[1:]
    ]
    across = len(shown.keys() - {UNLABELLED}) > 1
    counts = ", ".join(f"{len(some)} in {split}" for split, some in shown.items())
    how = "the same" if kind == "identical" else f"nearly the same (r = {group.correlation:.2f})"
    where = "across_splits" if across else "within_split"
    yield Finding(
        f"{kind}_{where}",
        paths[indices[0]],
        f"{len(indices)} images are {how}: {counts}",
        tuple(paths[i] for i in indices),
        values={
            "splits": [split_of[i] for i in indices],
            "correlation": round(group.correlation, 4),
        },
    )
