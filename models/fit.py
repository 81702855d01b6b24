"""A decoded picture to the input's size, and how to undo it: the fitting rules by name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.card import ImageInput
from models.errors import InvalidInput

Pixels = NDArray[np.uint8]
_PAD_GREY = 114


class Fitted(NamedTuple):
    """A picture brought to the input size, with what undoes it.

    Attributes:
        pixels: (height, width, 3) uint8 RGB.
        scale: (x, y) input pixels per pixel of the upright original.
        offset: (x, y) input pixel at which the original's left upper corner lies (negative when cropped).
        size: (width, height) of the upright original, pixels.
    """

    pixels: Pixels
    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]


def fit_picture(picture: Image.Image, spec: ImageInput) -> Fitted:
    """Brings an RGB or RGBX picture to the size that the card asks for."""
    return _FITS[spec.resize](picture, spec)


def fit_pixels(pixels: Pixels, spec: ImageInput) -> Fitted:
    """Brings decoded pixels, (H, W, 3) uint8, to the size that the card asks for."""
    return _FITS[spec.resize](Image.fromarray(pixels), spec)


def locate(width: int, height: int, spec: ImageInput) -> tuple[tuple[float, float], tuple[float, float]]:
    """Scale and offset that `load_input` gives a picture of that size, without the picture.

    Where a JPEG is decoded at a reduced scale first, letterbox may differ by the rounding of one pixel.

    Args:
        width: of the upright original, pixels.
        height: of the upright original, pixels.
        spec: the card's `input`; `center_crop` is not for boxes.

    Raises:
        InvalidInput: `center_crop`.
    """
    if spec.resize == "center_crop":
        raise InvalidInput("center_crop cuts boxes off; use stretch or letterbox")
    if spec.resize == "stretch":
        return (spec.width / width, spec.height / height), (0.0, 0.0)
    size, corner = _letterbox_place(width, height, spec)
    return (size[0] / width, size[1] / height), (float(corner[0]), float(corner[1]))


def keeps_size(size: tuple[int, int], spec: ImageInput) -> bool:
    """Whether a picture of that (width, height) is fitted by leaving it as it is."""
    return size == (spec.width, spec.height) and spec.resize != "center_crop"


def rgb_of(picture: Image.Image) -> Pixels:
    """The pixels of an RGB or RGBX picture, (H, W, 3)."""
    # Not np.asarray, which takes twice as long for a small picture.
    return np.frombuffer(picture.tobytes("raw", "RGB"), np.uint8).reshape(picture.height, picture.width, 3)


def _stretch(picture: Image.Image, spec: ImageInput) -> Fitted:
    size = (spec.width, spec.height)
    scale = (spec.width / picture.width, spec.height / picture.height)
    resized = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
    return Fitted(rgb_of(resized), scale, (0.0, 0.0), picture.size)


def _letterbox(picture: Image.Image, spec: ImageInput) -> Fitted:
    size, (left, top) = _letterbox_place(picture.width, picture.height, spec)
    page = np.full((spec.height, spec.width, 3), _PAD_GREY, np.uint8)
    page[top : top + size[1], left : left + size[0]] = rgb_of(picture.resize(size, Image.Resampling.BILINEAR))
    return Fitted(page, (size[0] / picture.width, size[1] / picture.height), (float(left), float(top)), picture.size)


def _letterbox_place(width: int, height: int, spec: ImageInput) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that a picture is scaled to, and the input pixel of its left upper corner."""
    ratio = min(spec.width / width, spec.height / height)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return size, ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2)


def _center_crop(picture: Image.Image, spec: ImageInput) -> Fitted:
    ratio = max(spec.width / picture.width, spec.height / picture.height) / spec.crop_fraction
    size = (max(spec.width, round(picture.width * ratio)), max(spec.height, round(picture.height * ratio)))
    left, top = (size[0] - spec.width) // 2, (size[1] - spec.height) // 2
    # Only the part that is kept is resampled: `box` is the crop in pixels of the original.
    sx, sy = size[0] / picture.width, size[1] / picture.height
    box = (left / sx, top / sy, (left + spec.width) / sx, (top + spec.height) / sy)
    cut = picture.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box)
    return Fitted(rgb_of(cut), (sx, sy), (-float(left), -float(top)), picture.size)


_FITS: dict[str, Callable[[Image.Image, ImageInput], Fitted]] = {
    "stretch": _stretch,
    "letterbox": _letterbox,
    "center_crop": _center_crop,
}
