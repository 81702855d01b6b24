"""multipart/form-data (RFC 7578) of a body that is all there: its parts are found by searching, not byte by byte."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from python_multipart.multipart import parse_options_header

from service.errors import BodyTooLarge, MalformedRequest

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


def parse_form(content_type: str, body: bytes, most: int) -> Form:
    """The parts of a form; those with a file name are files.

    Args:
        content_type: of the request, with the boundary.
        body: whole.
        most: files, and fields, that it may hold.

    Raises:
        MalformedRequest: it cannot be parsed, or ends before its closing boundary.
        BodyTooLarge: more parts than allowed.
    """
    mark = b"--" + _boundary(content_type)
    first, *parts = body.split(b"\r\n" + mark, 2 * most + 2)
    if first.startswith(mark):
        parts.insert(0, first[len(mark) :])
    if len(parts) > 2 * most + 1:
        raise _too_many(most)
    files, fields, texts = list[FormFile](), dict[str, list[str]](), 0
    heads = dict[bytes, tuple[str, str | None]]()
    for part in parts:
        head, blank, data = part.partition(b"\r\n\r\n")
        known = heads.get(head)  # mostly the same few
        if known is None or not blank:
            if head.startswith(b"--"):  # what follows the end means nothing
                if max(len(files), texts) > most:
                    raise _too_many(most)
                return Form(files, fields)
            if not blank:
                break
            known = heads[head] = _read_head(head)
        name, file = known
        if file is not None:
            files.append(FormFile(file, data))
        else:
            fields.setdefault(name, []).append(_text(data))
            texts += 1
    raise MalformedRequest(_BROKEN)


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


def _too_many(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"more than {most} parts in one request")
