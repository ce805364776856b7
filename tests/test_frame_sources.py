"""Every kind of source gives the frames that went into it, and names what it cannot read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import zarr
from PIL import Image

from yogo_jax.data.images import read_image, resize_image
from yogo_jax.errors import UserError
from yogo_jax.inference.frame_sources import (
    EndOfFramesError,
    FrameError,
    check_distinct_stems,
    open_images,
)
from yogo_jax.inference.video_frames import VideoFrames
from yogo_jax.inference.zarr_frames import ZarrFrames


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (5, 32, 48), np.uint8)


def save_folder(folder: Path, frames: np.ndarray) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, frame in enumerate(frames):
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(frame).save(paths[-1])
    return paths


def save_stack(path: Path, frames: np.ndarray) -> None:
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others)


def save_zarr(path: Path, array: np.ndarray, chunks: tuple[int, ...], zarr_format: int = 2) -> None:
    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else str(path)
    kept = zarr.create_array(
        store,
        shape=array.shape,
        chunks=chunks,
        dtype="u1",
        compressors=None,
        fill_value=0,
        zarr_format=zarr_format,
    )
    kept[:] = array
    if not isinstance(store, str):
        store.close()


def save_video(
    path: Path, frames: np.ndarray, codec: str = "ffv1", pixel_format: str = "gray"
) -> None:
    # An MP4 that is cut off can only be read if its list of frames stands at the beginning.
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = pixel_format
        for frame in frames:
            packets = stream.encode(av.VideoFrame.from_ndarray(frame, format="gray"))
            container.mux(packets)
        container.mux(stream.encode())


def open_folder(folder, frames):
    save_folder(folder / "x", frames)
    return open_images(str(folder / "x"), rgb=False)


def open_pattern(folder, frames):
    save_folder(folder / "x" / "a", frames[:3])
    save_folder(folder / "x" / "b", frames[3:])
    return open_images(str(folder / "x" / "**" / "*.png"), rgb=False)


def open_list(folder, frames):
    lines = [f"{path}\n" for path in save_folder(folder, frames)]
    return open_images("-", rgb=False, lines=[*lines, "\n"])


def open_stack(folder, frames):
    save_stack(folder / "run.tif", frames)
    return open_images(str(folder / "run.tif"), rgb=False)


def open_stacks_and_files(folder, frames):
    save_stack(folder / "0.tif", frames[:2])
    Image.fromarray(frames[2]).save(folder / "1.tif")
    save_stack(folder / "2.tiff", frames[3:])
    return open_images(str(folder), rgb=False)


def open_instruments_zip(folder, frames):
    save_zarr(folder / "run.zip", np.moveaxis(frames, 0, 2), (32, 48, 1))
    return ZarrFrames(folder / "run.zip", rgb=False)


def open_zarr_folder(folder, frames):
    save_zarr(folder / "run.zarr", frames, (2, 32, 48), zarr_format=3)
    return ZarrFrames(folder / "run.zarr", rgb=False)


def open_one_chunk(folder, frames):
    save_zarr(folder / "run.zarr", frames, frames.shape)
    return ZarrFrames(folder / "run.zarr", rgb=False, frame_hw=((772, 1032), (32, 48)))


def open_video(folder, frames):
    save_video(folder / "run.mkv", frames)
    return VideoFrames(folder / "run.mkv", rgb=False)


OPENERS = [
    open_folder,
    open_pattern,
    open_list,
    open_stack,
    open_stacks_and_files,
    open_instruments_zip,
    open_zarr_folder,
    open_one_chunk,
    open_video,
]


@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_frames_come_back_in_order(opener, frames, tmp_path):
    source = opener(tmp_path, frames)
    try:
        assert source.count in (5, None)
        for i, frame in enumerate(frames):
            np.testing.assert_array_equal(source.read(i)[..., 0], frame)
        stems = [source.stem(i) for i in range(5)]
        assert len(set(stems)) == 5
        assert stems == sorted(stems)
        check_distinct_stems(source)
    finally:
        source.close()


@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_reading_may_begin_anywhere(opener, frames, tmp_path):
    source = opener(tmp_path, frames)
    np.testing.assert_array_equal(source.read(3)[..., 0], frames[3])
    np.testing.assert_array_equal(source.read(4)[..., 0], frames[4])
    source.close()


@pytest.mark.parametrize(
    "opener", [open_stack, open_instruments_zip, open_video], ids=lambda opener: opener.__name__
)
def test_gray_frames_for_a_network_of_three_channels(opener, frames, tmp_path, monkeypatch):
    opener(tmp_path, frames).close()
    (path,) = tmp_path.iterdir()
    source = {
        ".tif": lambda: open_images(str(path), rgb=True),
        ".zip": lambda: ZarrFrames(path, rgb=True),
        ".mkv": lambda: VideoFrames(path, rgb=True),
    }[path.suffix]()
    frame = source.read(0)
    source.close()
    assert frame.shape == (32, 48, 3)
    np.testing.assert_array_equal(frame, np.repeat(frames[0][..., None], 3, axis=2))


def test_a_video_knows_its_end(frames, tmp_path):
    source = open_video(tmp_path, frames)
    source.read(4)
    with pytest.raises(EndOfFramesError):
        source.read(5)
    with pytest.raises(ValueError, match="was asked for after"):
        source.read(2)
    source.close()


def test_names_are_below_what_was_given(frames, tmp_path):
    source = open_pattern(tmp_path, frames)
    assert [source.name(i) for i in (0, 4)] == ["a/0.png", "b/1.png"]
    assert [source.stem(i) for i in (0, 4)] == ["a/0", "b/1"]
    stacks = open_stacks_and_files(tmp_path / "x", frames)
    assert [stacks.name(i) for i in (1, 2)] == ["0.tif[1]", "1.tif"]
    assert stacks.stem(1) == "0_000001"
    stacks.close()


def test_resizing_what_was_read_is_reading_it_resized(frames, tmp_path):
    (path, *_) = save_folder(tmp_path, frames)
    resized = read_image(path, image_hw=(20, 31), rgb=False)
    expected = Image.fromarray(frames[0]).resize((31, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized[..., 0], np.asarray(expected))
    np.testing.assert_array_equal(resize_image(frames[0][..., None], (20, 31)), resized)


def test_damage_is_of_one_frame(frames, tmp_path):
    paths = save_folder(tmp_path / "files", frames)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:60])
    source = open_images("-", rgb=False, lines=[*paths, str(tmp_path / "missing.png")])
    for index, reason in ((1, "1.png"), (5, "does not exist")):
        with pytest.raises(FrameError, match=reason):
            source.read(index)
    np.testing.assert_array_equal(source.read(2)[..., 0], frames[2])

    dark = np.moveaxis(frames, 0, 2).copy()
    dark[:, :, 3] = 0
    save_zarr(tmp_path / "run.zarr", dark, (32, 48, 1))
    (damaged,) = (tmp_path / "run.zarr").glob("0*0*1")
    damaged.write_bytes(b"short")
    store = ZarrFrames(tmp_path / "run.zarr", rgb=False)
    with pytest.raises(FrameError, match="frame 1: cannot be read"):
        store.read(1)
    with pytest.raises(FrameError, match="frame 3: all pixels are 0, it was not written"):
        store.read(3)
    np.testing.assert_array_equal(store.read(4)[..., 0], frames[4])


def test_deep_pages_of_a_stack_are_refused_one_by_one(frames, tmp_path):
    deep = Image.fromarray(frames[0].astype(np.uint16) * 100)
    Image.fromarray(frames[0]).save(tmp_path / "a.tif", save_all=True, append_images=[deep])
    source = open_images(str(tmp_path / "a.tif"), rgb=False)
    np.testing.assert_array_equal(source.read(0)[..., 0], frames[0])
    with pytest.raises(FrameError, match="page 1: 16-bit"):
        source.read(1)
    source.close()


def test_a_damaged_video_counts_the_frames_it_cannot_show(frames, tmp_path):
    save_video(tmp_path / "run.mkv", np.repeat(frames, 8, axis=0), "mjpeg", "yuvj420p")
    data = bytearray((tmp_path / "run.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xff" * 200
    (tmp_path / "bad.mkv").write_bytes(data)
    source = VideoFrames(tmp_path / "bad.mkv", rgb=False)
    shown = failed = 0
    for index in range(80):
        try:
            source.read(index)
            shown += 1
        except FrameError:
            failed += 1
        except EndOfFramesError:
            break
    source.close()
    assert failed >= 1
    assert shown >= 10


CUT_VIDEOS = [
    pytest.param("run.mkv", "ffv1", "gray", "declares 4.00 s", id="mkv"),
    pytest.param("run.avi", "mjpeg", "yuvj420p", "declares 40 frames", id="avi"),
    pytest.param("run.flv", "flv1", "yuv420p", "declares 4.00 s", id="flv"),
    pytest.param("run.mp4", "mpeg4", "yuv420p", "declares 40 frames", id="mp4"),
]


def read_video(path: Path) -> tuple[int, list[str]]:
    """Frames that can be shown, and what is said of the others."""
    source = VideoFrames(path, rgb=False)
    shown, problems = 0, []
    for index in range(1000):
        try:
            source.read(index)
            shown += 1
        except FrameError as error:
            problems.append(str(error))
        except EndOfFramesError:
            break
    source.close()
    return shown, problems


@pytest.mark.parametrize(("name", "codec", "pixel_format", "said"), CUT_VIDEOS)
def test_a_video_that_is_cut_off_says_so(name, codec, pixel_format, said, frames, tmp_path):
    path = tmp_path / name
    save_video(path, np.repeat(frames, 8, axis=0), codec, pixel_format)
    assert read_video(path) == (40, [])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    shown, problems = read_video(path)
    assert 5 < shown < 35
    assert f"{path}: the file {said}" in problems[-1]
    assert "it is cut off: copy it again" in problems[-1]


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("run.mp4", "mpeg4", "yuv420p"),
        ("run.mov", "mjpeg", "yuvj420p"),
        ("run.ts", "mpeg2video", "yuv420p"),
        ("run.nut", "ffv1", "gray"),
        ("run.webm", "libvpx", "yuv420p"),
    ],
)
def test_of_a_whole_video_nothing_is_missing(name, codec, pixel_format, frames, tmp_path):
    save_video(tmp_path / name, np.repeat(frames, 8, axis=0), codec, pixel_format)
    assert read_video(tmp_path / name) == (40, [])


def copy_packets(path: Path, into: Path, *, trimmed: int = 0, dropped: tuple[int, ...] = ()):
    """Copies a video without encoding it again.

    Args:
      path: of the video.
      into: the copy.
      trimmed: frames at the beginning that are stored, but not shown.
      dropped: frames that are left out.
    """
    with av.open(str(path)) as video, av.open(str(into), "w") as copy:
        stream = copy.add_stream_from_template(video.streams.video[0])
        for index, packet in enumerate(video.demux(video=0)):
            if packet.dts is not None and index not in dropped:
                packet.pts -= trimmed * packet.duration
                packet.dts -= trimmed * packet.duration
                packet.stream = stream
                copy.mux(packet)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("trimmed", [25, -25], ids=["from a later frame", "with a pause before"])
def test_a_video_trimmed_without_encoding_is_whole(suffix, trimmed, frames, tmp_path):
    save_video(tmp_path / "whole.mp4", np.repeat(frames, 8, axis=0), "mpeg4", "yuv420p")
    path = tmp_path / f"trimmed{suffix}"
    copy_packets(tmp_path / "whole.mp4", path, trimmed=trimmed)
    shown, problems = read_video(path)
    assert not problems
    assert shown == (15 if trimmed > 0 else 40)
    with av.open(str(path)) as video:
        assert video.streams.video[0].frames == 40


def test_dropped_frames_of_an_avi_are_not_missing(frames, tmp_path):
    save_video(tmp_path / "whole.avi", np.repeat(frames, 8, axis=0), "mjpeg", "yuvj420p")
    path = tmp_path / "run.avi"
    copy_packets(tmp_path / "whole.avi", path, dropped=(5, 6, 20))
    data = bytearray(path.read_bytes())
    assert read_video(path) == (37, [])

    # The last frames, too: an empty chunk, and junk in the place of its pixels.
    index = data.index(b"idx1") + 8
    last = index + 16 * 39
    at = data.index(b"movi") + int.from_bytes(data[last + 8 : last + 12], "little")
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    assert data[at : at + 4] == b"00dc"
    data[at : at + 16] = b"00dc" + bytes(4) + b"JUNK" + (size - 8).to_bytes(4, "little")
    data[last + 12 : last + 16] = bytes(4)
    (tmp_path / "last.avi").write_bytes(data)
    assert read_video(tmp_path / "last.avi") == (36, [])

    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    shown, problems = read_video(path)
    assert 15 < shown < 30
    assert "declares 40 frames" in problems[-1]


def test_the_case_of_a_cut_video():
    folder = Path(__file__).parents[2] / "shared" / "cases" / "truncated-video"
    if not folder.is_dir():
        pytest.skip("the shared cases are not here")
    assert read_video(folder / "ffv1_gray.mkv") == (12, [])
    shown, problems = read_video(folder / "cut.mkv")
    assert shown in (7, 8)
    assert len(problems) == 1


@pytest.mark.parametrize("apply", [True, False], ids=["turned", "as stored"])
def test_images_and_stacks_that_are_not_upright(apply, frames, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(frames[0]).save(tmp_path / "a.jpg", quality=100, exif=tag)
    first, *others = (Image.fromarray(frame) for frame in frames[1:3])
    first.save(tmp_path / "b.tif", save_all=True, append_images=others, tiffinfo={0x0112: 6})
    Image.fromarray(frames[3]).save(tmp_path / "c.png")
    said: list[str] = []
    source = open_images(str(tmp_path), rgb=False, apply_orientation=apply, say=said.append)
    found = [source.read(index)[..., 0] for index in range(4)]
    source.close()
    for index in (1, 2):
        expected = frames[index].T[:, ::-1] if apply else frames[index]
        np.testing.assert_array_equal(found[index], expected)
    assert found[0].shape == ((48, 32) if apply else (32, 48))
    np.testing.assert_array_equal(found[3], frames[3])
    (line,) = said
    assert line.startswith("2 images have an orientation")
    assert ("are turned" in line) == apply
    other = open_images(str(tmp_path), rgb=False, apply_orientation=not apply, say=said.append)
    assert other.identity != source.identity


@pytest.mark.parametrize(
    ("shape", "chunks", "frame_hw", "expected"),
    [
        pytest.param((32, 48, 9), (32, 48, 1), (), "hwn", id="instrument"),
        pytest.param((9, 32, 48), (1, 32, 48), (), "nhw", id="frames first"),
        pytest.param((32, 48, 9), (32, 48, 9), ((32, 48),), "hwn", id="one chunk, known size"),
        pytest.param((9, 32, 48), (3, 16, 24), ((32, 48),), "nhw", id="tiles, known size"),
        pytest.param((32, 48, 9), (1, 48, 9), ((32, 48),), "hwn", id="row by row"),
        pytest.param((1, 32, 48), (1, 32, 24), ((32, 48),), "nhw", id="one frame in halves"),
        pytest.param((32, 48, 1), (4, 48, 1), ((32, 48),), "hwn", id="one frame in strips"),
        pytest.param((9, 32, 48), (9, 32, 48), (), None, id="one chunk"),
        pytest.param((32, 32, 32), (32, 32, 32), ((32, 32),), None, id="a cube"),
    ],
)
def test_layout_of_a_store(shape, chunks, frame_hw, expected, tmp_path):
    save_zarr(tmp_path / "run.zarr", np.ones(shape, np.uint8), chunks)
    if expected is None:
        with pytest.raises(UserError, match="say --zarr-layout hwn or --zarr-layout nhw"):
            ZarrFrames(tmp_path / "run.zarr", rgb=False, frame_hw=frame_hw)
        expected = "nhw"
        store = ZarrFrames(tmp_path / "run.zarr", rgb=False, layout=expected, frame_hw=frame_hw)
    else:
        store = ZarrFrames(tmp_path / "run.zarr", rgb=False, frame_hw=frame_hw)
    assert store.layout == expected
    assert store.count == shape[2 if expected == "hwn" else 0]


def write_text(path: Path) -> Path:
    path.write_text("no frames")
    return path


REFUSALS = [
    pytest.param(lambda d: open_images("nowhere", rgb=False), "does not exist", id="missing"),
    pytest.param(lambda d: open_images(str(d), rgb=False), "no image in this folder", id="empty"),
    pytest.param(
        lambda d: open_images(f"{d}/*.png", rgb=False), "no image matches", id="empty pattern"
    ),
    pytest.param(
        lambda d: open_images("-", rgb=False, lines=["\n"]), "one path a line", id="empty list"
    ),
    pytest.param(lambda d: ZarrFrames(d / "no", rgb=False), "does not exist", id="missing store"),
    pytest.param(
        lambda d: ZarrFrames(write_text(d / "x.zip"), rgb=False),
        "expected a zarr store, a folder or a zip",
        id="no zip",
    ),
    pytest.param(lambda d: ZarrFrames(d, rgb=False), "expected a zarr store", id="no store"),
    pytest.param(
        lambda d: VideoFrames(write_text(d / "x.mp4"), rgb=False), "cannot be opened", id="no video"
    ),
    pytest.param(lambda d: VideoFrames(d / "no", rgb=False), "does not exist", id="missing video"),
]


@pytest.mark.parametrize(("attempt", "message"), REFUSALS)
def test_what_is_no_source_is_refused(attempt, message, tmp_path):
    with pytest.raises(UserError, match=message):
        attempt(tmp_path)


def test_other_arrays_and_groups_of_a_store(frames, tmp_path):
    group = zarr.create_group(str(tmp_path / "run.zarr"))
    group.create_array("frames", data=frames, chunks=(1, 32, 48))
    assert ZarrFrames(tmp_path / "run.zarr", rgb=False).count == 5
    group.create_array("times", data=np.arange(5))
    with pytest.raises(UserError, match="expected one array, found 2"):
        ZarrFrames(tmp_path / "run.zarr", rgb=False)
    with pytest.raises(UserError, match=r"three axes of uint8, found \(5,\) of int64"):
        ZarrFrames(tmp_path / "run.zarr" / "times", rgb=False)


def test_two_frames_of_one_name_are_refused(frames, tmp_path):
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    Image.fromarray(frames[0]).save(tmp_path / "a.bmp")
    (tmp_path / "notes.txt").write_text("")
    said: list[str] = []
    source = open_images(str(tmp_path), rgb=False, say=said.append)
    assert said == ["1 other files there are no images and are left out"]
    with pytest.raises(UserError, match=r"a.bmp and a.png would be written to the same file"):
        check_distinct_stems(source)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").mkdir()
    with pytest.raises(UserError, match=r"for those in its subfolders"):
        open_images(str(tmp_path / "sub"), rgb=False)


def test_a_zip_whose_directory_is_damaged_is_no_store(frames, tmp_path):
    path = tmp_path / "run.zip"
    save_zarr(path, np.moveaxis(frames, 0, 2), (32, 48, 1))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at : at + 4] = b"XXXX"
    path.write_bytes(data)
    with pytest.raises(UserError, match="expected a zarr store"):
        ZarrFrames(path, rgb=False)


def test_a_chunk_of_many_frames_is_read_once_by_many_threads(frames, tmp_path, monkeypatch):
    save_zarr(tmp_path / "run.zarr", frames, frames.shape)
    store = ZarrFrames(tmp_path / "run.zarr", rgb=False, layout="nhw")
    reads = []
    read = store._array.__class__.__getitem__
    monkeypatch.setattr(
        store._array.__class__, "__getitem__", lambda *args: (reads.append(1), read(*args))[1]
    )
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(store.read, range(len(frames))))
    np.testing.assert_array_equal(np.stack(found)[..., 0], frames)
    assert len(reads) == 1


def test_blank_lines_of_a_list_are_no_frames(frames, tmp_path):
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    source = open_images("-", rgb=False, lines=[f"{tmp_path}/a.png\n", "\n", "   \n"])
    assert source.count == 1
