"""What a JPEG file says of itself, and the quick way to the pixels of a plain one."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

SCAN, _END = b"\xff\xda", b"\xff\xd9"
# A marker that a segment follows, or the end: not a stuffed zero, a restart, or padding.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SEQUENTIAL = {b"\xff\xc0", b"\xff\xc1"}
_MOST_SEGMENTS = 24
"""Before the frame; a file of nothing else would take a glance at it long."""
_EXIF, _XMP = b"xif", b"http://ns.adobe.com/xap"
_COLOURS = {"YCbCr", "Gray"}


class Header(NamedTuple):
    """What a JPEG says of itself.

    Attributes:
        size: (width, height), pixels.
        plain: one scan of colour or grey, and no metadata that could turn it.
    """

    size: tuple[int, int]
    plain: bool


def parts(data: bytes) -> Iterator[bytes]:
    """The markers of a JPEG up to its end: what trails it, or lies within a segment, is not seen."""
    found = _MARKER.search(data, 2)
    while found is not None and found[0] != _END:
        yield found[0]
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        found = _MARKER.search(data, found.end() + length)


def sequential_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that is decoded in few passes; None of a progressive one, an odd one, or of no JPEG."""
    found = _MARKER.search(data, 2)
    for _ in range(_MOST_SEGMENTS):
        if found is None or found[0] in (SCAN, _END):
            break
        at = found.end()
        if found[0] in _SEQUENTIAL:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 3 : at + 5], "big")
        found = _MARKER.search(data, at + int.from_bytes(data[at : at + 2], "big"))
    return None


def read_header(data: bytes) -> Header | None:
    """What the decoder sees; None where it sees no JPEG."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # Where another scan seems to begin, the long way tells which is the first.
    scan = data.find(SCAN)
    plain = colours in _COLOURS and 0 <= scan == data.rfind(SCAN)
    head = data[:scan]  # what comes before the pixels is short
    return Header((width, height), plain and _EXIF not in head and _XMP not in head)


def scaled_size(size: tuple[int, int], least: int) -> tuple[int, int]:
    """The (width, height) at a half, a quarter or an eighth where no side gets below `least`: Pillow's `draft`."""
    shorter = min(size)
    if shorter < 2 * least:
        return size
    scale = 8 if shorter >= 8 * least else 4 if shorter >= 4 * least else 2
    return -(-size[0] // scale), -(-size[1] // scale)


def decode(data: bytes, size: tuple[int, int], colours: Literal["RGB", "RGBX"]) -> NDArray[np.uint8] | None:
    """The pixels of a plain JPEG.

    They are those that Pillow gives (the same libjpeg-turbo), in a third of the time for a small picture: Pillow reads
    the header in Python.

    Args:
        data: the file.
        size: (width, height) of its header, or a `scaled_size` of that.
        colours: RGBX has a fourth byte that means nothing.

    Returns:
        (height, width, 3 or 4) uint8; None where the file is damaged.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colours, min_height=size[1], min_width=size[0]))
    except ValueError:
        return None
