"""Which frames of a zarr store were written, which are damaged, and where in a store they lie."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import FrameError
from yogo_jax.inference.zarr_frames import ZarrFrames


CASES = Path(__file__).parents[2] / "shared" / "cases" / "zarr"
HW = (32, 48)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (5, *HW), np.uint8)


def write(store, frames, *, count, chunks, fill=0, zarr_format=2, path=None, shards=None):
    """An array of rows, columns and `count` frames, the first of which are written."""
    array = zarr.create_array(
        store,
        name=path,
        shape=(*HW, count),
        chunks=chunks,
        shards=shards,
        dtype="u1",
        fill_value=fill,
        zarr_format=zarr_format,
    )
    array[:, :, : len(frames)] = np.moveaxis(frames, 0, 2)
    return array


def read_all(source: ZarrFrames) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Frames that can be read, and why the others cannot."""
    found, problems = {}, {}
    for index in range(source.count or 0):
        try:
            found[index] = source.read(index)[..., 0]
        except FrameError as error:
            problems[index] = str(error)
    source.close()
    return found, problems


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("fill", [0, 255, None], ids=str)
@pytest.mark.parametrize(
    ("chunks", "shards"),
    [((32, 48, 1), None), ((16, 16, 1), None), ((32, 48, 4), None), ((32, 48, 1), (32, 48, 4))],
    ids=["whole", "tiles", "several", "shards"],
)
def test_frames_that_were_never_written_are_none(
    zarr_format, fill, chunks, shards, frames, tmp_path
):
    if shards and zarr_format == 2:
        pytest.skip("shards are of version 3")
    if fill is None and zarr_format == 3:
        pytest.skip("version 3 always has a fill value")
    write(
        str(tmp_path / "a.zarr"),
        frames,
        count=12,
        chunks=chunks,
        shards=shards,
        fill=fill,
        zarr_format=zarr_format,
    )
    source = ZarrFrames(tmp_path / "a.zarr", rgb=False, layout="hwn")
    assert (source.count, source.unwritten) == (5, 7)
    found, problems = read_all(source)
    assert not problems
    np.testing.assert_array_equal([*found.values()], frames)


@pytest.mark.parametrize("last", [0, 7], ids=["no frame behind", "a frame behind"])
@pytest.mark.parametrize(
    ("chunks", "shards"),
    [((32, 48, 1), None), ((16, 16, 1), None), ((32, 48, 4), None), ((32, 48, 1), (32, 48, 4))],
    ids=["whole", "tiles", "several", "shards"],
)
def test_the_same_frames_count_for_any_chunks_of_a_preallocated_store(
    chunks, shards, last, frames, tmp_path
):
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = write(
            str(tmp_path / "a.zarr"),
            np.concatenate([frames, np.zeros((7, *HW), np.uint8)]),
            count=12,
            chunks=chunks,
            shards=shards,
            zarr_format=3,
        )
        if last:
            array[:, :, last] = frames[0]
    source = ZarrFrames(tmp_path / "a.zarr", rgb=False, layout="hwn")
    assert (source.count, source.unwritten) == ((8, 4) if last else (5, 7))
    found, problems = read_all(source)
    assert list(problems) == ([5, 6] if last else [])
    np.testing.assert_array_equal([*found.values()], [*frames, *(frames[:1] if last else [])])


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(("zarr_format", "name"), [(2, "1.2.2"), (3, "c/1/2/2")])
def test_a_frame_with_a_missing_chunk_is_damaged(zarr_format, name, as_zip, frames, tmp_path):
    path = tmp_path / "a.zarr"
    write(str(path), frames, count=5, chunks=(16, 16, 1), zarr_format=zarr_format)
    (path / name).unlink()
    if as_zip:
        path = Path(shutil.make_archive(str(tmp_path / "a"), "zip", path))
    found, problems = read_all(ZarrFrames(path, rgb=False, frame_hw=(HW,)))
    assert list(problems) == [2]
    assert "frame 2: 1 of its 6 chunks are missing" in problems[2]
    assert "copy it again" in problems[2]
    for index, frame in found.items():
        np.testing.assert_array_equal(frame, frames[index])


def test_a_frame_with_an_empty_tile_is_told_with_both_causes(frames, tmp_path):
    tiled = frames.copy()
    tiled[2, :16, :16] = 0
    write(str(tmp_path / "a.zarr"), tiled, count=5, chunks=(16, 16, 1), zarr_format=3)
    _, problems = read_all(ZarrFrames(tmp_path / "a.zarr", rgb=False, frame_hw=(HW,)))
    assert list(problems) == [2]
    assert "the store is not complete: copy it again; or" in problems[2]
    assert "write_empty_chunks=True" in problems[2]

    with zarr.config.set({"array.write_empty_chunks": True}):
        write(str(tmp_path / "b.zarr"), tiled, count=5, chunks=(16, 16, 1), zarr_format=3)
    found, problems = read_all(ZarrFrames(tmp_path / "b.zarr", rgb=False, frame_hw=(HW,)))
    assert not problems
    np.testing.assert_array_equal([*found.values()], tiled)


@pytest.mark.parametrize("fill", [0, 255])
def test_a_frame_between_others_that_was_not_written_is_told(fill, frames, tmp_path):
    array = write(str(tmp_path / "a.zarr"), frames, count=9, chunks=(32, 48, 1), fill=fill)
    array[:, :, 6] = frames[0]
    found, problems = read_all(ZarrFrames(tmp_path / "a.zarr", rgb=False))
    assert list(found) == [0, 1, 2, 3, 4, 6]
    assert f"frame 5: all pixels are {fill}, it was not written" in problems[5]


def test_a_store_without_a_chunk_is_refused(frames, tmp_path):
    write(str(tmp_path / "a.zarr"), frames[:0], count=9, chunks=(32, 48, 1))
    with pytest.raises(UserError, match="none of its 9 frames was ever written"):
        ZarrFrames(tmp_path / "a.zarr", rgb=False)


def ome_group(path, frames, *, version, axes="tczyx", levels=2, shape=None, root=""):
    """An image of OME-Zarr with levels of half the size each."""
    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(str(path / root), mode="a", zarr_format=zarr_format)
    for level in range(levels):
        data = frames[:, :: 2**level, :: 2**level]
        data = data.reshape(*(shape or (len(frames), 1, 1)), *data.shape[1:])
        array = group.create_array(
            str(level),
            shape=data.shape,
            chunks=(1,) * (data.ndim - 2) + data.shape[-2:],
            dtype="u1",
        )
        array[:] = data
    image = {"datasets": [{"path": str(level)} for level in range(levels)]}
    if version != "0.1":
        image["axes"] = [{"name": axis} for axis in axes]
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{**image, "version": version}]


@pytest.mark.parametrize("version", ["0.1", "0.4", "0.5"])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("root", ["", "0"], ids=["at the top", "as bioformats2raw nests it"])
def test_ome_zarr_is_read_in_its_highest_resolution(version, levels, root, frames, tmp_path):
    path = tmp_path / "a.zarr"
    if root:
        top = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
        top.attrs["bioformats2raw.layout"] = 3
        top.create_group("OME")
    ome_group(path, frames, version=version, levels=levels, root=root)
    source = ZarrFrames(path, rgb=False)
    assert (source.count, source.layout) == (5, "tczyx")
    found, problems = read_all(source)
    assert not problems
    np.testing.assert_array_equal([*found.values()], frames)


def test_ome_zarr_without_channels(frames, tmp_path):
    ome_group(tmp_path / "a.zarr", frames, version="0.4", axes="tyx", shape=(5,))
    found, _ = read_all(ZarrFrames(tmp_path / "a.zarr", rgb=True))
    np.testing.assert_array_equal([*found.values()], frames)


@pytest.mark.parametrize("axes", ["txy", "xty", "xyt", "ytx", "tcxy"])
def test_the_axes_of_ome_zarr_may_be_in_any_order(axes, frames, tmp_path):
    path = tmp_path / "a.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    stored = frames[:, None] if "c" in axes else frames
    named = "tcyx" if "c" in axes else "tyx"
    data = stored.transpose([named.index(axis) for axis in axes])
    array = group.create_array("0", shape=data.shape, chunks=data.shape, dtype="u1")
    array[:] = data
    image = {"datasets": [{"path": "0"}], "axes": [{"name": axis} for axis in axes]}
    group.attrs["multiscales"] = [{**image, "version": "0.4"}]
    found, problems = read_all(ZarrFrames(path, rgb=False))
    assert not problems
    np.testing.assert_array_equal([*found.values()], frames)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ("tczyx", (1, 5, 1), "5 along c; expected frames along t only"),
        ("tczyx", (1, 1, 5), "5 along z; expected frames along t only"),
        ("zyx", (5,), "expected the axes t, y and x, found z, y, x"),
        ("tyx", (5, 1), "has 4 axes, its OME-Zarr metadata names 3"),
    ],
)
def test_ome_zarr_without_frames_names_the_axis(axes, shape, message, frames, tmp_path):
    ome_group(tmp_path / "a.zarr", frames, version="0.4", axes=axes, shape=shape)
    with pytest.raises(UserError, match=message):
        ZarrFrames(tmp_path / "a.zarr", rgb=False)


def test_several_images_are_named_and_each_can_be_given(frames, tmp_path):
    path = tmp_path / "a.zarr"
    zarr.open_group(str(path), mode="w", zarr_format=2)
    ome_group(path, frames, version="0.4", root="0")
    ome_group(path, frames[::-1], version="0.4", root="1")
    with pytest.raises(UserError, match=f"found 2: give one of {path}/0, {path}/1"):
        ZarrFrames(path, rgb=False)
    found, _ = read_all(ZarrFrames(path / "1", rgb=False))
    np.testing.assert_array_equal([*found.values()], frames[::-1])
    archive = Path(shutil.make_archive(str(tmp_path / "b"), "zip", path))
    with pytest.raises(UserError, match=f"found 2: give one of {archive}/0, {archive}/1"):
        ZarrFrames(archive, rgb=False)
    found, _ = read_all(ZarrFrames(archive / "1", rgb=False))
    np.testing.assert_array_equal([*found.values()], frames[::-1])


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("within", ["", "n1", "n1/n2", "1/2/3/4/5/6/7"])
def test_a_store_may_lie_in_a_folder_of_its_own(within, as_zip, frames, tmp_path):
    path = tmp_path / "a"
    (path / "other" / "folder").mkdir(parents=True)
    write(str(path / within / "run.zarr"), frames, count=5, chunks=(32, 48, 1))
    if as_zip:
        path = Path(shutil.make_archive(str(path), "zip", path))
    found, _ = read_all(ZarrFrames(path, rgb=False))
    np.testing.assert_array_equal([*found.values()], frames)


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_stores_in_folders_are_named(as_zip, frames, tmp_path):
    path = tmp_path / "a"
    for within in ("n1/n2/x.zarr", "n1/y.zarr"):
        write(str(path / within), frames, count=5, chunks=(32, 48, 1))
    if as_zip:
        path = Path(shutil.make_archive(str(path), "zip", path))
    with pytest.raises(UserError, match=f"give one of {path}/n1/n2/x.zarr, {path}/n1/y.zarr"):
        ZarrFrames(path, rgb=False)
    assert ZarrFrames(path / "n1/n2/x.zarr", rgb=False, layout="hwn").count == 5


def test_the_layout_of_ome_zarr_is_not_asked_for(frames, tmp_path):
    ome_group(tmp_path / "a.zarr", frames, version="0.4")
    with pytest.raises(UserError, match=r"--zarr-layout: .* says its axes: leave it out"):
        ZarrFrames(tmp_path / "a.zarr", rgb=False, layout="nhw")


@pytest.mark.parametrize(
    ("name", "unwritten", "damaged"),
    [
        ("t04.ome.zarr", 0, []),
        ("one_level.ome.zarr", 0, []),
        ("bf2raw.zarr", 0, []),
        ("inner.zip", 12, []),
        ("tiles.zarr", 0, [2]),
        ("fill255.zarr", 12, []),
    ],
)
def test_the_cases(name, unwritten, damaged):
    if not (CASES / name).exists():
        pytest.skip("the shared cases are not here")
    source = ZarrFrames(CASES / name, rgb=False, frame_hw=((192, 256),))
    assert (source.count, source.unwritten) == (8, unwritten)
    found, problems = read_all(source)
    assert list(problems) == damaged
    assert all(frame.shape == (192, 256) for frame in found.values())
