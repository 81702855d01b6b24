"""Boxes as a format's reader found them: checked as text and numbers, not yet against their pictures.

`scripts.box_readers` looks for the files, decodes them, and checks each box against the size of its picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.box_labels import THINNEST
from models.errors import InvalidInput
from scripts.readers import Skipped

Box = tuple[float, float, float, float]
_CLIPPED = 0.01  # pixels; less is the rounding of shares of a side, written with six digits


@dataclass(frozen=True)
class RawBox:
    """One box, unchecked.

    Attributes:
        xyxy: in the units of its table, in the frame of the picture that the data set's maker saw.
        label: name of its class.
        origin: file and annotation, for messages.
        id: its own name in the data set: the annotation's id (COCO), its line (YOLO, CSV), its place in the file,
            counted from 1 (VOC).
        ignored: a crowd or a difficult object: neither learnt nor scored.
    """

    xyxy: Box
    label: str
    origin: str
    id: int | str | None
    ignored: bool = False


@dataclass(frozen=True)
class RawImage:
    """One picture and its boxes; `file` as written, `size` the (width, height) that the data set says it has."""

    file: str
    boxes: tuple[RawBox, ...]
    origin: str
    split: str | None = None
    group: str | None = None
    image_id: int | str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class BoxTable:
    """All of a data set as its reader found it.

    Attributes:
        root: the folder that contains every picture.
        folders: where pictures are looked for, in this order; in or below the root.
        images: in the order of the source.
        labels: class names in the data set's order; None: those found, sorted.
        faults: boxes that cannot be used, and why.
        skipped: pictures that were left out, and why.
        shares: coordinates are shares of the picture's sides instead of pixels.
    """

    root: Path
    folders: tuple[Path, ...]
    images: tuple[RawImage, ...]
    labels: tuple[str, ...] | None = None
    faults: tuple[Skipped, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    shares: bool = False


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None


def read_box(values: Sequence[object]) -> Box:
    """Four numbers, as JSON or text has them.

    Raises:
        InvalidInput: another count of them, or something that is no finite number.
    """
    if len(values) != 4:
        raise InvalidInput(f"{len(values)} numbers where a box has 4")
    first, second, third, fourth = (read_number(value) for value in values)
    return first, second, third, fourth


def read_number(value: object) -> float:
    """A number, as JSON or text has it.

    Raises:
        InvalidInput: it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        raise InvalidInput(f"{str(value)[:20]!r} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{str(value)[:20]!r} is not a number") from None
    if not math.isfinite(number):
        raise InvalidInput(f"{number} is not a finite number")
    return number


def clip_box(box: Box, width: int, height: int) -> tuple[Box, bool]:
    """The part of a box that lies in its picture, pixels, and whether that is less than the box.

    Raises:
        InvalidInput: swapped corners, a side of less than a thousandth of a pixel, or wholly outside.
    """
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        raise InvalidInput(f"swapped corners or a negative side: {_shown(box)}")
    if min(x2 - x1, y2 - y1) < THINNEST:
        raise InvalidInput(f"no area: {_shown(box)}")
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if min(inside[2] - inside[0], inside[3] - inside[1]) < THINNEST:
        raise InvalidInput(f"wholly outside the picture of {width} x {height}: {_shown(box)}")
    return inside, max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _CLIPPED


def turn_box(box: Box, orientation: int, width: int, height: int) -> Box:
    """A box of the stored file, `width` x `height`, on the upright picture, for EXIF orientations 5 to 8."""
    x1, y1, x2, y2 = box
    left, right = (y1, y2) if orientation in (5, 8) else (height - y2, height - y1)
    top, bottom = (x1, x2) if orientation in (5, 6) else (width - x2, width - x1)
    return left, top, right, bottom


def turn_back(box: Box, orientation: int, width: int, height: int) -> Box:
    """A box of the upright picture, `width` x `height`, on the stored file: the inverse of `turn_box`."""
    return turn_box(box, {6: 8, 8: 6}.get(orientation, orientation), width, height)


def _shown(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
