import numpy as np
import pytest
from PIL import Image

from yogo_jax.data.images import is_image_name, read_image
from yogo_jax.errors import UserError


HW = (6, 8)
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, HW, np.uint8)
RGB = RNG.integers(0, 256, (*HW, 3), np.uint8)
LUMA = np.round(RGB @ [0.299, 0.587, 0.114])  # ITU-R BT.601
ORIENTATION = 0x0112


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
def test_orientation_is_not_applied(tmp_path, name, options, orientation):
    y, x = np.mgrid[:6, :8]
    image = Image.fromarray((20 * x + 12 * y).astype(np.uint8))
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, image, name, exif=exif, **options)
    np.testing.assert_allclose(read(path)[..., 0], image, atol=3)


def test_suffix_does_not_decide(tmp_path):
    path = save(tmp_path, Image.fromarray(GRAY), "a.png")
    np.testing.assert_array_equal(read(path.rename(tmp_path / "a.bmp"))[..., 0], GRAY)


def png_16_bit_colour(path):
    """A 16-bit RGB PNG by hand, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 257)
    header = struct.pack(">IIBBBBB", HW[1], HW[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
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
