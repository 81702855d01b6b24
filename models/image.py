"""Encoded bytes to the graph's input: the one preprocessing, used by training and serving alike.

Rules, stated once: JPEG, PNG, WebP and BMP; EXIF orientation applied; 16-bit pictures scaled (not clipped) to 8 bit;
transparency composited on white; CMYK, palette, grey and 1-bit pictures converted to RGB; the first frame of an
animation; trailing bytes ignored. Truncated or damaged files are refused.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models import jpeg
from models.card import ImageInput
from models.errors import ImageTooLarge, InvalidInput, UndecodableImage

# The plugins by name, not Image.open: no other decoder (EPS starts Ghostscript) can be reached, and the
# limits below stand in for Pillow's own, which warn too late.
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}
FORMATS = tuple(_OPENERS)
_PAD_GREY = 114
_ORIENTATION = 0x0112
_ORIENTATION_SOURCES = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {5, 6, 7, 8}
# Each part of a file costs its reader some microseconds; a body of empty ones would take it a minute.
_MOST_PARTS = 16_384
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_SMALL_BYTES, _SMALL_PIXELS = 16 * 1024, 128 * 128

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may ask of the decoder. Checked from the header, before any pixel is decoded.

    Attributes:
        pixels: width x height at most.
        side: longest side at most, pixels.
        scans: scans of a JPEG at most (a 100 KB file can ask for thousands, each a pass over the whole picture).
    """

    pixels: int = 25_000_000
    side: int = 8192
    scans: int = 64


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class Fitted:
    """A picture brought to the input size, with what undoes it.

    Attributes:
        pixels: (height, width, 3) uint8 RGB.
        scale: (x, y) input pixels per pixel of the upright original.
        offset: (x, y) input pixel at which the original's left upper corner lies (negative when cropped).
    """

    pixels: Pixels
    scale: tuple[float, float]
    offset: tuple[float, float]


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decodes at full size.

    Args:
        data: the encoded file.
        limits: what it may ask for.

    Returns:
        (H, W, 3) uint8 RGB, upright.

    Raises:
        UndecodableImage: not a whole picture of an accepted format.
        ImageTooLarge: over a limit.
    """
    return _rgb(_open_rgb(data, limits, None)[0])


def load_input(data: bytes, spec: ImageInput, limits: ImageLimits = DEFAULT_LIMITS) -> Fitted:
    """Decodes and brings to the size that the card asks for.

    Args:
        data: the encoded file.
        spec: the card's `input`.
        limits: what the picture may ask for.

    Returns:
        The input of one image, with its geometry.

    Raises:
        UndecodableImage: not a whole picture of an accepted format.
        ImageTooLarge: over a limit.
    """
    picture, (width, height) = _open_rgb(data, limits, spec if spec.draft else None)
    fitted = _FITS[spec.resize](picture, spec)
    if picture.size == (width, height):
        return fitted
    x, y = fitted.scale
    return replace(fitted, scale=(x * picture.width / width, y * picture.height / height))


def fit_pixels(pixels: Pixels, spec: ImageInput) -> Fitted:
    """Brings decoded pixels, (H, W, 3) uint8, to the size that the card asks for."""
    return _FITS[spec.resize](Image.fromarray(pixels), spec)


def encode_png(pixels: Pixels) -> bytes:
    """Pixels, (H, W, 3) uint8, as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def read_orientation(data: bytes) -> int:
    """The EXIF orientation that `decode_image` undoes, 1 (upright) to 8, of a file that it decodes."""
    picture = _OPENERS[sniff_format(data) or "PNG"](io.BytesIO(data))
    picture.load()
    found = _orientation(picture)
    return found if found in _TURNS else 1


def sniff_format(data: bytes) -> str | None:
    """The accepted format whose magic bytes the data starts with, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if data.startswith(b"BM") else None


def is_small(data: bytes) -> bool:
    """Whether a picture is decoded sooner than it is handed to another thread, by its size and its header."""
    if len(data) > _SMALL_BYTES:
        return False
    kind = sniff_format(data)
    if kind == "JPEG":
        header = jpeg.read_header(data)
        width, height = header.size if header is not None else (0, 0)
    elif kind == "PNG":
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    else:
        return kind is None  # refused at once
    return width * height <= _SMALL_PIXELS


def _open_rgb(data: bytes, limits: ImageLimits, draft_for: ImageInput | None) -> tuple[Image.Image, tuple[int, int]]:
    """The upright RGB (or RGBX) picture, perhaps at a reduced scale, and the (width, height) it has at full scale."""
    if not data:
        raise UndecodableImage("the image is empty (0 bytes)")
    kind = sniff_format(data)
    if kind is None:
        raise UndecodableImage("not a JPEG, PNG, WebP or BMP file")
    plain = _read_small_jpeg(data, limits, draft_for) if kind == "JPEG" else None
    if plain is not None:
        return plain, plain.size
    _check_parts(data, kind, limits)
    try:
        picture = _OPENERS[kind](io.BytesIO(data))
        _check_limits(picture, limits)
        size = picture.size
        if draft_for is not None and kind == "JPEG":
            _draft(picture, draft_for)
        picture.load()
        orientation = _orientation(picture)
        upright = picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture
        return _to_rgb(upright), (size[1], size[0]) if orientation in _SIDEWAYS else size
    except InvalidInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, OverflowError, IndexError, KeyError) as error:
        raise UndecodableImage(f"the {kind} file is damaged or cut off") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLarge(f"the {kind} file expands beyond the limit") from error


def _read_small_jpeg(data: bytes, limits: ImageLimits, draft_for: ImageInput | None) -> Image.Image | None:
    """A small plain JPEG by the shortest way, as RGBX; None where the long way must decide."""
    header = jpeg.read_header(data) if len(data) <= _SMALL_BYTES else None
    if header is None or not header.plain:
        return None
    width, height = header.size
    if max(width, height) > limits.side or width * height > min(limits.pixels, _SMALL_PIXELS):
        return None
    if draft_for is not None and min(width, height) >= 2 * _draft_side(draft_for):
        return None
    pixels = jpeg.decode_rgbx(data)
    return None if pixels is None else Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)


def _check_limits(picture: ImageFile.ImageFile, limits: ImageLimits) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise UndecodableImage(f"the picture has no pixels ({width} x {height})")
    if max(width, height) > limits.side:
        raise ImageTooLarge(f"the picture is {width} x {height}; a side may have {limits.side} pixels at most")
    if width * height > limits.pixels:
        raise ImageTooLarge(f"the picture is {width} x {height}; {limits.pixels} pixels are allowed")


def _check_parts(data: bytes, kind: str, limits: ImageLimits) -> None:
    walk = _PARTS.get(kind)
    parts = list(islice(walk(data), _MOST_PARTS + 1)) if walk is not None else []
    if len(parts) > _MOST_PARTS:
        raise UndecodableImage(f"the {kind} file has more than {_MOST_PARTS} parts")
    if parts.count(jpeg.SCAN) > limits.scans:
        raise UndecodableImage(f"the JPEG file has more than {limits.scans} scans")


def _png_parts(data: bytes) -> Iterator[bytes]:
    """The chunk names of a PNG up to its end."""
    start = len(_PNG_MAGIC)
    while (name := data[start + 4 : start + 8]) not in (b"", b"IEND"):
        yield name
        start += 12 + int.from_bytes(data[start : start + 4], "big")


_PARTS: dict[str, Callable[[bytes], Iterator[bytes]]] = {"JPEG": jpeg.parts, "PNG": _png_parts}


def _draft(picture: ImageFile.ImageFile, spec: ImageInput) -> None:
    side = _draft_side(spec)
    picture.draft("RGB", (side, side))


def _draft_side(spec: ImageInput) -> int:
    # Twice the size it is scaled to keeps the resampling that follows antialiased; orientation may swap the sides.
    kept = spec.crop_fraction if spec.resize == "center_crop" else 1.0
    return math.ceil(2 * max(spec.width, spec.height) / kept)


def _orientation(picture: Image.Image) -> Any:
    # Not ImageOps.exif_transpose: it writes the EXIF anew, which fails where other fields of it are odd.
    return 1 if _ORIENTATION_SOURCES.isdisjoint(picture.info) else picture.getexif().get(_ORIENTATION, 1)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        levels = np.asarray(picture, dtype=np.float64)
        levels = np.where(levels == picture.info.get("transparency", -1), 65535.0, levels)
        return Image.fromarray(np.rint(np.clip(levels, 0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        page = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, rgba).convert("RGB")
    return picture.convert("RGB")


def _rgb(picture: Image.Image) -> Pixels:
    """The pixels of an RGB or RGBX picture, (H, W, 3)."""
    pixels = np.asarray(picture)
    return pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[:, :, :3])


def _stretch(picture: Image.Image, spec: ImageInput) -> Fitted:
    size = (spec.width, spec.height)
    scale = (spec.width / picture.width, spec.height / picture.height)
    resized = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
    return Fitted(_rgb(resized), scale, (0.0, 0.0))


def _letterbox(picture: Image.Image, spec: ImageInput) -> Fitted:
    ratio = min(spec.width / picture.width, spec.height / picture.height)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    left, top = (spec.width - size[0]) // 2, (spec.height - size[1]) // 2
    page = np.full((spec.height, spec.width, 3), _PAD_GREY, np.uint8)
    page[top : top + size[1], left : left + size[0]] = _rgb(picture.resize(size, Image.Resampling.BILINEAR))
    return Fitted(page, (size[0] / picture.width, size[1] / picture.height), (float(left), float(top)))


def _center_crop(picture: Image.Image, spec: ImageInput) -> Fitted:
    ratio = max(spec.width / picture.width, spec.height / picture.height) / spec.crop_fraction
    size = (max(spec.width, round(picture.width * ratio)), max(spec.height, round(picture.height * ratio)))
    left, top = (size[0] - spec.width) // 2, (size[1] - spec.height) // 2
    # Only the part that is kept is resampled: `box` is the crop in pixels of the original.
    sx, sy = size[0] / picture.width, size[1] / picture.height
    box = (left / sx, top / sy, (left + spec.width) / sx, (top + spec.height) / sy)
    cut = picture.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box)
    return Fitted(_rgb(cut), (sx, sy), (-float(left), -float(top)))


_FITS: dict[str, Callable[[Image.Image, ImageInput], Fitted]] = {
    "stretch": _stretch,
    "letterbox": _letterbox,
    "center_crop": _center_crop,
}
