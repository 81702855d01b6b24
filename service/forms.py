"""multipart/form-data (RFC 7578) of a body that is all there: its parts are found by searching, not byte by byte."""

import re
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from service.errors import BodyTooLarge, MalformedRequest

_LONGEST_HEAD, _LONGEST_BOUNDARY = 8192, 70
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00\r\n]*)")
_PLAIN = re.compile(rb'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?')
_BROKEN = "the multipart body cannot be parsed"


@dataclass(frozen=True)
class FormFile:
    """One uploaded file."""

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
    if body.count(mark) > 2 * most + 1:
        raise _too_many(most)
    first, *parts = body.split(b"\r\n" + mark)
    if first.startswith(mark):
        parts.insert(0, first[len(mark) :])
    form, heads, texts = Form([], {}), dict[bytes, tuple[str, str | None]](), 0
    for part in parts:
        if part.startswith(b"--"):
            return form  # what follows the end means nothing
        line, end = part.find(b"\r\n"), part.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
        if end < 0 or part[:line].strip(b" \t"):
            break
        head, data = part[line + 2 : end], part[end + 4 :]
        name, file = heads.get(head) or heads.setdefault(head, _read_head(head))
        if file is not None:
            form.files.append(FormFile(file, data))
        else:
            form.fields.setdefault(name, []).append(_text(data))
            texts += 1
        if max(len(form.files), texts) > most:
            raise _too_many(most)
    raise MalformedRequest(_BROKEN)


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise MalformedRequest(_BROKEN)
    return boundary


def _read_head(head: bytes) -> tuple[str, str | None]:
    """The field's name, and the file's, of the headers of a part."""
    disposition: bytes | None = None
    for line in head.split(b"\r\n"):
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
