import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from damages import changed_byte, closed_by_end_marker, cut_short, zeros_within
from yogo_jax.data import images
from yogo_jax.data.headers import (
    find_oriented,
    orientation_lines,
    orientation_of,
    read_orientation,
)
from yogo_jax.data.images import (
    decode_file,
    decode_image,
    is_image_name,
    read_image,
    resize_image,
)
from yogo_jax.errors import UserError


HW = (6, 8)
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, HW, np.uint8)
RGB = RNG.integers(0, 256, (*HW, 3), np.uint8)
LUMA = np.round(RGB @ [0.299, 0.587, 0.114])  # ITU-R BT.601
ORIENTATION = 0x0112
# What makes the stored pixels the picture, by the EXIF standard: which sides of the picture its
# stored first row and first column are.
UPRIGHT = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.T,  # left, top
    6: lambda stored: stored.T[:, ::-1],  # right, top
    7: lambda stored: stored.T[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.T[::-1],  # left, bottom
}
CASES = Path(__file__).parents[2] / "shared" / "cases"


def save(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def read(path, *, image_hw=HW, rgb=False):
    return read_image(path, image_hw=image_hw, rgb=rgb)


@pytest.mark.parametrize(
    "name", ["a.png", "a.tif", "a.tiff", "a.bmp", "A.PNG", "a.TIF"], ids=lambda name: name
)
def test_gray_formats_are_exact(tmp_path, name):
    path = save(tmp_path, Image.fromarray(GRAY), name)
    gray, rgb = read(path), read(path, rgb=True)
    assert gray.shape == (*HW, 1)
    assert gray.dtype == np.uint8
    np.testing.assert_array_equal(gray[..., 0], GRAY)
    np.testing.assert_array_equal(rgb, np.repeat(gray, 3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"], ids=lambda name: name)
def test_colour_formats(tmp_path, name):
    path = save(tmp_path, Image.fromarray(RGB), name)
    np.testing.assert_array_equal(read(path, rgb=True), RGB)
    np.testing.assert_allclose(read(path)[..., 0], LUMA, atol=1)


@pytest.mark.parametrize("keep_rgb", [False, True], ids=["ycbcr", "rgb"])
def test_jpeg(tmp_path, keep_rgb):
    smooth = np.asarray(Image.fromarray(RGB[:2, :2]).resize((64, 48), Image.Resampling.BICUBIC))
    path = save(tmp_path, Image.fromarray(smooth), "a.JPG", quality=98, keep_rgb=keep_rgb)
    rgb, gray = read(path, image_hw=(48, 64), rgb=True), read(path, image_hw=(48, 64))
    assert np.abs(rgb - smooth.astype(float)).mean() < 2
    assert gray.shape == (48, 64, 1)
    np.testing.assert_allclose(gray[..., 0], smooth @ [0.299, 0.587, 0.114], atol=4)


def palette_image(rgb, *, transparency=None):
    image = Image.fromarray(rgb).quantize(256)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


MODES = {
    "bits": (Image.fromarray(GRAY > 127), np.where(GRAY > 127, 255, 0), None),
    "gray_alpha": (Image.merge("LA", [Image.fromarray(GRAY)] * 2), GRAY, None),
    "colour_alpha": (Image.fromarray(np.dstack([RGB, GRAY])), LUMA, RGB),
    "palette": (palette_image(RGB), LUMA, RGB),
    "palette_one_transparent": (palette_image(RGB, transparency=3), LUMA, RGB),
    "palette_alphas": (palette_image(RGB, transparency=bytes(range(48))), LUMA, RGB),
}


@pytest.mark.parametrize(("image", "gray", "rgb"), MODES.values(), ids=MODES)
def test_modes(tmp_path, image, gray, rgb):
    path = save(tmp_path, image)
    np.testing.assert_allclose(read(path)[..., 0], gray, atol=1)
    rgb = np.repeat(np.asarray(gray)[..., None], 3, axis=2) if rgb is None else rgb
    np.testing.assert_array_equal(read(path, rgb=True), rgb)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"], ids=["tiff", "jpeg"])
def test_cmyk(tmp_path, name):
    colour = np.full((*HW, 3), (200, 100, 40), np.uint8)
    path = save(tmp_path, Image.fromarray(colour).convert("CMYK"), name)
    np.testing.assert_allclose(read(path, rgb=True), colour, atol=4)
    np.testing.assert_allclose(read(path), 123, atol=4)


def test_resize_averages_when_shrinking(tmp_path):
    columns = np.tile(np.uint8([0, 200]), (40, 40))
    small = read(save(tmp_path, Image.fromarray(columns)), image_hw=(10, 20))
    assert small.shape == (10, 20, 1)
    np.testing.assert_allclose(small[:, 2:-2], 100, atol=2)  # nearest would give 0 or 200


def test_resize_interpolates_when_enlarging(tmp_path):
    large = read(save(tmp_path, Image.fromarray(np.uint8([[0, 100]]))), image_hw=(1, 8))
    assert (np.diff(large[0, :, 0].astype(int)) >= 0).all()
    assert len(np.unique(large)) > 4


@pytest.mark.parametrize("orientation", range(1, 9), ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.png", {}),
        ("a.jpg", {"quality": 100}),
    ],
    ids=["tiff", "tiff_lzw", "png", "jpeg"],
)
@pytest.mark.parametrize("apply", [True, False], ids=["applied", "not applied"])
def test_orientation(tmp_path, name, options, orientation, apply):
    y, x = np.mgrid[:6, :8]
    stored = (20 * x + 12 * y).astype(np.uint8)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, image, name, exif=exif, **options)
    found = decode_image(path, rgb=False, apply_orientation=apply)[..., 0]
    expected = UPRIGHT[orientation](stored) if apply else stored
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=3)
    assert decode_file(path, rgb=False, apply_orientation=apply).orientation == orientation
    assert read_orientation(str(path)) == orientation
    resized = read_image(path, image_hw=HW, rgb=False, apply_orientation=apply)
    np.testing.assert_array_equal(resized, resize_image(found[..., None], HW))


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    image = Image.fromarray(GRAY)
    exif = image.getexif()
    exif[ORIENTATION] = 6
    path = save(tmp_path, image)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    data, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    path.write_bytes(data + png_chunk(b"eXIf", block) + end)
    np.testing.assert_array_equal(decode_image(path, rgb=False)[..., 0], UPRIGHT[6](GRAY))


class CountedReads(io.BufferedReader):
    """A file that notes how many bytes each read asks for."""

    def __init__(self, path):
        super().__init__(io.FileIO(path))
        self.asked = []

    def read(self, size=-1):
        self.asked.append(size)
        return super().read(size)


@pytest.mark.parametrize("behind", ["none", "text", "exif and text"])
def test_the_end_of_a_png_is_read_once_and_letters_are_no_exif(behind, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    large = np.tile(np.frombuffer(b"eXIf....", np.uint8), (200, 400))
    path = save(tmp_path, Image.fromarray(large), compress_level=0)
    data, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    chunks = data.count(b"IDAT")
    assert chunks > 5
    text = png_chunk(b"tEXt", b"note\0eXIf of 2025")
    if behind != "none":
        data += text
    if behind == "exif and text":
        data += png_chunk(b"eXIf", block) + text
    path.write_bytes(data + end)
    with CountedReads(path) as file, Image.open(file) as image:
        before = len(file.asked)
        assert orientation_of(image, file) == (8 if behind == "exif and text" else 1)
        assert len(file.asked) == before + 1
        assert 0 < file.asked[-1] <= 1 << 16
        np.testing.assert_array_equal(np.asarray(image), large)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"], ids=["png", "jpeg"])
def test_an_exif_block_that_cannot_be_read_turns_nothing(tmp_path, name):
    path = save(tmp_path, Image.fromarray(GRAY), name, exif=b"Exif\0\0nothing of the kind")
    assert decode_image(path, rgb=False).shape == (*HW, 1)


def test_images_that_are_not_upright_are_found_and_told(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    plain = save(tmp_path, Image.fromarray(GRAY), "a.png")
    turned = save(tmp_path, Image.fromarray(GRAY), "b.jpg", exif=exif)
    paths = [str(plain), str(tmp_path / "missing.png"), str(turned)]
    assert find_oriented(paths) == {2: 8}
    # More than are handed to a thread at a time.
    assert find_oriented([*[str(plain)] * 600, str(turned)]) == {600: 8}
    assert find_oriented([]) == {}
    assert orientation_lines(0, applied=True) == []
    assert "1 image has an orientation" in orientation_lines(1, applied=True)[0]
    assert "2 images have" in orientation_lines(2, applied=False)[0]
    assert "data.apply_orientation is False" in orientation_lines(2, applied=False)[0]


def test_suffix_does_not_decide(tmp_path):
    path = save(tmp_path, Image.fromarray(GRAY), "a.png")
    np.testing.assert_array_equal(read(path.rename(tmp_path / "a.bmp"))[..., 0], GRAY)


def png_chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png_16_bit_colour(path):
    """A 16-bit RGB PNG by hand, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 257)
    header = struct.pack(">IIBBBBB", HW[1], HW[0], 16, 2, 0, 0, 0)
    body = (
        png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


DEEP = {
    "png_16": ("a.png", GRAY.astype(np.uint16) * 257),
    "tiff_16": ("a.tif", GRAY.astype(np.uint16) * 257),
    "tiff_16_big_endian": ("a.tif", GRAY.astype(">u2")),
    "tiff_32": ("a.tif", GRAY.astype(np.int32)),
    "tiff_float": ("a.tif", GRAY.astype(np.float32)),
}


@pytest.mark.parametrize(("name", "pixels"), DEEP.values(), ids=DEEP)
def test_deep_pixels_are_refused(tmp_path, name, pixels):
    path = save(tmp_path, Image.fromarray(pixels), name)
    with pytest.raises(UserError, match=r"expected 8 bits a channel; .* save as 8 bit") as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_16_bit_colour_is_refused(tmp_path):
    png_16_bit_colour(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"  # the trap: Pillow drops the lower bytes without a word
    with pytest.raises(UserError, match="expected 8 bits a channel"):
        read(tmp_path / "a.png", rgb=True)


def test_signed_pixels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY.astype(np.int8), metadata=None)
    with pytest.raises(UserError, match="signed pixels, -128 to 127; expected 0 to 255"):
        read(tmp_path / "a.tif")


def test_a_huge_image_is_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path, Image.fromarray(GRAY))
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", GRAY.size // 2 - 1)
    with pytest.raises(UserError, match=r"an image of more than 46 px; .* cut it into parts") as at:
        read(path)
    assert "damaged" not in str(at.value)
    assert "cannot be decoded" not in str(at.value)


def test_stack_is_refused(tmp_path):
    pages = [Image.fromarray(GRAY)] * 3
    path = save(tmp_path, pages[0], "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="a stack of 3 images; expected one image a file; save"):
        read(path)


def damaged(tmp_path, kind):
    path = tmp_path / "a.png"
    image = Image.fromarray(RNG.integers(0, 256, (64, 64), np.uint8))
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not an image")
    elif kind in {"gif", "webp"}:
        image.save(path, format=kind)
    else:
        suffix = kind.split("_")[1]
        image.save(path, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        content = path.read_bytes()
        path.write_bytes(content[: 20 if kind.startswith("head") else len(content) // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "Is a directory"),
        ("empty", "empty (0 bytes)"),
        ("text", "not an image in PNG, JPEG, TIFF or BMP"),
        ("gif", "not an image in PNG, JPEG, TIFF or BMP"),
        ("webp", "not an image in PNG, JPEG, TIFF or BMP"),
        ("half_png", "cannot be decoded"),
        ("half_jpg", "cannot be decoded"),
        ("half_bmp", "cannot be decoded"),
        ("half_tif", ""),
        ("head_png", ""),
        ("head_jpg", ""),
        ("head_bmp", ""),
        ("head_tif", ""),
    ],
    ids=lambda value: value if "_" in value or value.isalpha() else "",
)
@pytest.mark.parametrize("rgb", [False, True], ids=["gray", "rgb"])
def test_damaged_files(tmp_path, kind, message, rgb):
    path = damaged(tmp_path, kind)
    with pytest.raises(UserError) as error:
        read(path, image_hw=(64, 64), rgb=rgb)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def picture(*, colour=False):
    """A frame with structure of all sizes, as JPEG files of microscopes hold it."""
    rng = np.random.default_rng(3)
    shape = (30, 40, 3) if colour else (30, 40)
    coarse = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
    smooth = np.asarray(coarse.resize((250, 190), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image, name, **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


JPEGS = {
    "gray": (False, {"quality": 90}),
    "colour": (True, {"quality": 75}),
    "colour_444": (True, {"quality": 95, "subsampling": 0}),
    "colour_422": (True, {"quality": 60, "subsampling": 1}),
    "colour_rgb": (True, {"quality": 90, "keep_rgb": True}),
    "progressive": (False, {"quality": 90, "progressive": True}),
    "progressive_colour": (True, {"quality": 90, "progressive": True}),
    "restarts": (False, {"quality": 90, "restart_marker_rows": 1}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("rgb", [False, True], ids=["gray", "rgb"])
def test_intact_jpegs_have_the_pixels_that_pillow_gives(tmp_path, kind, rgb):
    colour, options = JPEGS[kind]
    path = save(tmp_path, picture(colour=colour), "a.jpg", **options)
    with Image.open(path) as image:
        if not rgb:
            image.draft("L", image.size)  # the luma alone
        expected = np.asarray(image.convert("RGB" if rgb else "L"))
    found = decode_image(path, rgb=rgb)
    np.testing.assert_array_equal(found if rgb else found[..., 0], expected)


def caught(path, data, damage, count=60):
    """Of so many damages, how many are refused; none of the rest changes the size."""
    rng = np.random.default_rng(7)
    path.write_bytes(data)
    shape = decode_image(path, rgb=False).shape
    refused = 0
    for _ in range(count):
        path.write_bytes(damage(data, rng))
        try:
            assert decode_image(path, rgb=False).shape == shape
        except UserError:
            refused += 1
    return refused


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("damage", [cut_short, closed_by_end_marker])
def test_a_jpeg_of_which_a_part_is_gone_is_refused(tmp_path, kind, damage):
    colour, options = JPEGS[kind]
    data = encoded(picture(colour=colour), "JPEG", **options)
    assert caught(tmp_path / "a.jpg", data, damage) == 60


def of_another_jfif_revision(data):
    at = data.index(b"JFIF\0") + 5
    return data[:at] + b"\x02\x01" + data[at + 2 :]


def with_stray_bytes(data, marker=b"\xff\xda", stray=b"\0"):
    at = data.index(marker)
    return data[:at] + stray + data[at:]


HARMLESS = {
    "JFIF 2.01": of_another_jfif_revision,
    "a stray byte before the tables": lambda data: with_stray_bytes(data, b"\xff\xdb"),
    "stray bytes before the pixels": lambda data: with_stray_bytes(data, stray=b"a\xff\0bc"),
    "both": lambda data: with_stray_bytes(of_another_jfif_revision(data)),
}


@pytest.mark.parametrize("spoil", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind != "colour_rgb"])
def test_warnings_of_a_jpeg_that_are_not_of_its_pixels_pass(tmp_path, kind, spoil):
    colour, options = JPEGS[kind]
    data = encoded(picture(colour=colour), "JPEG", **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    expected = decode_image(path, rgb=True)
    path.write_bytes(spoil(data))
    np.testing.assert_array_equal(decode_image(path, rgb=True), expected)
    # Damage behind the header is still seen.
    assert caught(path, spoil(data), closed_by_end_marker, count=20) == 20


def test_stray_bytes_between_the_pixels_are_damage(tmp_path):
    data = encoded(picture(), "JPEG", progressive=True)
    path = tmp_path / "a.jpg"
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last] + bytes(30) + data[last:])
    with pytest.raises(UserError, match="extraneous bytes"):
        decode_image(path, rgb=False)


def test_most_lost_sectors_of_a_jpeg_are_refused(tmp_path):
    data = encoded(picture(), "JPEG", quality=90)
    assert caught(tmp_path / "a.jpg", data, zeros_within) >= 50
    # Of other bytes many make another picture that is as valid; nobody can see these.
    assert caught(tmp_path / "a.jpg", data, changed_byte) >= 20


def test_a_damaged_jpeg_of_print_colours_is_refused(tmp_path):
    data = encoded(picture(colour=True).convert("CMYK"), "JPEG", quality=90)
    assert caught(tmp_path / "a.jpg", data, closed_by_end_marker) == 60


@pytest.mark.parametrize("damage", [cut_short, zeros_within, changed_byte])
@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate"])
def test_damaged_deflate_in_tiff_is_refused(tmp_path, compression, damage):
    data = encoded(picture(), "TIFF", compression=compression)
    assert caught(tmp_path / "a.tif", data, damage) == 60


def test_damaged_tiles_of_deflate_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    pixels = np.asarray(picture())
    tifffile.imwrite(path, pixels, compression="zlib", tile=(64, 64), metadata=None)
    np.testing.assert_array_equal(decode_image(path, rgb=False)[..., 0], pixels)
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages.first.dataoffsets[-1] + tiff.pages.first.databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[last - 1] ^= 1  # the checksum alone
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged Deflate data"):
        read(path)


def test_damaged_jpeg_in_tiff_is_refused(tmp_path):
    data = encoded(picture(), "TIFF", compression="jpeg")
    assert caught(tmp_path / "a.tif", data, zeros_within) == 60


def test_damaged_pictures_of_the_cases():
    folder = CASES / "damaged-jpeg"
    if not folder.is_dir():
        pytest.skip("the shared cases are not here")
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        assert decode_image(folder / "good" / name, rgb=False).shape == (772, 1032, 1)
        with pytest.raises(UserError, match="cannot be decoded"):
            decode_image(folder / "bad" / name, rgb=False)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "tiff", "bmp"], ids=str)
def test_random_damage_raises_nothing_but_user_errors(tmp_path, suffix):
    rng = np.random.default_rng(1)
    path = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 256, (16, 16), np.uint8)).save(path, format=suffix)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(150):
        changed = content.copy()
        changed[rng.integers(0, min(len(content), 120), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(changed.tobytes()[: rng.integers(len(content) // 2, len(content) + 1)])
        try:
            assert read(path, image_hw=(16, 16)).shape == (16, 16, 1)
        except UserError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.PnG", True),
        ("a.b.jpeg", True),
        ("a.tiff", True),
        (".a.png", False),
        ("._a.png", False),
        ("a.txt", False),
        ("png", False),
    ],
    ids=str,
)
def test_is_image_name(name, expected):
    assert is_image_name(name) is expected
