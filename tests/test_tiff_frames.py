"""Frames of TIFF files: which pages count, and that they are read as they were written."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from yogo_jax.data.images import decode_image
from yogo_jax.data.tiff_frames import tiff_frames
from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import FrameError, open_images


CASES = Path(__file__).parents[2] / "shared" / "cases"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (6, 32, 48), np.uint8)


def in_one_directory(path: Path, frames: np.ndarray, said: str, photometric: int = 1) -> None:
    """A stack as ImageJ writes those over 4 GB: one directory, all pixels behind it."""
    tifffile.imwrite(
        path,
        frames[0],
        photometric=("miniswhite", "minisblack")[photometric],
        description=f"ImageJ=1.53t\n{said}loop=false\n",
        metadata=None,
    )
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.dataoffsets[0] + frames[0].nbytes == len(data)
    path.write_bytes(data + frames[1:].tobytes())


def imagej_frames(path, frames):
    in_one_directory(path, frames, "images=6\nframes=6\n")


def imagej_slices(path, frames):
    in_one_directory(path, frames, "images=6\nslices=6\n")


def imagej_without_axes(path, frames):
    in_one_directory(path, frames, "images=6\n")


def imagej_inverted(path, frames):
    in_one_directory(path, 255 - frames, "images=6\nframes=6\n", photometric=0)


def imagej_pages(path, frames):
    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX"})


def ome_time(path, frames):
    tifffile.imwrite(path, frames, ome=True, metadata={"axes": "TYX"})


def ome_of_every_axis(path, frames):
    tifffile.imwrite(path, frames[:, None, None], ome=True, metadata={"axes": "TCZYX"})


def pages_with_reduced_copies(path, frames):
    with tifffile.TiffWriter(path) as tiff:
        for frame in frames:
            tiff.write(frame, metadata=None)
            tiff.write(frame[::2, ::2], subfiletype=1, metadata=None)
            tiff.write(frame[::4, ::4], subfiletype=1, metadata=None)


def copies_in_sub_directories(path, frames):
    with tifffile.TiffWriter(path) as tiff:
        for frame in frames:
            tiff.write(frame, subifds=1, metadata=None)
            tiff.write(frame[::2, ::2], subfiletype=1, metadata=None)


def pages_after_a_preview(path, frames):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(frames[0][::2, ::2], subfiletype=1, metadata=None)
        for frame in frames:
            tiff.write(frame, metadata=None)


def big_tiff(path, frames):
    tifffile.imwrite(path, frames, bigtiff=True, compression="zlib", metadata=None)


def big_endian(path, frames):
    tifffile.imwrite(path, frames, byteorder=">")


def pillow(path, frames):
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others)


WRITERS = [
    imagej_frames,
    imagej_slices,
    imagej_without_axes,
    imagej_inverted,
    imagej_pages,
    ome_time,
    ome_of_every_axis,
    pages_with_reduced_copies,
    copies_in_sub_directories,
    pages_after_a_preview,
    big_tiff,
    big_endian,
    pillow,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_all_frames_of_a_stack_and_nothing_else(write, frames, tmp_path):
    path = tmp_path / "movie.tif"
    write(path, frames)
    source = open_images(str(path), rgb=False)
    assert source.count == len(frames)
    for index in (3, *range(len(frames))):  # also out of order
        np.testing.assert_array_equal(source.read(index)[..., 0], frames[index])
    assert [source.name(index) for index in (0, 5)] == ["movie.tif[0]", "movie.tif[5]"]
    source.close()
    with pytest.raises(UserError, match="a stack of 6 images; expected one image a file"):
        decode_image(path, rgb=False)


@pytest.mark.parametrize(
    "write",
    [
        pages_with_reduced_copies,
        copies_in_sub_directories,
        pages_after_a_preview,
        ome_of_every_axis,
    ],
    ids=lambda write: write.__name__,
)
def test_a_pyramid_is_one_image(write, frames, tmp_path):
    write(tmp_path / "a.tif", frames[:1])
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif", rgb=False)[..., 0], frames[0])
    source = open_images(str(tmp_path), rgb=False)
    assert source.count == 1
    assert source.name(0) == "a.tif"


@pytest.mark.parametrize(
    ("axes", "shape", "found"),
    [
        ("CYX", (6,), r"6 along C \(channel\)"),
        ("ZYX", (6,), r"6 along Z \(depth\)"),
        ("TCYX", (3, 2), r"2 along C \(channel\)"),
        ("TCZYX", (1, 3, 2), r"3 along C \(channel\) and 2 along Z \(depth\)"),
    ],
)
def test_channels_and_slices_are_no_frames(axes, shape, found, frames, tmp_path):
    path = tmp_path / "a.ome.tif"
    data = frames.reshape(*shape, 32, 48)
    tifffile.imwrite(path, data, ome=True, metadata={"axes": axes})
    with pytest.raises(UserError, match=f"{found}; expected frames along T"):
        decode_image(path, rgb=False)
    source = open_images(str(path), rgb=False)
    assert source.count == 1
    with pytest.raises(FrameError, match=f"a.ome.tif: several images for each frame: {found}"):
        source.read(0)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut off"])
@pytest.mark.parametrize(
    ("said", "found"), [("channels=3", r"3 along C \(channel\)"), ("slices=3", r"3 along Z")]
)
def test_channels_and_slices_of_imagej_are_no_frames(said, found, whole, frames, tmp_path):
    path = tmp_path / "a.tif"
    in_one_directory(path, frames, f"images=6\n{said}\nframes=2\n")
    if not whole:
        path.write_bytes(path.read_bytes()[: -frames[0].nbytes])
    with pytest.raises(UserError, match=found):
        decode_image(path, rgb=False)


def read_all(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Frames of a file that can be read, and why the others cannot."""
    source = open_images(str(path), rgb=False)
    found, problems = [], []
    for index in range(source.count or 0):
        try:
            found.append(source.read(index)[..., 0])
        except FrameError as error:
            problems.append(str(error))
    source.close()
    return found, problems


def test_a_stack_that_is_cut_off_names_each_missing_frame(frames, tmp_path):
    path = tmp_path / "a.tif"
    imagej_frames(path, frames)
    # Two and a half frames are gone.
    path.write_bytes(path.read_bytes()[: -frames[0].nbytes * 5 // 2])
    found, problems = read_all(path)
    np.testing.assert_array_equal(found, frames[:3])
    assert len(problems) == 3
    for index, problem in enumerate(problems, 3):
        assert f"frame {index} is missing: the file declares 6" in problem


def ome_said(**sizes: int) -> str:
    """A description of one file with these sizes."""
    said = " ".join(f'Size{axis}="{size}"' for axis, size in sizes.items())
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="48" SizeY="32" {said}><TiffData/></Pixels></Image></OME>'
    )


SAID_OF_A_STACK = {
    "images": "ImageJ=1.53t\nimages=6\nloop=false\n",
    "frames": "ImageJ=1.53t\nimages=6\nframes=6\nloop=false\n",
    "channels": "ImageJ=1.53t\nimages=6\nchannels=6\nloop=false\n",
    "hyperstack": "ImageJ=1.53t\nimages=6\nchannels=2\nframes=3\nhyperstack=true\n",
    "OME C": ome_said(C=3, Z=1, T=1),
    "OME Z": ome_said(C=1, Z=3, T=1),
    "OME T": ome_said(C=1, Z=1, T=6),
    "shaped": '{"shape": [6, 32, 48]}',
}


def one_page(path: Path, frame: np.ndarray, said: str, form: str) -> None:
    """A page of a split stack, which keeps its description."""
    options = {"compression": "zlib"} if form == "compressed" else {}
    tifffile.imwrite(path, frame, description=said, metadata=None, **options)
    data = path.read_bytes()
    if form == "with a few bytes behind":
        path.write_bytes(data + bytes(6))
    elif form == "directory behind":
        # As libtiff writes. There may be more behind than a frame takes.
        with tifffile.TiffFile(path) as tiff:
            start = tiff.pages.first.offset
        behind = len(data).to_bytes(4, "little")
        path.write_bytes(data[:4] + behind + data[8:] + data[start : start + 250] + bytes(4000))


@pytest.mark.parametrize(
    "form", ["plain", "compressed", "directory behind", "with a few bytes behind"]
)
@pytest.mark.parametrize("said", SAID_OF_A_STACK.values(), ids=SAID_OF_A_STACK)
def test_a_page_of_a_split_stack_is_one_image(said, form, frames, tmp_path):
    path = tmp_path / "p0.tif"
    one_page(path, frames[0], said, form)
    np.testing.assert_array_equal(decode_image(path, rgb=False)[..., 0], frames[0])
    found, problems = read_all(path)
    assert not problems
    np.testing.assert_array_equal(found, frames[:1])


@pytest.mark.parametrize("said", ["images=x", "images=-3", "images=x\nframes=y", "images="])
def test_a_count_that_is_no_number_is_not_said(said, frames, tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for frame in frames[:2]:
            tiff.write(frame, description=f"ImageJ=1.53t\n{said}\n", metadata=None)
    found, problems = read_all(path)
    assert not problems
    np.testing.assert_array_equal(found, frames[:2])


def pages_with_a_first_description(path: Path, frames: np.ndarray, said: str, **options) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for i, frame in enumerate(frames):
            description = said if i == 0 else None
            tiff.write(frame, description=description, metadata=None, **options)


STACK = "a stack of 6 images; expected one image a file; save the pages separately"
CUT_STACKS = {
    "ImageJ": lambda path, frames: imagej_pages(path, frames),
    "ImageJ, one page": lambda path, frames: imagej_frames(path, frames),
    "ImageJ, compressed": lambda path, frames: pages_with_a_first_description(
        path, frames, SAID_OF_A_STACK["frames"], compression="zlib"
    ),
    "OME": lambda path, frames: pages_with_a_first_description(
        path, frames, SAID_OF_A_STACK["OME T"]
    ),
    "OME, compressed": lambda path, frames: pages_with_a_first_description(
        path, frames, SAID_OF_A_STACK["OME T"], compression="zlib"
    ),
    "shaped": lambda path, frames: tifffile.imwrite(path, frames),
    "shaped, compressed": lambda path, frames: tifffile.imwrite(path, frames, compression="zlib"),
}


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("write", CUT_STACKS.values(), ids=CUT_STACKS)
def test_frames_that_are_there_and_missing_are_those_declared(write, part, frames, tmp_path):
    path = tmp_path / "a.tif"
    write(path, frames)
    assert read_all(path)[1] == []
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    found, problems = read_all(path)
    assert len(found) + len(problems) == 6
    np.testing.assert_array_equal(found, frames[: len(found)])
    assert found
    assert problems
    # As one image: that it is cut off comes before that it is a stack, if its list of pages tells.
    missing = [each for each in problems if "the file declares" in each or "ends within" in each]
    with pytest.raises(UserError) as refused:
        decode_image(path, rgb=False)
    assert str(refused.value) in (missing[:1] or [f"{path}: {STACK}"])


def test_pages_that_are_cut_off_are_told(frames, tmp_path):
    path = tmp_path / "a.tif"
    pages_with_reduced_copies(path, frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, problems = read_all(path)
    assert 2 <= len(found) <= 3
    np.testing.assert_array_equal(found, frames[: len(found)])
    assert "the file ends within its list of pages" in problems[-1]


def test_files_of_a_set_have_their_own_pages(frames, tmp_path):
    names = ["a.ome.tif", "b.ome.tif"]
    planes = "".join(
        f'<TiffData FirstT="{3 * part + i}" IFD="{i}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for part, name in enumerate(names)
        for i in range(3)
    )
    said = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:a.ome.tif"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="48" SizeY="32" SizeC="1" SizeZ="1" SizeT="6">'
        f"{planes}</Pixels></Image></OME>"
    )
    for part, name in enumerate(names):
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            for i in range(3):
                description = said if i == 0 else None
                tiff.write(frames[3 * part + i], description=description, metadata=None)
    source = open_images(str(tmp_path), rgb=False)
    assert source.count == 6
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(source.read(index)[..., 0], frame)
    source.close()


@pytest.mark.parametrize(
    ("name", "count"),
    [("imagej-stack/movie.tif", 8), *((f"pyramid-tiff/slide{i}.tif", 1) for i in range(3))],
)
def test_the_cases(name, count):
    path = CASES / name
    if not path.is_file():
        pytest.skip("the shared cases are not here")
    assert len(tiff_frames(path)) == count
    found, problems = read_all(path)
    assert not problems
    assert [frame.shape for frame in found] == [(192, 256)] * count
