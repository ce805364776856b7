"""Which frames a TIFF file holds, and where each lies.

A page of a TIFF file need not be a frame: it may be a reduced copy, a channel or a slice; and one
page may stand for a whole stack. tifffile reads what the programs that write such files say of it.
"""

import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tifffile


# It reports damage to the log, and gives what is left.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

# Nobody says what the pages of these are: each is a frame.
_NO_DESCRIPTION = ("generic", "uniform")
# Of these every series has frames; of others (slides, LSM) the first, and the rest are previews.
_ALL_SERIES = ("ome", "shaped")
# These call the images of any plain stack slices.
_ANY_STACK_IS_SLICES = ("imagej", "stk", "nih")
_IMAGE_AXES = "YXS"
# Time, and sequences without a meaning.
_FRAME_AXES = "TIQRM"
_REDUCED, _MASK = 1, 4


class TiffFrame(NamedTuple):
    """Where a frame lies.

    Attributes:
      page: its number in the file.
      skipped_bytes: from the pixels of that page to those of the frame, for stacks that have one
        page only.
      problem: why there is no such frame, although the file declares it; else None.
    """

    page: int
    skipped_bytes: int = 0
    problem: str | None = None


def tiff_frames(path: Path | str) -> list[TiffFrame]:
    """The frames of a TIFF file in order, at least one.

    ImageJ stacks, OME-TIFF and others are read as their description says; without one each page is
    a frame that is no reduced copy or mask. Frames that are declared but missing are there with
    their `problem`. So is a file with several channels or slices, as one frame.

    Raises:
      tifffile.TiffFileError: it is no TIFF file.
    """
    with tifffile.TiffFile(path) as tiff:
        # Of an OME-TIFF in several files each has pages of its own, and describes all of them.
        names = set(re.findall(r'FileName="([^"]*)"', tiff.ome_metadata or ""))
        if len(names) <= 1:
            return _frames(tiff)
    with tifffile.TiffFile(path, is_ome=False) as tiff:
        return _frames(tiff)


def _frames(tiff: tifffile.TiffFile) -> list[TiffFrame]:
    described = [each for each in tiff.series if each.kind not in _NO_DESCRIPTION]
    if described:
        described = described if described[0].kind in _ALL_SERIES else described[:1]
        frames = [frame for each in described for frame in _frames_of(each)]
    else:
        frames = [*_pages(tiff)]
    if not described or (len(frames) == 1 and frames[0].problem is None):
        # Where axes are not named, or the file is too short for them, tifffile gives up.
        frames = _declared_by_imagej(tiff) or frames
    if _is_cut(tiff):
        problem = f"the file ends within its list of pages, of which {len(tiff.pages)} are left"
        frames.append(TiffFrame(len(tiff.pages), problem=f"{problem}; copy it again"))
    return frames or [TiffFrame(0)]


def _frames_of(series: Any) -> Iterator[TiffFrame]:
    """Frames of a series with a description."""
    sizes = {
        axis: size
        for axis, size in zip(series.axes, series.shape, strict=True)
        if axis not in _IMAGE_AXES and size > 1
    }
    others = [axis for axis in sizes if axis not in _FRAME_AXES]
    if others == ["Z"] == [*sizes] and series.kind in _ANY_STACK_IS_SLICES:
        others = []
    if others:
        yield _several({axis: sizes[axis] for axis in others})
        return
    count, pages = math.prod(sizes.values()), [*series.pages]
    if len(pages) == 1 and count > 1 and series.dataoffset is not None:
        size = series.keyframe.nbytes
        yield from (TiffFrame(pages[0].index, i * size) for i in range(count))
        return
    for i in range(count):
        if i < len(pages) and pages[i] is not None:
            yield TiffFrame(pages[i].index)
        else:
            yield _missing(i, count)


def _several(sizes: dict[str, int]) -> TiffFrame:
    """In place of frames that have several channels or slices each."""
    names = tifffile.TIFF.AXES_NAMES
    along = (
        f"{size} along {axis} ({names.get(axis, 'another axis')})" for axis, size in sizes.items()
    )
    return TiffFrame(
        0,
        problem=f"several images for each frame: {' and '.join(along)}; expected frames along T "
        "(time) only; save one of them, or name the axis T if these are frames",
    )


def _missing(index: int, declared: int) -> TiffFrame:
    problem = f"frame {index} is missing: the file declares {declared}, but is cut off; copy it"
    return TiffFrame(0, problem=f"{problem} again")


def _declared_by_imagej(tiff: tifffile.TiffFile) -> list[TiffFrame]:
    """Frames of an ImageJ stack that declares more than it has pages; else none."""
    said = tiff.imagej_metadata or {}
    declared = int(said.get("images", 1))
    if declared <= len(tiff.pages):
        return []
    names = {"T": "frames", "Z": "slices", "C": "channels"}
    sizes = {axis: said[name] for axis, name in names.items() if said.get(name, 1) > 1}
    if "C" in sizes or len(sizes) > 1:
        return [_several(sizes)]
    first: Any = tiff.pages.first
    if len(tiff.pages) == 1 and first.is_contiguous and first.compression == 1:
        whole = (tiff.filehandle.size - first.dataoffsets[0]) // first.nbytes
        there = [TiffFrame(0, i * first.nbytes) for i in range(min(whole, declared))]
    else:
        there = [*_pages(tiff)]
    return [*there, *(_missing(i, declared) for i in range(len(there), declared))]


def _pages(tiff: tifffile.TiffFile) -> Iterator[TiffFrame]:
    """Every page that is no reduced copy and no mask."""
    for index, page in enumerate(tiff.pages):
        if not int(page.aspage().subfiletype) & (_REDUCED | _MASK):
            yield TiffFrame(index)


def _is_cut(tiff: tifffile.TiffFile) -> bool:
    """Whether the last page names a next one that is not in the file."""
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    return any(tiff.filehandle.read(tiff.tiff.offsetsize))
