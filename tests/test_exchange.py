import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncGenerator, Iterable

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.errors import BodyTooLarge, InvalidRequest, MalformedRequest, RequestTimeout, UnsupportedMedia
from service.exchange import Call


def call_of(
    chunks: Iterable[bytes], headers: dict[str, str] | None = None, ends: bool = True, query: bytes = b""
) -> Call:
    async def messages() -> AsyncGenerator[Message]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        if ends:
            yield {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(60)

    stream = messages()

    async def receive() -> Message:
        return await anext(stream)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return Call({"type": "http", "method": "POST", "path": "/", "query_string": query, "headers": raw}, receive)


async def test_a_body_in_many_pieces_is_put_together() -> None:
    assert await call_of(b"abc" for _ in range(1000)).body(3000, 5) == b"abc" * 1000


async def test_a_binary_body_in_many_pieces_is_put_together_whatever_it_announces() -> None:
    for headers in ({"content-length": "3000"}, {"content-length": "x"}, {}):
        assert bytes(await call_of((b"abc" for _ in range(1000)), headers).binary(3000, 5)) == b"abc" * 1000


async def test_a_binary_body_that_ends_early_has_what_came() -> None:
    assert bytes(await call_of([b"abc", b"de"], {"content-length": "3000"}).binary(3000, 5)) == b"abcde"


async def test_a_binary_body_beyond_its_length_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="longer"):
        await call_of([b"abc", b"de"], {"content-length": "4"}).binary(3000, 5)
    with pytest.raises(BodyTooLarge):
        await call_of([b"abc", b"de"], {"content-length": "4"}).binary(4, 5)


async def test_a_binary_body_may_be_gzip() -> None:
    packed = gzip.compress(b"abc" * 1000)
    headers = {"content-length": str(len(packed)), "content-encoding": "gzip"}
    assert await call_of([packed[:9], packed[9:]], headers).binary(3000, 5) == b"abc" * 1000


async def test_a_body_of_just_the_limit_is_read_and_one_byte_more_is_refused() -> None:
    assert len(await call_of([b"x" * 100]).body(100, 5)) == 100
    with pytest.raises(BodyTooLarge):
        await call_of([b"x" * 101]).body(100, 5)


async def test_an_announced_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    def never() -> Iterable[bytes]:
        raise AssertionError("was read")
        yield b""

    with pytest.raises(BodyTooLarge):
        await call_of(never(), {"content-length": "101"}).body(100, 5)


async def test_an_endless_body_is_refused_at_the_limit() -> None:
    def endless() -> Iterable[bytes]:
        sent = 0
        while True:
            sent += 1
            assert sent < 20, "reading went on after the limit"
            yield b"x" * 10

    with pytest.raises(BodyTooLarge):
        await call_of(endless()).body(100, 5)


@pytest.mark.parametrize("announced", ["", "-5", "1e3", "x" * 30, "9" * 30])
async def test_a_strange_length_does_not_matter(announced: str) -> None:
    assert await call_of([b"ok"], {"content-length": announced}).body(100, 5) == b"ok"


async def test_a_body_that_stalls_is_given_up() -> None:
    with pytest.raises(RequestTimeout):
        await call_of([b"abc"], ends=False).body(100, 0.05)


async def test_a_client_that_leaves_while_sending_is_told_apart() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await Call({"type": "http", "method": "POST", "path": "/", "headers": []}, receive).body(100, 5)


async def test_gzip_is_unpacked_and_counts_unpacked() -> None:
    gzipped = {"content-encoding": "GZip"}
    assert await call_of([gzip.compress(b"x" * 1000)], gzipped).body(1000, 5) == b"x" * 1000
    with pytest.raises(BodyTooLarge):
        await call_of([gzip.compress(b"x" * 1001)], gzipped).body(1000, 5)


async def test_others_are_answered_while_a_long_gzip_is_unpacked() -> None:
    packed, others = gzip.compress(bytes(range(256)) * 20_000), asyncio.Event()
    assert len(packed) > 1024
    asyncio.get_running_loop().call_soon(others.set)
    assert len(await call_of([packed], {"content-encoding": "gzip"}).body(10**7, 5)) == 5_120_000
    assert others.is_set()


async def test_a_gzip_bomb_is_refused_within_its_limit() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    began = time.perf_counter()
    with pytest.raises(BodyTooLarge):
        await call_of([bomb], {"content-encoding": "gzip"}).body(100_000, 5)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    "data",
    [b"", b"not gzip", gzip.compress(b"abc")[:-4], gzip.compress(b"abc") + b"more", zlib.compress(b"abc")],
    ids=["empty", "text", "cut", "trailing", "zlib"],
)
async def test_what_is_not_one_whole_gzip_member_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        await call_of([data], {"content-encoding": "gzip"}).body(1000, 5)


@pytest.mark.parametrize("name", ["br", "deflate", "gzip, gzip", "zstd"])
async def test_other_encodings_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedMedia):
        await call_of([b"abc"], {"content-encoding": name}).body(1000, 5)


def test_a_header_is_found_by_its_small_name_and_absent_is_empty() -> None:
    call = call_of([], {"Content-Type": "image/png"})
    assert call.header(b"content-type") == "image/png" and call.header(b"accept") == ""


def test_a_query_is_read_once_and_a_repeated_name_is_refused() -> None:
    assert call_of([], query=b"label=a%20b&top_k=&%C3%A9=%C3%A9").query() == {
        "label": "a b",
        "top_k": "",
        "\u00e9": "\u00e9",
    }
    assert call_of([]).query() == {}
    with pytest.raises(InvalidRequest, match="more than once"):
        call_of([], query=b"a=1&a=2").query()


def test_a_query_of_too_many_fields_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest):
        call_of([], query=b"&".join(b"a%d=1" % k for k in range(200))).query()
