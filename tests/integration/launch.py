"""A service in a process of its own, on loopback and a free port, ended whatever happens."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ALONE = {"device": "cpu", "port": "0", "workers": "1"}


class Server:
    """A running `python -m service` and the lines that it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """Everything logged so far."""
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        """The port it took, once it said so."""
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", self.until("running on http"))
        assert found is not None, self.log
        return int(found.group(1))

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def until(self, words: str, seconds: float = 30.0) -> str:
        """The first logged line that holds the words."""
        wait(lambda: any(words in line for line in self.lines) or self.process.poll() is not None, seconds)
        found = [line for line in self.lines if words in line]
        assert found, f"{words!r} was never logged:\n{self.log}"
        return found[0]

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def ended(self, seconds: float) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))


class Answer(NamedTuple):
    """An answer as it came over a connection."""

    status: int
    headers: dict[str, str]
    body: bytes


def answers(link: socket.socket, count: int = 1) -> list[Answer]:
    """The next so many answers on a connection that has no more to come yet."""
    found = []
    with link.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            lines = iter(file.readline, b"\r\n")
            headers = dict(line.decode("latin-1").rstrip("\r\n").lower().split(": ", 1) for line in lines)
            found.append(Answer(status, headers, file.read(int(headers["content-length"]))))
    return found


def wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns once the condition holds, or after that many seconds."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


@contextmanager
def launched(artifacts: Path, **settings: str) -> Iterator[Server]:
    """The service on these artifacts, in one process; settings as in FOCALSERVE_..., in small letters."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FOCALSERVE_")}
    env |= {f"FOCALSERVE_{name.upper()}": value for name, value in {**ALONE, **settings}.items()}
    command = [sys.executable, "-m", "service", str(artifacts)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        server = Server(process)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            server._reader.join(5)
