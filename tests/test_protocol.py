"""Requests over real sockets: those that arrive whole go the short way, all get the same answers."""

import asyncio
import gzip
import itertools
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import uvloop

from service.__main__ import Server
from tests.lines import HEAD, IMAGE, WHOLE, site
from tests.serving import settings_of, write_linear


def cuts(request: bytes, *places: int) -> Sequence[bytes]:
    edges = [0, *places, len(request)]
    return [request[a:b] for a, b in itertools.pairwise(edges)]


async def test_a_whole_request_takes_the_short_way_again_and_again_on_one_connection(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        for n in range(3):
            await line.send(WHOLE.replace(b"/predict", b"/predict?top_k=1"))
            answer = await line.read()
            assert answer.status == 200 and len(answer.json["predictions"][0]["top_k"]) == 1, n
            assert answer.headers["content-type"] == "application/json" and "date" in answer.headers
            assert "x-request-id" in answer.headers and "server-timing" in answer.headers
        await line.send(b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await line.read()).json["live"] is True
        assert server.front.messages == 0
        await line.send(b"GET /models HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await line.read()).status == 200
        assert server.front.messages == 1


async def test_however_a_request_is_cut_its_answer_is_the_same(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        await line.send(WHOLE)
        whole = await line.read()
        end = len(HEAD) + 2
        for parts in (
            cuts(WHOLE, end),
            cuts(WHOLE, 10),
            cuts(WHOLE, end - 1),
            cuts(WHOLE, end + 3),
            cuts(WHOLE, 5, end + 5, end + 9),
        ):
            await line.send(*parts)
            answer = await line.read()
            assert answer.json == whole.json and answer.headers.keys() == whole.headers.keys()
            assert server.front.messages == 0


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    async with site(tmp_path, wait=20.0) as server:
        line = await server.connect()
        named = [HEAD + b"X-Request-Id: n%d\r\n\r\n" % n + IMAGE for n in range(4)]
        await line.send(b"".join(named[:3]) + named[3][:50], named[3][50:])
        for n in range(4):
            answer = await line.read()
            assert (answer.status, answer.headers["x-request-id"]) == (200, f"n{n}")


async def test_chunks_and_long_bodies_and_expectations_are_served(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        chunked = HEAD.replace(b"Content-Length: %d" % len(IMAGE), b"Transfer-Encoding: chunked") + b"\r\n"
        await line.send(chunked + b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (IMAGE[:5], len(IMAGE) - 5, IMAGE[5:]))
        assert (await line.read()).status == 200
        await line.send(chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in IMAGE) + b"0\r\n\r\n")
        assert (await line.read()).status == 200
        assert server.front.messages == 0
        document = b'{"inputs": [{"image": "%b"}]}' % (b"A" * 300_000)
        long = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await line.send(long % len(document) + document)
        assert (await line.read()).status == 422
        assert server.front.messages == 0
        await line.send(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert (await line.read(body=False)).status == 100
        await line.send(IMAGE)
        assert (await line.read()).status == 200


@pytest.mark.parametrize(
    "request_",
    [HEAD + b"Connection: close\r\n\r\n" + IMAGE, WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")],
    ids=["1.1", "1.0"],
)
async def test_a_connection_that_asks_to_be_closed_is_closed(tmp_path: Path, request_: bytes) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        await line.send(request_)
        answer = await line.read()
        assert answer.status == 200 and answer.headers["connection"] == "close"
        assert await line.closed()


async def test_refusals_by_the_short_way_are_problems_with_their_status(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        for request, status in [
            (WHOLE.replace(b"Host: here\r\n", b""), 400),
            (WHOLE.replace(b"image/png", b"image/jpeg"), 415),
            (b"POST /v2/models/none/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}", 404),
            (b"HEAD /v2 HTTP/1.1\r\nHost: here\r\n\r\n", 405),
            (b"GET /v2/models/a%2Fb HTTP/1.1\r\nHost: here\r\n\r\n", 404),
        ]:
            await line.send(request)
            assert (await line.read(body=not request.startswith(b"HEAD"))).status == status, request[:40]
        await line.send(WHOLE)
        assert (await line.read()).status == 200


async def test_what_is_no_http_after_a_whole_request_ends_the_connection_alone(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line, other = await server.connect(), await server.connect()
        await line.send(WHOLE + b"\x00\x01 nonsense\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"400 Bad Request" in await line.reader.read()
        await other.send(WHOLE)
        assert (await other.read()).status == 200


async def test_a_client_that_leaves_a_whole_request_is_counted(tmp_path: Path) -> None:
    async with site(tmp_path, wait=400.0) as server:
        line = await server.connect()
        await line.send(WHOLE)
        line.writer.close()
        stay = await server.connect()
        await stay.send(WHOLE, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await stay.read()).status == 200
        text = (await stay.read()).body.decode()
        assert 'focalserve_requests_total{code="499",route="/predict"} 1.0' in text
        assert "focalserve_cancelled_requests_total 1.0" in text


@pytest.mark.parametrize("size", [70_000, 3_000_000])
@pytest.mark.parametrize("parts", [1, 2])
async def test_a_client_that_leaves_a_long_request_is_counted(tmp_path: Path, size: int, parts: int) -> None:
    request = HEAD.replace(b": %d\r\n" % len(IMAGE), b": %d\r\n" % size) + b"\r\n" + IMAGE.ljust(size, b"\0")
    async with site(tmp_path, wait=400.0) as server:
        for _ in range(3):
            line = await server.connect()
            await line.send(*cuts(request, *([len(request) // 2] * (parts - 1))))
            line.writer.close()
        stay = await server.connect()
        await stay.send(request, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await stay.read()).status == 200
        text = (await stay.read()).body.decode()
        assert 'focalserve_requests_total{code="499",route="/predict"} 3.0' in text
        assert "focalserve_cancelled_requests_total 3.0" in text


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_that_stalls_ends_its_connection(tmp_path: Path, expect: bytes) -> None:
    async with site(tmp_path, body_timeout=0.2) as server:
        line = await server.connect()
        await line.send(HEAD + expect + b"\r\n", IMAGE[:9])
        if expect:
            assert (await line.read(body=False)).status == 100
        answer = await line.read()
        assert answer.status == 408 and answer.headers["connection"] == "close"
        assert await line.closed()


async def test_too_much_is_refused_and_ends_the_connection(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * 200_000)
    request = HEAD.replace(b": %d\r\n" % len(IMAGE), b": %d\r\n" % len(bomb)) + b"Content-Encoding: gzip\r\n\r\n" + bomb
    async with site(tmp_path, max_body_bytes=100_000) as server:
        for parts in (cuts(request), cuts(request, len(request) - 20)):
            line = await server.connect()
            await line.send(*parts)
            answer = await line.read()
            assert answer.status == 413 and answer.headers["connection"] == "close"
            assert await line.closed()


async def test_what_trails_the_last_request_of_a_connection_is_nothing_to_it(tmp_path: Path) -> None:
    last = b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n and more"
    async with site(tmp_path) as server:
        for parts in (cuts(WHOLE), cuts(WHOLE, len(WHOLE) - 20)):
            line = await server.connect()
            await line.send(*parts)
            assert (await line.read()).status == 200
            await line.send(last)
            assert (await line.read()).status == 200


async def test_a_stopping_server_answers_what_it_has_and_closes(tmp_path: Path) -> None:
    async with site(tmp_path, wait=400.0) as server:
        line, idle = await server.connect(), await server.connect()
        await idle.send(WHOLE)
        assert (await idle.read()).status == 200
        await line.send(WHOLE)
        await server.stop()
        answer = await line.read()
        assert answer.status == 200 and answer.headers["connection"] == "close"
        assert await line.closed() and await idle.closed()


async def test_a_failure_of_the_outermost_layer_ends_the_connection_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path) as server:
        server.front.broken = True
        line = await server.connect()
        await line.send(WHOLE)
        assert await line.closed()
        assert "a hot route was left by an exception" in caplog.text
        server.front.broken = False
        line = await server.connect()
        await line.send(WHOLE)
        assert (await line.read()).status == 200


async def test_a_request_without_an_answer_ends_its_connection(tmp_path: Path) -> None:
    """The next answer would be taken for its own."""
    async with site(tmp_path) as server:
        server.front.silent = True
        line = await server.connect()
        await line.send(WHOLE)
        assert await line.closed()


def test_many_new_connections_are_taken_in_a_few_turns_of_the_loop(tmp_path: Path) -> None:
    write_linear(tmp_path, ["a", "b"])

    async def crowd() -> int:
        server = Server(settings_of(models=tmp_path, port=0, drain_seconds=0.0, workers=1))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        links = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
        for _ in range(4):
            await asyncio.sleep(0)
        taken = len(server.server_state.connections)
        for link in links:
            link.close()
        server.should_exit = True
        await asyncio.wait_for(task, 20)
        return taken

    assert uvloop.run(crowd()) >= 16
