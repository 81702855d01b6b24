"""A request whose head its connection has sent before: told by its bytes, without a parser.

Who stays on a connection says the same again and again, but for the length of the body.
"""

import re
from typing import NamedTuple

from starlette.types import Scope

from service.exchange import Header
from service.front import Handler

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
_MOST_DIGITS = 15
_LONGEST = 8192
"""Bytes of a head that is remembered, at most."""
_BODY_OTHERWISE = {b"transfer-encoding", b"expect"}


class Head(NamedTuple):
    """What a connection has sent before the body of a hot request.

    Attributes:
        before: all of it up to the digits of the body's length.
        after: all of it from there, with the empty line.
        handler: what answers.
        scope: of ASGI, but for `headers`.
        headers: of ASGI.
        place: of the length among them.
    """

    before: bytes
    after: bytes
    handler: Handler
    scope: Scope
    headers: list[Header]
    place: int

    def repeated(self, data: bytes) -> tuple[Scope, bytes] | None:
        """The scope and the body where these bytes are one whole request with this head; None: they are not."""
        start = len(self.before)
        end = data.find(b"\r", start, start + _MOST_DIGITS + 1)
        if end < 0 or not data.startswith(self.before) or not data.startswith(self.after, end):
            return None
        digits, body = data[start:end], end + len(self.after)
        size = len(data) - body
        if not digits.isdigit() or int(digits) != size:
            return None
        headers = self.headers.copy()
        headers[self.place] = (b"content-length", digits)
        return {**self.scope, "headers": headers}, data[body:]


def head_of(data: bytes, size: int, handler: Handler, scope: Scope) -> Head | None:
    """The head of a request that these bytes are, to be told when it comes again.

    Args:
        data: what was read.
        size: of the body that was found in it, bytes.
        handler: what answers.
        scope: what the parser has made of the head.

    Returns:
        None where the bytes are more than one request, the head is long, or says of the body more than its length.
    """
    headers: list[Header] = scope["headers"]
    names = [name for name, _ in headers]
    if names.count(b"content-length") != 1 or not _BODY_OTHERWISE.isdisjoint(names):
        return None
    end = len(data) - size
    if end > _LONGEST:
        return None
    length = _LENGTH.search(data, 0, end)
    if length is None or int(length[1]) != size or data.find(b"\r\n\r\n") != end - 4:
        return None
    before, after = data[: length.start(1)], data[length.end(1) : end]
    return Head(before, after, handler, dict(scope), headers, names.index(b"content-length"))
