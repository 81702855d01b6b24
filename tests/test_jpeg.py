"""The quick way to a plain JPEG's pixels gives what Pillow gives, and leaves to Pillow what it should."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from models import jpeg
from models.card import ImageInput
from models.errors import UndecodableImage
from models.image import decode_image, load_at_once, load_input
from tests.conftest import noise, png
from tests.test_image import save, turned


def pillow(data: bytes) -> Image.Image:
    picture = JpegImageFile(io.BytesIO(data))
    picture.load()
    return picture.convert("RGB")


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (28, 28), (64, 48), (127, 128)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"quality": 30}])
def test_the_pixels_are_pillows(size: tuple[int, int], options: dict[str, int]) -> None:
    data = save(Image.fromarray(noise(*size)), "JPEG", **options)
    header, pixels = jpeg.read_header(data), jpeg.decode(data, (size[1], size[0]), "RGBX")
    assert header is not None and header.plain and header.size == (size[1], size[0])
    assert pixels is not None and np.array_equal(pixels[:, :, :3], np.asarray(pillow(data)))
    rgb = jpeg.decode(data, (size[1], size[0]), "RGB")
    assert rgb is not None and np.array_equal(pixels[:, :, :3], rgb)


@pytest.mark.parametrize("least", [3, 8, 15, 16, 31, 64, 100])
def test_a_smaller_scale_is_pillows_draft(least: int) -> None:
    for size in ((64, 64), (127, 90), (33, 128)):
        data = save(Image.fromarray(noise(*size)), "JPEG")
        draft = JpegImageFile(io.BytesIO(data))
        draft.draft("RGB", (least, least))
        draft.load()
        scaled = jpeg.scaled_size((size[1], size[0]), least)
        pixels = jpeg.decode(data, scaled, "RGB")
        assert scaled == draft.size and pixels is not None and np.array_equal(pixels, np.asarray(draft))


def test_grey_is_grey() -> None:
    data = save(Image.fromarray(noise(20, 12)).convert("L"), "JPEG")
    spec = ImageInput(height=20, width=12)
    assert np.array_equal(load_input(data, spec).pixels, np.asarray(pillow(data)))


@pytest.mark.parametrize("size", [(32, 48), (64, 96), (60, 90), (481, 641)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "center_crop"])
def test_the_input_is_the_one_that_pillow_leads_to(resize: str, size: tuple[int, int]) -> None:
    data = save(Image.fromarray(noise(*size)), "JPEG")
    spec = ImageInput.model_validate({"height": 32, "width": 48, "resize": resize, "draft": False})
    long_way = save(pillow(data), "PNG")
    quick, slow = load_input(data, spec), load_input(long_way, spec)
    assert np.array_equal(quick.pixels, slow.pixels) and quick.pixels.flags.c_contiguous
    assert (quick.scale, quick.offset) == (slow.scale, slow.offset)


def tagged(data: bytes) -> bytes:
    """The same picture with a comment that looks like EXIF, so that it goes Pillow's way."""
    note = b"xif"
    return data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "center_crop"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"quality": 30}])
def test_both_ways_lead_to_the_same_input_of_a_photograph(options: dict[str, int], resize: str, draft: bool) -> None:
    spec = ImageInput.model_validate({"height": 64, "width": 96, "resize": resize, "draft": draft})
    for size in ((480, 640), (333, 201), (65, 1000), (1031, 777)):
        data = save(Image.fromarray(noise(*size)), "JPEG", **options)
        header, other = jpeg.read_header(data), jpeg.read_header(tagged(data))
        assert header is not None and header.plain and other is not None and not other.plain
        quick, slow = load_input(data, spec), load_input(tagged(data), spec)
        assert np.array_equal(quick.pixels, slow.pixels) and quick[1:] == slow[1:]


@pytest.mark.parametrize("kind", ["progressive", "turned", "CMYK"])
def test_what_is_not_plain_goes_the_long_way(kind: str) -> None:
    picture = Image.fromarray(noise(20, 12))
    data = {
        "progressive": save(picture, "JPEG", progressive=True),
        "turned": turned(6, "JPEG"),
        "CMYK": save(picture.convert("CMYK"), "JPEG"),
    }[kind]
    header = jpeg.read_header(data)
    assert header is not None and not header.plain
    assert decode_image(data).shape[2] == 3


def test_a_picture_that_is_cut_off_is_refused_all_the_same() -> None:
    data = save(Image.fromarray(noise(60, 60)), "JPEG")
    assert jpeg.decode(data[: len(data) // 2], (60, 60), "RGBX") is None
    with pytest.raises(UndecodableImage, match="damaged or cut off"):
        load_input(data[: len(data) // 2], ImageInput(height=60, width=60))


SPEC = ImageInput(height=16, width=16)


def test_small_is_what_the_header_and_the_file_say_together() -> None:
    for small in (save(Image.fromarray(noise(64, 64)), "JPEG", quality=50), png(noise(8, 8))):
        quick = load_at_once(small, SPEC)
        assert quick is not None and np.array_equal(quick.pixels, load_input(small, SPEC).pixels)
    with pytest.raises(UndecodableImage, match="not a JPEG"):
        load_at_once(b"no picture", SPEC)
    white = Image.new("RGB", (4000, 4000), "white")
    assert load_at_once(save(white.resize((200, 200)), "JPEG"), SPEC) is None
    bomb = save(white.convert("1"), "PNG")
    assert len(bomb) < 16 * 1024 and load_at_once(bomb, SPEC) is None
    assert load_at_once(png(noise(128, 128)), SPEC) is None


def test_a_small_frame_inside_a_comment_does_not_make_a_picture_small() -> None:
    large = save(Image.new("RGB", (600, 600), "white"), "JPEG")
    frame = bytes.fromhex("ffc0001108000800080301220002110103110100")
    hidden = large[:2] + b"\xff\xfe" + (len(frame) + 2).to_bytes(2, "big") + frame + large[2:]
    assert load_at_once(hidden, SPEC) is None and decode_image(hidden).shape == (600, 600, 3)
