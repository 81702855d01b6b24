"""Messages between the processes of one service, each with a file where it has one: connections change hands so."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable

_SHORT = 8 * 1024
"""Bytes of a message that goes through the socket, at most: a longer one goes in memory that has a file's descriptor.

The kernel keeps a few hundred kilobytes of what the other side has not read; it would have to read between many turns.
"""
_HERE, _IN_FILE = b"\0", b"\1"
_AT_ONCE = 64
"""Messages that are read in one turn of the event loop, at most."""

OnMessage = Callable[[bytes, int | None], None]


class Channel:
    """One end of a pair of sockets (`SOCK_SEQPACKET`); needs a running event loop.

    Args:
        end: of the pair.
        on_message: called with each message, and its file, which is then the callee's to close.
        on_end: called once when the other side is gone.
    """

    def __init__(self, end: socket.socket, on_message: OnMessage, on_end: Callable[[], None]) -> None:
        end.setblocking(False)
        self._end = end
        self._on_message = on_message
        self._on_end = on_end
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._read)

    def send(self, message: bytes, file: int | None = None) -> None:
        """Sends a message, now or as soon as the other side has read more; closes the file here afterwards.

        After the end it goes nowhere. Where there is no memory for it, or no more file, that is the end.
        """
        files = [] if file is None else [file]
        if self._end.fileno() < 0:
            _close(files)
            return
        if len(message) <= _SHORT:
            packet = _HERE + message
        else:
            try:
                packet, files = _IN_FILE, [*files, _memory_of(message)]
            except OSError:
                _close(files)
                self._over()
                return
        self._waiting.append((packet, files))
        if len(self._waiting) == 1:
            self._write()

    def close(self) -> None:
        """Ends it; what waits is not sent."""
        if self._end.fileno() < 0:
            return
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        for _, files in self._waiting:
            _close(files)
        self._waiting.clear()

    async def sent(self) -> None:
        """Waits until nothing waits."""
        while self._waiting:
            await asyncio.sleep(0.005)

    def _over(self) -> None:
        self.close()
        self._loop.call_soon(self._on_end)

    def _write(self) -> None:
        while self._waiting:
            packet, files = self._waiting[0]
            try:
                socket.send_fds(self._end, [packet], files)
            except BlockingIOError:
                self._loop.add_writer(self._end.fileno(), self._write)
                return
            except OSError:
                self._over()
                return
            self._waiting.popleft()
            _close(files)
        self._loop.remove_writer(self._end.fileno())

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            if self._end.fileno() < 0 or not self._read_one():
                return

    def _read_one(self) -> bool:
        """Whether there was a message."""
        try:
            packet, files, _, _ = socket.recv_fds(self._end, 1 + _SHORT, 2)
        except BlockingIOError:
            return False
        except OSError:
            packet, files = b"", []
        if not packet:
            self._over()
            return False
        if packet != _IN_FILE:
            message = packet[1:]
        elif files:
            message = _content(files.pop())
        else:  # this process can take no more files: what comes is lost, and somebody waits for it
            self._over()
            return False
        self._on_message(message, files[0] if files else None)
        return True


def _memory_of(message: bytes) -> int:
    """A file in memory that holds it."""
    file = os.memfd_create("message")
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(message)
    except OSError:
        os.close(file)
        raise
    return file


def _content(file: int) -> bytes:
    """What a file in memory holds; closes it."""
    with open(file, "rb", buffering=0) as memory:
        memory.seek(0)
        return memory.read()


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
