"""The items of an audit as they came: newline-delimited JSON, written to disk as it arrives, read part by part."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from models.errors import FocalserveError
from service.bodies import parse_json, validate
from service.errors import BodyTooLarge, InvalidRequest, MalformedRequest
from service.loss_item import LossItem
from service.schemas import LossInput

Encoding = Literal["identity", "gzip"]
LONGEST_LINE = 32 * 1024 * 1024
PART_PICTURES = 256
_PART_BYTES = 32 * 1024 * 1024
_SMALL_ITEMS = 2048
_SMALL_BYTES = 1024 * 1024
_AT_ONCE = 1 << 20
_LOOKED_AT = 100


class SpoolWriter:
    """Writes a body to a file, decompressed.

    Args:
        path: of the file, which must not be there.
        most: bytes at most, decompressed.
        encoding: how the body is compressed.
    """

    def __init__(self, path: Path, most: int, encoding: Encoding) -> None:
        self._file = path.open("xb")
        self._most = most
        self._unpacker = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        self.size = 0

    def write(self, data: bytes) -> None:
        """The next bytes as sent.

        Raises:
            BodyTooLarge: there are more than `most` in all.
            MalformedRequest: not gzip though it was said to be.
        """
        try:
            for plain in self._unpacked(data):
                self._put(plain)
        except zlib.error:
            raise MalformedRequest("the body is not valid gzip") from None

    def finish(self) -> None:
        """All has come: it is on the disk when this returns.

        Raises:
            MalformedRequest: the gzip body is cut off.
        """
        if self._unpacker is not None:
            self._put(self._unpacker.flush())
            if not self._unpacker.eof:
                raise MalformedRequest("the gzip body is cut off")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, whatever has happened."""
        self._file.close()

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        if self._unpacker is None:
            yield data
            return
        while data:
            if self._unpacker.eof:
                raise MalformedRequest("the gzip body is followed by other data")
            yield self._unpacker.decompress(data, _AT_ONCE)
            data = self._unpacker.unconsumed_tail or self._unpacker.unused_data

    def _put(self, plain: bytes) -> None:
        self.size += len(plain)
        if self.size > self._most:
            raise BodyTooLarge(f"the body has more than {self._most} bytes; send it in several audits")
        self._file.write(plain)


@dataclass(frozen=True)
class Inspection:
    """What a look through the items told.

    Attributes:
        items: lines that are not blank.
        boxes: given boxes of a detector, about.
        width: how many numbers the first row of logits or probabilities has; None where there is none near the top.
    """

    items: int
    boxes: int
    width: int | None


@dataclass(frozen=True)
class Line:
    """One line that is not blank.

    Attributes:
        number: from 1, blank lines counted.
        text: its bytes; None where it is longer than `LONGEST_LINE`.
    """

    number: int
    text: bytes | None


@dataclass(frozen=True)
class Part:
    """Lines to be scored together, and where the next part begins."""

    lines: list[Line]
    offset: int
    line: int


def inspect(path: Path) -> Inspection:
    """Looks through a spooled body.

    Raises:
        InvalidRequest: it is empty.
        MalformedRequest: none of its first 100 lines is a JSON object.
    """
    items, boxes, objects, width = 0, 0, 0, 0
    with path.open("rb") as file:
        for line in _lines(file, 0):
            items += 1
            boxes += (line.text or b"").count(b'"box"')
            if items <= _LOOKED_AT and not width:
                found = _row_width(line)
                objects += found is not None
                width = found or 0
            elif not objects:
                break
    if not items:
        raise InvalidRequest("there are no items in the request; send one JSON object a line")
    if not objects:
        raise MalformedRequest("the body is not NDJSON: none of its first lines is a JSON object; send one item a line")
    return Inspection(items, boxes, width or None)


def read_part(path: Path, offset: int, line: int, most_pictures: int = PART_PICTURES) -> Part:
    """The next lines: at most 256, and of about 32 MiB; of rows without pictures up to 2,048 in 1 MiB.

    Args:
        path: of the spooled body.
        offset: byte where the part begins.
        line: number of the line before it.
        most_pictures: lines at most, where there are pictures among them, or long ones.
    """
    found: list[Line] = []
    size, pictures = 0, False
    with path.open("rb") as file:
        file.seek(offset)
        for one in _lines(file, line):
            found.append(one)
            line, size = one.number, size + len(one.text or b"")
            pictures = pictures or b'"image"' in (one.text or b"")
            most = most_pictures if pictures or size >= _SMALL_BYTES else _SMALL_ITEMS
            if size >= _PART_BYTES or len(found) >= most:
                break
        return Part(found, file.tell(), line)


def parse_item(line: Line) -> LossItem | FocalserveError:
    """The item of a line, or what is wrong with it."""
    if line.text is None:
        return BodyTooLarge(f"the line has more than {LONGEST_LINE} bytes")
    try:
        return validate(LossInput, parse_json(line.text)).item()
    except (MalformedRequest, InvalidRequest) as error:
        return error


def _lines(file: BinaryIO, number: int) -> Iterator[Line]:
    while text := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(text) > LONGEST_LINE and not text.endswith(b"\n"):
            while (more := file.readline(_AT_ONCE)) and not more.endswith(b"\n"):
                pass
            yield Line(number, None)
        elif text := text.strip():
            yield Line(number, text)


def _row_width(line: Line) -> int | None:
    """Numbers in the row of a line that is a JSON object, 0 where it has none; None where it is no object."""
    try:
        document = parse_json(line.text or b"")
    except MalformedRequest:
        return None
    if not isinstance(document, dict):
        return None
    row = document.get("logits") or document.get("probabilities")
    return len(row) if isinstance(row, list) else 0
