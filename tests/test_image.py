"""What each kind of file becomes: upright RGB, 8 bit, on white, the first frame."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.card import ImageInput
from models.image import FORMATS, decode_image, encode_png, is_light, load_input, sniff_format
from tests.conftest import jpeg, noise, png

RGB = noise(20, 12)
UPRIGHT = Image.fromarray(np.repeat(np.repeat(noise(5, 3, seed=1), 16, axis=0), 16, axis=1))
# What a camera stores when the picture must be turned as the orientation says: the turn's inverse.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(width: int, depth: int, colour: int, row: bytes, *extra: bytes) -> bytes:
    """A PNG of one row whose samples are given as they are stored."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def turned(orientation: int, form: str, **options: Any) -> bytes:
    stored, exif = STORED[orientation], Image.Exif()
    exif[0x0112] = orientation
    return save(UPRIGHT if stored is None else UPRIGHT.transpose(stored), form, exif=exif, **options)


def values(data: bytes) -> list[list[int]]:
    """The pixels of the first row."""
    found: list[list[int]] = decode_image(data)[0].tolist()
    return found


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_stored(form: str) -> None:
    data = save(Image.fromarray(RGB), form, **({"lossless": True} if form == "WEBP" else {}))
    assert sniff_format(data) == form
    decoded = decode_image(data)
    assert (decoded.dtype.name, decoded.shape) == ("uint8", (20, 12, 3))
    assert np.array_equal(decoded, RGB)


def test_a_jpeg_gives_nearly_the_pixels_that_were_stored() -> None:
    assert np.abs(decode_image(save(UPRIGHT, "JPEG", quality=100, subsampling=0)) - np.asarray(UPRIGHT, int)).max() <= 4


def test_the_accepted_formats_are_four() -> None:
    assert FORMATS == ("JPEG", "PNG", "WEBP", "BMP")


def test_encoded_pixels_come_back() -> None:
    assert np.array_equal(decode_image(encode_png(RGB)), RGB)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_every_exif_orientation_gives_the_same_upright_picture(form: str, orientation: int) -> None:
    losses: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    decoded = decode_image(turned(orientation, form, **losses.get(form, {})))
    assert decoded.shape == (80, 48, 3)
    assert np.abs(decoded.astype(int) - np.asarray(UPRIGHT, int)).max() <= (4 if form == "JPEG" else 0)


@pytest.mark.parametrize("odd", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(odd: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = odd
    assert np.array_equal(decode_image(save(Image.fromarray(RGB), "PNG", exif=exif)), RGB)


def test_the_orientation_of_xmp_is_applied_too() -> None:
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    data = save(UPRIGHT.transpose(Image.Transpose.ROTATE_90), "WEBP", lossless=True, xmp=xmp)
    assert np.array_equal(decode_image(data), np.asarray(UPRIGHT))


def test_a_16_bit_grey_ramp_is_scaled_not_clipped() -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16)[None]
    decoded = decode_image(png(ramp))  # type: ignore[arg-type]
    assert decoded.shape == (1, 4096, 3)
    assert np.abs(decoded[0] / 255 - ramp[0][:, None] / 65535).max() <= 1 / 255
    assert decoded.min() == 0
    assert decoded[0, -1].tolist() == [255, 255, 255]


def test_a_16_bit_colour_ramp_is_scaled_not_clipped() -> None:
    ramp = np.arange(0, 65536, 97, dtype=np.uint16)
    rgb = np.stack([ramp, ramp[::-1], ramp], axis=1).astype(">u2")
    decoded = decode_image(raw_png(len(ramp), 16, 2, rgb.tobytes()))
    assert np.abs(decoded[0] / 255 - rgb / 65535).max() <= 1 / 255


def test_1_bit_and_grey_pictures_become_three_equal_channels() -> None:
    assert values(raw_png(4, 1, 0, bytes([0b01010000]))) == [[0] * 3, [255] * 3, [0] * 3, [255] * 3]
    assert values(raw_png(4, 2, 0, bytes([0b00011011]))) == [[0] * 3, [85] * 3, [170] * 3, [255] * 3]
    assert values(raw_png(3, 8, 0, bytes([0, 77, 255]))) == [[0] * 3, [77] * 3, [255] * 3]
    assert np.array_equal(decode_image(jpeg(np.full((8, 8), 90, np.uint8))), np.full((8, 8, 3), 90))


def test_a_palette_becomes_its_colours() -> None:
    colours = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 0]))
    assert values(raw_png(2, 8, 3, bytes([1, 0]), colours)) == [[200, 100, 0], [10, 20, 30]]


@pytest.mark.parametrize(
    ("alphas", "second"), [(b"\xff\x00", [255, 255, 255]), (b"\xff\x80", [227, 177, 127]), (b"\xff", [200, 100, 0])]
)
def test_transparent_palette_entries_are_composited_on_white(alphas: bytes, second: list[int]) -> None:
    colours = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 0]))
    assert values(raw_png(2, 8, 3, bytes([0, 1]), colours, chunk(b"tRNS", alphas))) == [[10, 20, 30], second]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_composited_on_white(form: str) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    data = save(Image.fromarray(rgba), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    assert values(data) == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]


def test_grey_with_alpha_is_composited_on_white() -> None:
    assert values(raw_png(3, 8, 4, bytes([0, 255, 0, 0, 100, 51]))) == [[0] * 3, [255] * 3, [224] * 3]
    deep = struct.pack(">6H", 0, 65535, 0, 0, 25700, 13107)
    assert values(raw_png(3, 16, 4, deep)) == [[0] * 3, [255] * 3, [224] * 3]


def test_a_transparent_colour_of_a_picture_without_alpha_becomes_white() -> None:
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert values(raw_png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), key)) == [[255] * 3, [4, 5, 6]]
    assert values(raw_png(2, 8, 0, bytes([30, 31]), chunk(b"tRNS", b"\0\x1e"))) == [[255] * 3, [31] * 3]
    deep = struct.pack(">HH", 300, 257)
    assert values(raw_png(2, 16, 0, deep, chunk(b"tRNS", struct.pack(">H", 300)))) == [[255] * 3, [1] * 3]


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpegs_become_rgb(adobe: bool) -> None:
    """Pillow writes the Adobe marker and inverted inks; inks are read as Adobe's whether the marker is there or not."""
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = save(inks, "JPEG", quality=100)
    start = data.index(b"\xff\xee")
    assert data[start + 4 : start + 9] == b"Adobe"
    if not adobe:
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    assert np.abs(decode_image(data).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(form: str) -> None:
    frames = [Image.fromarray(noise(20, 12, seed=seed)) for seed in range(3)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = save(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    assert np.array_equal(decode_image(data), RGB)


def test_of_an_mpo_the_first_picture_counts() -> None:
    first, second = UPRIGHT, Image.new("RGB", UPRIGHT.size)
    data = save(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert data.count(b"\xff\xd8\xff") == 2
    assert np.array_equal(decode_image(data), decode_image(save(first, "JPEG", quality=95)))


@pytest.mark.parametrize("progressive", [False, True])
def test_what_trails_a_jpeg_is_ignored_even_if_it_looks_like_scans(progressive: bool) -> None:
    data = jpeg(RGB, progressive=progressive)
    for tail in (b"PK\x03\x04" + bytes(1024), b"\xff\xda" * 500):
        assert np.array_equal(decode_image(data + tail), decode_image(data))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_trailing_bytes_are_ignored(form: str) -> None:
    data = save(Image.fromarray(RGB), form)
    assert np.array_equal(decode_image(data + b"PK\x03\x04" + bytes(1024)), decode_image(data))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "center_crop"])
def test_thin_pictures_are_decoded_and_fitted(shape: tuple[int, int], form: str, resize: Any) -> None:
    data = save(Image.fromarray(np.full((*shape, 3), 200, np.uint8)), form)
    assert decode_image(data).shape == (*shape, 3)
    assert load_input(data, ImageInput(height=28, width=20, resize=resize)).pixels.shape == (28, 20, 3)


def test_eight_threads_decode_the_same_pixels() -> None:
    spec = ImageInput(height=28, width=28)
    for data in (jpeg(noise(300, 200)), png(noise(60, 40)), turned(6, "WEBP")):
        once = load_input(data, spec).pixels.tobytes()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda one: load_input(one, spec).pixels.tobytes(), [data] * 64)) == {once}


@pytest.mark.parametrize(
    ("data", "light"),
    [
        (save(Image.fromarray(noise(200, 300)), "JPEG"), True),
        (save(Image.new("RGB", (2000, 2000)), "JPEG"), True),
        (save(Image.new("RGB", (2001, 2000)), "JPEG"), False),
        (save(Image.new("RGB", (50, 50)), "JPEG", progressive=True), False),
        (save(Image.fromarray(noise(400, 500)), "JPEG", quality=100), False),
        (save(Image.new("RGB", (50, 50)), "JPEG")[:20], False),
        (save(Image.new("RGB", (1000, 1000)), "PNG"), True),
        (save(Image.new("RGB", (1001, 1000)), "PNG"), False),
        (save(Image.new("RGB", (9, 9)), "PNG")[:33] + save(Image.new("RGB", (2000, 2000)), "PNG")[8:], False),
        (save(Image.fromarray(noise(400, 400)), "PNG"), False),
        (save(Image.new("RGB", (50, 50)), "WEBP"), False),
        (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10 + save(Image.new("RGB", (50, 50)), "JPEG")[2:], True),
        (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 50 + save(Image.new("RGB", (50, 50)), "JPEG")[2:], False),
        (b"no picture", False),
        (b"", False),
    ],
)
def test_what_is_light_is_told_by_the_header(data: bytes, light: bool) -> None:
    assert is_light(data) is light
