"""multipart/form-data (RFC 7578): its parts are found by searching, not byte by byte, all at once or as they come."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from python_multipart.multipart import parse_options_header

from service.errors import BodyTooLarge, MalformedRequest
from service.exchange import Buffer

_LONGEST_HEAD, _LONGEST_BOUNDARY = 8192, 70
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00\r\n]*)")
_PLAIN = re.compile(rb'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?')
_BROKEN = "the multipart body cannot be parsed"


class FormFile(NamedTuple):
    """One uploaded file; a tuple, since a form may hold a thousand."""

    name: str | None
    data: bytes


@dataclass(frozen=True)
class Form:
    """A multipart body: its files in order, its text fields with all their values."""

    files: list[FormFile]
    fields: dict[str, list[str]]


class FormReader:
    """Reads a form.

    Args:
        content_type: of the request, with the boundary.
        most: files, and fields, that it may hold.

    Attributes:
        files: that are whole so far.
        fields: likewise.
        taken: bytes of the body that they have been read from.
    """

    def __init__(self, content_type: str, most: int) -> None:
        self.files: list[FormFile] = []
        self.fields: dict[str, list[str]] = {}
        self.taken = 0
        self._content_type = content_type
        self._most = most
        self._mark = b""
        self._texts = 0
        self._ended = False
        self._heads: dict[bytes, tuple[str, str | None]] = {}

    def feed(self, body: Buffer) -> None:
        """Reads the parts that are whole, those with a file name as files.

        Args:
            body: from its first byte as far as it is there.

        Raises:
            MalformedRequest: it cannot be parsed.
            BodyTooLarge: more parts than allowed.
        """
        if self._ended:
            return
        self._mark = self._mark or b"--" + _boundary(self._content_type)
        rest = bytes(body[self.taken :])
        parts = rest.split(b"\r\n" + self._mark, 2 * self._most + 2)
        if self.taken == 0:
            first = parts.pop(0)
            if first.startswith(self._mark):
                parts.insert(0, first[len(self._mark) :])
        if not parts:
            return
        last = parts.pop()
        for part in parts:
            if self._ended:  # what follows the end means nothing
                break
            self._add(part)
        if max(len(self.files), self._texts) > self._most:
            raise BodyTooLarge(f"more than {self._most} parts in one request")
        self.taken = len(body) - len(last)

    def finish(self, body: Buffer) -> Form:
        """The form, once all of its body is there.

        Raises:
            MalformedRequest: it cannot be parsed, or ends before its closing boundary.
            BodyTooLarge: more parts than allowed.
        """
        self.feed(body)
        if not self._ended and (self.taken == 0 or bytes(body[self.taken : self.taken + 2]) != b"--"):
            raise MalformedRequest(_BROKEN)
        return Form(self.files, self.fields)

    def _add(self, part: bytes) -> None:
        """What stands between two boundaries."""
        head, blank, data = part.partition(b"\r\n\r\n")
        known = self._heads.get(head)  # mostly the same few
        if known is None or not blank:
            if head.startswith(b"--"):
                self._ended = True
                return
            if not blank:
                raise MalformedRequest(_BROKEN)
            known = self._heads[head] = _read_head(head)
        name, file = known
        if file is not None:
            self.files.append(FormFile(file, data))
        else:
            self.fields.setdefault(name, []).append(_text(data))
            self._texts += 1


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise MalformedRequest(_BROKEN)
    return boundary


def _read_head(head: bytes) -> tuple[str, str | None]:
    """The field's name, and the file's, of what stands between a boundary and the data of a part."""
    padding, *lines = head.split(b"\r\n") if len(head) < _LONGEST_HEAD else [b""]
    if not lines or padding.strip(b" \t"):
        raise MalformedRequest(_BROKEN)
    disposition: bytes | None = None
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise MalformedRequest(_BROKEN)
        if header[1].lower() == b"content-disposition":
            disposition = header[2].strip(b" \t")
    plain = _PLAIN.fullmatch(disposition or b"")
    if plain is not None:
        return _text(plain[1]), None if plain[2] is None else _text(plain[2])
    options = parse_options_header(disposition)[1]
    if b"name" not in options:
        raise MalformedRequest(_BROKEN)
    return _text(options[b"name"]), _text(options[b"filename"]) if b"filename" in options else None


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
