"""Encoded bytes to the graph's input: the one preprocessing, used by training and serving alike.

Rules, stated once: JPEG, PNG, WebP and BMP; EXIF orientation applied; 16-bit pictures scaled (not clipped) to 8 bit;
transparency composited on white; CMYK, palette, grey and 1-bit pictures converted to RGB; the first frame of an
animation; trailing bytes ignored. Truncated or damaged files are refused.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models import jpeg
from models.card import ImageInput
from models.errors import ImageTooLarge, InvalidInput, UndecodableImage
from models.fit import Fitted, Pixels, fit_picture, keeps_size, rgb_of

# The plugins by name, not Image.open: no other decoder (EPS starts Ghostscript) can be reached, and the
# limits below stand in for Pillow's own, which warn too late.
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}
FORMATS = tuple(_OPENERS)
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
_LIGHT_BYTES = 256 * 1024
_LIGHT_PIXELS = {"JPEG": 4_000_000, "PNG": 1_000_000}


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
    return rgb_of(_open_rgb(data, sniff_format(data), limits, None)[0])


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
    kind = sniff_format(data)
    header = jpeg.read_header(data) if kind == "JPEG" else None
    plain = None if header is None else _load_plain_jpeg(data, header, spec, limits)
    return plain or _load_by_pillow(data, kind, spec, limits)


def load_at_once(data: bytes, spec: ImageInput, limits: ImageLimits = DEFAULT_LIMITS) -> Fitted | None:
    """As `load_input`, where that takes no longer than to hand the picture to another thread; None where it does."""
    if len(data) > _SMALL_BYTES:
        return None
    kind = sniff_format(data)
    if kind == "JPEG" and (header := jpeg.read_header(data)) is not None:
        width, height = header.size
        if width * height > _SMALL_PIXELS:
            return None
        plain = _load_plain_jpeg(data, header, spec, limits)
        if plain is not None:
            return plain
    elif kind == "PNG":
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        if width * height > _SMALL_PIXELS:
            return None
    elif kind in ("WEBP", "BMP"):
        return None
    return _load_by_pillow(data, kind, spec, limits)


def is_light(data: bytes) -> bool:
    """Whether `load_input` surely takes no more than some ten milliseconds, by a glance at the header."""
    kind = sniff_format(data) if len(data) <= _LIGHT_BYTES else None
    size: tuple[int, int] | None = None
    if kind == "JPEG":
        size = jpeg.sequential_size(data)
    elif kind == "PNG" and data.find(b"IHDR", 16) < 0:  # of two the second counts
        size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return kind is not None and size is not None and size[0] * size[1] <= _LIGHT_PIXELS[kind]


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


def _load_by_pillow(data: bytes, kind: str | None, spec: ImageInput, limits: ImageLimits) -> Fitted:
    picture, size = _open_rgb(data, kind, limits, spec if spec.draft else None)
    return _with_size(fit_picture(picture, spec), picture.size, size)


def _load_plain_jpeg(data: bytes, header: jpeg.Header, spec: ImageInput, limits: ImageLimits) -> Fitted | None:
    """A plain JPEG without Pillow's decoder, which reads the header in Python; None where the long way must decide."""
    width, height = header.size
    if not header.plain or max(width, height) > limits.side or width * height > limits.pixels:
        return None
    size = jpeg.scaled_size(header.size, _draft_side(spec)) if spec.draft else header.size
    ready = keeps_size(size, spec)
    pixels = jpeg.decode(data, size, "RGB" if ready else "RGBX")
    if pixels is None:
        return None
    if ready:
        fitted = Fitted(pixels, (1.0, 1.0), (0.0, 0.0), size)
    else:
        fitted = fit_picture(Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1), spec)
    return _with_size(fitted, size, header.size)


def _with_size(fitted: Fitted, drafted: tuple[int, int], size: tuple[int, int]) -> Fitted:
    """As if a picture of that size had been fitted, which was decoded at a smaller one."""
    if drafted == size:
        return fitted
    x, y = fitted.scale
    scale = (x * drafted[0] / size[0], y * drafted[1] / size[1])
    return Fitted(fitted.pixels, scale, fitted.offset, size)


def _open_rgb(
    data: bytes, kind: str | None, limits: ImageLimits, draft_for: ImageInput | None
) -> tuple[Image.Image, tuple[int, int]]:
    """The upright RGB picture, perhaps at a reduced scale, and the (width, height) it has at full scale."""
    if not data:
        raise UndecodableImage("the image is empty (0 bytes)")
    if kind is None:
        raise UndecodableImage("not a JPEG, PNG, WebP or BMP file")
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
    # No side is decoded smaller than what it is scaled to; orientation may swap the sides.
    kept = spec.crop_fraction if spec.resize == "center_crop" else 1.0
    return math.ceil(max(spec.width, spec.height) / kept)


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
