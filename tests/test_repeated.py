"""Requests whose head has come before on their connection: told by their bytes, answered as by the parser."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.exchange import Call, Reply
from service.protocol import Protocol
from service.repeated import Head, head_of
from service.state import ServiceState
from tests.lines import HEAD, IMAGE, WHOLE, Line, Site, site
from tests.serving import SIZE, pictures, png_of

OTHER = png_of(pictures(2, SIZE)[1])


async def handler(state: ServiceState, call: Call) -> Reply:
    return Reply(b"")


def parsed(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/predict", "headers": list(headers)}


def known(request: bytes, size: int, *headers: tuple[bytes, bytes]) -> Head | None:
    return head_of(request, size, handler, parsed(*headers))


def with_body(body: bytes, more: bytes = b"", head: bytes = HEAD) -> bytes:
    return head.replace(b": %d\r\n" % len(IMAGE), b": %d\r\n" % len(body)) + more + b"\r\n" + body


def test_a_head_is_told_again_with_a_body_of_any_length() -> None:
    head = known(
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: h\r\n\r\nab", 2, (b"content-length", b"2"), (b"host", b"h")
    )
    assert head is not None and head.handler is handler
    for body in (b"", b"cd", b"\r\n\r\n", b"x" * 200_000):
        found = head.repeated(b"POST / HTTP/1.1\r\nContent-Length: %d\r\nHost: h\r\n\r\n%b" % (len(body), body))
        assert found is not None
        scope, got = found
        assert got == body and scope["path"] == "/predict"
        assert scope["headers"] == [(b"content-length", b"%d" % len(body)), (b"host", b"h")]
    assert head.scope["headers"][0] == (b"content-length", b"2")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST / HTTP/1.1\r\nContent-Length: ",
        b"POST / HTTP/1.1\r\nContent-Length: 2",
        b"POST / HTTP/1.1\r\nContent-Length: \r\nHost: h\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: h\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: h\r\n\r\nabPOST",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: +2\r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: -2\r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 2 \r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 0000000000000002\r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: i\r\n\r\nab",
        b"POST /a HTTP/1.1\r\nContent-Length: 2\r\nHost: h\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: h\r\nExpect: 100-continue\r\n\r\nab",
    ],
)  # fmt: skip
def test_what_differs_in_more_is_for_the_parser(data: bytes) -> None:
    head = known(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: h\r\n\r\nab", 2, (b"content-length", b"2"))
    assert head is not None and head.repeated(data) is None


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        (b"POST / HTTP/1.1\r\n\r\nab", []),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", [(b"content-length", b"2")] * 2),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: x\r\n\r\nab",
            [(b"content-length", b"2"), (b"transfer-encoding", b"x")],
        ),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nab",
            [(b"content-length", b"2"), (b"expect", b"100-continue")],
        ),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", [(b"content-length", b"3")]),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nabPOST / HTTP/1.1\r\n\r\n", [(b"content-length", b"2")]),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nX: %b\r\n\r\nab" % (b"y" * 9000), [(b"content-length", b"2")]),
        (b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", [(b"content-length", b"2")]),
    ],
    ids=["no length", "two", "encoding", "expectation", "another length", "more behind", "long", "more before"],
)
def test_only_the_head_of_one_whole_request_is_remembered(
    request_: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    assert known(request_, 2, *headers) is None


async def told(server: Site, line: Line, request: bytes) -> bool:
    """Whether a request is answered past the parser; it must be answered well."""
    (protocol,) = [
        one for one in server.server.server_state.connections if isinstance(one, Protocol) and one.client == line.name
    ]
    fed: list[bytes] = []
    parser = protocol.parser

    class Watching:
        """The real parser, watched: httptools' own cannot be."""

        def feed_data(self, data: bytes) -> None:
            fed.append(data)
            parser.feed_data(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(parser, name)

    protocol.parser = Watching()
    await line.send(request)
    assert (await line.read()).status == 200
    protocol.parser = parser
    return not fed


async def test_the_same_head_is_not_parsed_again_and_each_body_gets_its_own_answer(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line, fresh = await server.connect(), await server.connect()
        bodies = [IMAGE, OTHER, IMAGE + b"\0" * 9, OTHER]
        answers = []
        for n, body in enumerate(bodies):
            assert await told(server, line, with_body(body)) == (n > 0)
        for body in bodies:
            await line.send(with_body(body))
            answers.append(await line.read())
            cut = with_body(body)
            await fresh.send(cut[:20], cut[20:])
            assert (await fresh.read()).json == answers[-1].json
        assert answers[0].json != answers[1].json
        assert len({answer.headers["x-request-id"] for answer in answers}) == 4


async def test_another_head_is_parsed_and_remembered_instead(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        assert not await told(server, line, WHOLE)
        named = with_body(IMAGE, b"X-Request-Id: mine\r\n")
        assert not await told(server, line, named)
        assert await told(server, line, named)
        assert not await told(server, line, WHOLE)


async def test_what_follows_a_repeated_request_is_answered_in_its_order(tmp_path: Path) -> None:
    async with site(tmp_path, wait=20.0) as server:
        line = await server.connect()
        await line.send(WHOLE)
        assert (await line.read()).status == 200
        live = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
        # Behind a repeated one that is under way, and with one in the same packet.
        await line.send(WHOLE, live, WHOLE + live, WHOLE[:30], WHOLE[30:])
        for n in range(5):
            answer = await line.read()
            assert answer.status == 200 and ("live" in answer.json) == (n in (1, 3)), n


async def test_a_repeated_request_that_is_refused_leaves_the_connection(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        for body, status in [(IMAGE, 200), (IMAGE[:40], 422), (b"", 422), (b"x" * 50, 422), (IMAGE, 200)]:
            await line.send(with_body(body))
            assert (await line.read()).status == status, body[:10]


async def test_chunks_after_a_repeated_request_are_parsed(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        chunked = HEAD.replace(b"Content-Length: %d" % len(IMAGE), b"Transfer-Encoding: chunked") + b"\r\n"
        for _ in range(2):
            await line.send(WHOLE, chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE))
            assert [(await line.read()).status for _ in range(2)] == [200, 200]


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(tmp_path: Path) -> None:
    async with site(tmp_path, keep_alive_seconds=1) as server:
        line = await server.connect()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while loop.time() < begin + 2.2:
            await line.send(WHOLE)
            assert (await line.read()).status == 200
            await asyncio.sleep(0.2)
        last = loop.time() - 0.2
        assert await line.closed()
        assert loop.time() >= last + 0.95
        assert not server.server.server_state.connections


async def test_a_request_that_takes_longer_than_idle_connections_stay_is_answered(tmp_path: Path) -> None:
    async with site(tmp_path, wait=1000.0, keep_alive_seconds=1) as server:
        line = await server.connect()
        for _ in range(2):
            await line.send(WHOLE)
            assert (await line.read()).status == 200
        assert await line.closed()


@pytest.mark.parametrize("size", [65_536, 65_537, 70_000, 150_000])
async def test_a_long_body_behind_a_known_head_is_answered_in_its_order(tmp_path: Path, size: int) -> None:
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
    async with site(tmp_path) as server:
        line = await server.connect()
        await line.send(WHOLE)
        assert (await line.read()).status == 200
        for n in range(3):
            long = IMAGE + b"\0" * (size - len(IMAGE))
            line.writer.write(with_body(long))
            assert (await line.read()).json["predictions"]
            assert server.front.messages == n  # of what was sent behind another
            line.writer.write(with_body(b"no picture".ljust(size)) + live)
            assert [(await line.read()).status for _ in range(2)] == [422, 200]
        metrics = await server.connect()
        await metrics.send(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        assert 'code="499"' not in (await metrics.read()).body.decode()


async def test_what_is_counted_does_not_depend_on_what_came_before(tmp_path: Path) -> None:
    head = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n"
    data = b",".join([b"0"] * (SIZE * SIZE * 3))
    shape = b"[1, %d, %d, 3]" % (SIZE, SIZE)
    good = b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": %b, "data": [%b]}]}' % (shape, data)
    async with site(tmp_path) as server:
        line, fresh = await server.connect(), await server.connect()
        await line.send(head % len(good) + good, head % 1 + b"{")
        assert [(await line.read()).status for _ in range(2)] == [200, 400]
        await fresh.send(head % 1 + b"{", b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await fresh.read()).status == 400
        text = (await fresh.read()).body.decode()
        assert len([one for one in text.splitlines() if 'requests_total{code="400"' in one]) == 1
