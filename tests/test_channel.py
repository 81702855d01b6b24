"""Messages between processes arrive whole and in order, with their files, and an end is noticed."""

import asyncio
import os
import socket

from service.channel import Channel

Got = list[tuple[bytes, bytes | None]]


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def file_of(text: bytes) -> int:
    """What reads as that text."""
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    return reading


class Listener:
    """Keeps what one end hears."""

    def __init__(self, end: socket.socket) -> None:
        self.got: Got = []
        self.ends = 0
        self.channel = Channel(end, self._take, self._end)

    def _take(self, message: bytes, file: int | None) -> None:
        text = None
        if file is not None:
            text = os.read(file, 100)
            os.close(file)
        self.got.append((message, text))

    def _end(self) -> None:
        self.ends += 1

    async def until(self, count: int) -> Got:
        async with asyncio.timeout(10):
            while len(self.got) < count:
                await asyncio.sleep(0.001)
        return self.got


async def test_messages_of_any_length_arrive_in_order_with_their_files() -> None:
    a, b = pair()
    here, there = Listener(a), Listener(b)
    long = os.urandom(5_000_000)
    for text in (b"", b"x", long, b"after"):
        here.channel.send(text, file_of(b"file of %d" % len(text)) if text != b"x" else None)
    there.channel.send(b"back")
    got = await there.until(4)
    assert [(len(text), file) for text, file in got] == [
        (0, b"file of 0"),
        (1, None),
        (len(long), b"file of 5000000"),
        (5, b"file of 5"),
    ]
    assert got[2][0] == long
    assert await here.until(1) == [(b"back", None)]
    async with asyncio.timeout(5):
        await here.channel.sent()
    here.channel.close()
    there.channel.close()


async def test_neither_side_keeps_a_file_that_was_sent() -> None:
    a, b = pair()
    here, there = Listener(a), Listener(b)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        here.channel.send(b"take this", file_of(b"text"))
    await there.until(200)
    assert len(os.listdir("/proc/self/fd")) == before
    here.channel.close()
    there.channel.close()


async def test_the_end_of_the_other_side_is_told_once_and_sending_goes_nowhere() -> None:
    a, b = pair()
    here, there = Listener(a), Listener(b)
    there.channel.close()
    for _ in range(3):
        here.channel.send(b"x" * 1_000_000, file_of(b"text"))
    async with asyncio.timeout(5):
        while not here.ends:
            await asyncio.sleep(0.001)
    before = len(os.listdir("/proc/self/fd"))
    here.channel.send(b"too late", file_of(b"text"))
    await asyncio.sleep(0.05)
    assert here.ends == 1 and there.ends == 0
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_crowd_is_read_in_few_turns_of_the_loop() -> None:
    a, b = pair()
    here, there = Listener(a), Listener(b)
    for n in range(64):
        here.channel.send(b"%d" % n, file_of(b"text"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(there.got) == 64
    here.channel.close()
    there.channel.close()
