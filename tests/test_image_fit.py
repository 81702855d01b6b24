"""How a picture is brought to the input's size, and that scale and offset lead back to the upright original."""

import io
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.card import ImageInput
from models.fit import Fitted, fit_pixels
from models.image import decode_image, load_input
from tests.conftest import jpeg, noise, png

Resize = Literal["stretch", "letterbox", "center_crop"]
RESIZES: list[Resize] = ["stretch", "letterbox", "center_crop"]
GREY = 114


def ramps(height: int, width: int) -> NDArray[np.uint8]:
    """Red says how far right a pixel lies, green how far down: 0 to 255 over the picture."""
    out = np.full((height, width, 3), 40, np.uint8)
    out[..., 0] = np.rint((np.arange(width) + 0.5) / width * 255)[None]
    out[..., 1] = np.rint((np.arange(height) + 0.5) / height * 255)[:, None]
    return out


def rotated_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """As a camera held upright stores them: lying, with orientation 6."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def assert_geometry(fitted: Fitted, height: int, width: int, tolerance: float) -> None:
    """Each pixel of the input shows the place of the original that scale and offset lead to."""
    rows, columns = np.indices(fitted.pixels.shape[:2]) + 0.5
    x = (columns - fitted.offset[0]) / fitted.scale[0] / width
    y = (rows - fitted.offset[1]) / fitted.scale[1] / height
    inside = (x > 0.05) & (x < 0.95) & (y > 0.05) & (y < 0.95)
    assert inside.any()
    assert np.abs(fitted.pixels[..., 0] - 255 * x)[inside].max() <= tolerance
    assert np.abs(fitted.pixels[..., 1] - 255 * y)[inside].max() <= tolerance


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("height", "width"), [(333, 517), (517, 333), (401, 400)])
def test_scale_and_offset_lead_to_the_upright_original(
    resize: Resize, draft: bool, rotated: bool, height: int, width: int
) -> None:
    spec = ImageInput(height=40, width=48, resize=resize, draft=draft)
    pixels = ramps(height, width)
    fitted = load_input(rotated_jpeg(pixels) if rotated else jpeg(pixels), spec)
    assert fitted.pixels.shape == (40, 48, 3)
    assert_geometry(fitted, height, width, 6.0)


@pytest.mark.parametrize("resize", RESIZES)
def test_the_geometry_of_a_draft_is_that_of_the_whole_picture(resize: Resize) -> None:
    for data in (jpeg(ramps(500, 497)), rotated_jpeg(ramps(500, 497))):
        spec = ImageInput(height=28, width=28, resize=resize)
        drafted, whole = load_input(data, spec), load_input(data, spec.model_copy(update={"draft": False}))
        assert drafted.scale == pytest.approx(whole.scale, rel=0.02)
        assert drafted.offset == pytest.approx(whole.offset, abs=1.0)
        assert np.abs(drafted.pixels.astype(int) - whole.pixels).max() <= 8


def test_the_scale_of_a_turned_draft_is_exact_where_the_draft_is_square_and_the_original_is_not() -> None:
    fitted = load_input(rotated_jpeg(ramps(500, 497)), ImageInput(height=28, width=28))
    assert fitted.scale == pytest.approx((28 / 497, 28 / 500), rel=1e-12)


def test_stretch_scales_each_side_on_its_own() -> None:
    fitted = fit_pixels(noise(30, 60), ImageInput(height=15, width=20))
    assert (fitted.scale, fitted.offset) == ((20 / 60, 15 / 30), (0.0, 0.0))


@pytest.mark.parametrize("resize", RESIZES)
def test_a_picture_of_the_inputs_size_is_left_as_it_is(resize: Resize) -> None:
    pixels = noise(28, 28)
    fitted = fit_pixels(pixels, ImageInput(height=28, width=28, resize=resize, crop_fraction=1.0))
    assert np.array_equal(fitted.pixels, pixels)
    assert (fitted.scale, fitted.offset) == ((1.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize("resize", RESIZES)
def test_decoding_then_fitting_is_loading(resize: Resize) -> None:
    data, spec = png(noise(50, 70)), ImageInput(height=28, width=20, resize=resize)
    assert np.array_equal(fit_pixels(decode_image(data), spec).pixels, load_input(data, spec).pixels)


def test_letterbox_pads_with_grey_on_both_sides() -> None:
    white = np.full((10, 40, 3), 255, np.uint8)
    fitted = fit_pixels(white, ImageInput(height=20, width=20, resize="letterbox"))
    assert (fitted.scale, fitted.offset) == ((0.5, 0.5), (0.0, 7.0))
    assert (fitted.pixels[7:12] == 255).all()
    assert (fitted.pixels[:7] == GREY).all()
    assert (fitted.pixels[12:] == GREY).all()


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (600, 601), (100, 90)])
def test_center_crop_is_torchvisions_resize_and_center_crop(size: tuple[int, int]) -> None:
    height, width = size
    smooth = Image.fromarray(noise(height // 10, width // 10)).resize((width, height), Image.Resampling.BICUBIC)
    short = min(size)
    scaled = smooth.resize((int(256 * width / short), int(256 * height / short)), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - 224) / 2), round((scaled.height - 224) / 2)
    expected = np.asarray(scaled.crop((left, top, left + 224, top + 224)), int)
    spec = ImageInput(height=224, width=224, resize="center_crop", crop_fraction=0.875)
    gap = np.abs(fit_pixels(np.asarray(smooth), spec).pixels - expected)
    assert gap.mean() < 1.5
    assert np.quantile(gap, 0.99) <= 10


def test_a_draft_is_not_smaller_than_what_a_narrow_crop_needs() -> None:
    spec = ImageInput(height=28, width=28, resize="center_crop", crop_fraction=0.1)
    smooth = Image.fromarray(noise(56, 56)).resize((560, 560), Image.Resampling.BICUBIC)
    data = jpeg(np.asarray(smooth))
    whole = load_input(data, spec.model_copy(update={"draft": False}))
    assert np.abs(load_input(data, spec).pixels.astype(int) - whole.pixels).mean() <= 4


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.sampled_from(RESIZES), st.data()
)
def test_any_picture_fits_any_input(height: int, width: int, rows: int, columns: int, resize: Any, data: Any) -> None:
    kept = data.draw(st.floats(0.05, 1.0))
    spec = ImageInput(height=rows, width=columns, resize=resize, crop_fraction=kept)
    fitted = fit_pixels(np.full((height, width, 3), 200, np.uint8), spec)
    assert fitted.pixels.shape == (rows, columns, 3)
    assert set(np.unique(fitted.pixels)) <= ({200, GREY} if resize == "letterbox" else {200})
    assert min(fitted.scale) > 0
    assert (max(fitted.offset) <= 0) == (resize != "letterbox" or max(fitted.offset) == 0)
