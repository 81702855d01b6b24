"""Messages between the processes of one service, each with a file where it has one: connections change hands so."""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable

_PIECE = 64 * 1024
"""A packet is held by the kernel whole, in a buffer of a few hundred kilobytes."""
_MORE, _LAST = b"\0", b"\1"
_BUFFER = 4 * 1024 * 1024
"""Bytes that the kernel is asked to hold of what the other side has not read; it gives what it allows."""
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
"""What says that the other side must read first; the last: that too many files are under way."""
_AT_ONCE = 64
"""Packets that are read in one turn of the event loop, at most."""

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
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._end = end
        self._on_message = on_message
        self._on_end = on_end
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._read)

    def send(self, message: bytes, file: int | None = None) -> None:
        """Sends a message, now or as soon as the other side has read more; closes the file here afterwards.

        After the end it goes nowhere.
        """
        if self._end.fileno() < 0:
            if file is not None:
                os.close(file)
            return
        last = max(0, len(message) - 1) // _PIECE * _PIECE
        self._waiting += [(_MORE + message[start : start + _PIECE], None) for start in range(0, last, _PIECE)]
        self._waiting.append((_LAST + message[last:], file))
        self._write()

    def close(self) -> None:
        """Ends it; what waits is not sent."""
        if self._end.fileno() < 0:
            return
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        for _, file in self._waiting:
            if file is not None:
                os.close(file)
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
            packet, file = self._waiting[0]
            try:
                if file is None:
                    self._end.send(packet)
                else:
                    socket.send_fds(self._end, [packet], [file])
            except OSError as error:
                if error.errno in _FULL:
                    self._loop.add_writer(self._end.fileno(), self._write)
                else:
                    self._over()
                return
            self._waiting.popleft()
            if file is not None:
                os.close(file)
        self._loop.remove_writer(self._end.fileno())

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            if self._end.fileno() < 0 or not self._read_one():
                return

    def _read_one(self) -> bool:
        """Whether there was a packet."""
        try:
            packet, files, _, _ = socket.recv_fds(self._end, 1 + _PIECE, 1)
        except BlockingIOError:
            return False
        except OSError:
            packet, files = b"", []
        if not packet:
            self._over()
            return False
        self._parts.append(packet[1:])
        if packet[:1] == _LAST:
            message = b"".join(self._parts)
            self._parts.clear()
            self._on_message(message, files[0] if files else None)
        return True
