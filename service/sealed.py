"""A reply on its way out: compressed where the client takes gzip, and with the headers that every answer has."""

import gzip
import re
from typing import NamedTuple

from service.exchange import Call, Header, Reply

_GZIP_FROM = 4096
_GZIP_ELSEWHERE = 64 * 1024
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)


class Sealed(NamedTuple):
    """An answer with all its headers, ready to be sent.

    Attributes:
        status: of HTTP.
        headers: all but those that uvicorn adds.
        body: its bytes.
    """

    status: int
    headers: list[Header]
    body: bytes


def _packs(reply: Reply, call: Call) -> bool:
    """Whether the client takes gzip, and it is worth it."""
    # tritonclient.http.aio always asks for it, and unpacks the answers to inference alone.
    if call.path.startswith("/v2") and not call.path.endswith("/infer"):
        return False
    return len(reply.body) >= _GZIP_FROM and _GZIP.search(call.header(b"accept-encoding")) is not None


def packed(reply: Reply, call: Call) -> Reply:
    """The reply, compressed where it should be."""
    if not _packs(reply, call):
        return reply
    headers = [*reply.headers, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    return Reply(gzip.compress(reply.body, 1), reply.media_type, reply.status, headers)


def takes_long_to_pack(reply: Reply, call: Call) -> bool:
    """Whether `packed` takes longer than the event loop has time for."""
    return len(reply.body) > _GZIP_ELSEWHERE and _packs(reply, call)


def marks(request_id: str) -> tuple[Header, Header]:
    """What every answer says."""
    return (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")


def seal(reply: Reply, request_id: str) -> Sealed:
    """The reply with all its headers."""
    headers = [
        (b"content-type", reply.media_type),
        (b"content-length", b"%d" % len(reply.body)),
        *marks(request_id),
        *reply.headers,
    ]
    return Sealed(reply.status, headers, reply.body)
