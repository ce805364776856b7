"""The frames of a TIFF file, and the place of each.

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
_IMAGEJ_SIZES = {"T": "frames", "Z": "slices", "C": "channels"}
_REDUCED, _MASK = 1, 4
# Part of a frame that lies behind the first one, if there are more.
_LEAST_BEHIND = 0.01


class TiffFrame(NamedTuple):
    """The place of a frame in a file.

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
    _forget_no_counts(tiff)
    if _is_one_image(tiff):
        return [TiffFrame(0)]
    is_cut = _is_cut(tiff)
    described = [] if is_cut else [each for each in tiff.series if each.kind not in _NO_DESCRIPTION]
    if described:
        described = described if described[0].kind in _ALL_SERIES else described[:1]
        frames = [frame for each in described for frame in _frames_of(each)]
    else:
        frames = [*_pages(tiff)]
    if not described or (len(frames) == 1 and frames[0].problem is None):
        # Where axes are not named, or the file is too short for them, tifffile gives up.
        frames = _declared(tiff, frames) or frames
    if is_cut and all(frame.problem is None for frame in frames):
        problem = f"the file ends within its list of pages; frames that are left: {len(frames)}"
        frames.append(TiffFrame(len(frames), problem=f"{problem}; copy it again"))
    return frames or [TiffFrame(0)]


def _is_one_image(tiff: tifffile.TiffFile) -> bool:
    """True if the only page of a file is an image alone, although it may describe a stack.

    Programs that split a stack copy its description into each file. Of OME-TIFF a page is always
    one image. A stack of one page (ImageJ, tifffile) has its frames uncompressed behind its
    directory: what has another form, or nothing behind the first frame, is one image. So is a stack
    of one page that was cut off just behind its first frame: nothing tells it apart.
    """
    if len(tiff.pages) != 1 or _is_cut(tiff):
        return False
    if tiff.is_ome:
        return True
    first: Any = tiff.pages.first
    if not (tiff.is_imagej or tiff.is_shaped):
        return False
    behind = tiff.filehandle.size - first.dataoffsets[0] - first.nbytes
    return not _may_hold_frames(first) or behind <= first.nbytes * _LEAST_BEHIND


def _may_hold_frames(page: Any) -> bool:
    """True if more frames than one may lie behind the directory of a page."""
    is_plain = page.compression == 1 and page.is_contiguous
    return bool(is_plain and page.offset < page.dataoffsets[0])


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


def _declared(tiff: tifffile.TiffFile, pages: list[TiffFrame]) -> list[TiffFrame]:
    """Frames of a stack that declares more than its `pages`; else none."""
    sizes, declared = _sizes_said(tiff)
    if declared <= len(pages):
        return []
    others = {axis: size for axis, size in sizes.items() if size > 1}
    if "C" in others or len(others) > 1 or ("Z" in others and tiff.is_ome):
        return [_several(others)]
    first: Any = tiff.pages.first
    there = pages
    if not tiff.is_ome and len(pages) == 1 and _may_hold_frames(first):
        whole = (tiff.filehandle.size - first.dataoffsets[0]) // first.nbytes
        there = [TiffFrame(0, i * first.nbytes) for i in range(min(whole, declared))]
    return [*there, *(_missing(i, declared) for i in range(len(there), declared))]


def _sizes_said(tiff: tifffile.TiffFile) -> tuple[dict[str, int], int]:
    """Sizes along the axes besides those of an image, and number of images, by the description."""
    first: Any = tiff.pages.first
    if said := tiff.imagej_metadata:
        sizes = {axis: said.get(name, 1) for axis, name in _IMAGEJ_SIZES.items()}
        return sizes, said.get("images", 1)
    if tiff.is_ome and (tiff.ome_metadata or "").count("<Pixels ") == 1:
        found = re.findall(r'\bSize([TZC])="(\d+)"', tiff.ome_metadata or "")
        sizes = {axis: int(size) for axis, size in found}
        if first.samplesperpixel > 1:
            sizes.pop("C", None)  # colours of one image
        return sizes, math.prod(sizes.values())
    if tiff.shaped_metadata:
        shape = tiff.shaped_metadata[0].get("shape", first.shape)
        return {}, math.prod(shape) // math.prod(first.shape)
    return {}, 1


def _forget_no_counts(tiff: tifffile.TiffFile) -> None:
    """Takes what is no number out of ImageJ's description, where tifffile expects one."""
    said = tiff.imagej_metadata or {}
    for name in {"images", *_IMAGEJ_SIZES.values()} & said.keys():
        if not isinstance(said[name], int) or said[name] < 1:
            del said[name]


def _pages(tiff: tifffile.TiffFile) -> Iterator[TiffFrame]:
    """Every page that is no reduced copy and no mask, up to where the file is cut off."""
    for index in range(len(tiff.pages)):
        try:
            page = tiff.pages[index].aspage()
        except tifffile.TiffFileError:
            return
        if not int(page.subfiletype) & (_REDUCED | _MASK):
            yield TiffFrame(index)


def _is_cut(tiff: tifffile.TiffFile) -> bool:
    """True if the list of pages goes on behind the end of the file."""
    len(tiff.pages)  # goes through the list
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    following = tiff.filehandle.read(tiff.tiff.offsetsize)
    return len(following) < tiff.tiff.offsetsize or any(following)
