"""A load client for one HTTP request repeated on a few connections: wrk where it is installed, else our own."""

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from models.errors import FocalserveError

_LUA = """local file = io.open("{body}", "rb"); wrk.body = file:read("*all"); file:close()
wrk.method = "POST"; wrk.headers["Content-Type"] = "{kind}"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %f %f\\n", summary.requests, summary.duration,
    e.status + e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True)
class Load:
    """What is sent: one POST, again and again."""

    host: str
    port: int
    path: str
    kind: str
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """What came back.

    Attributes:
        per_second: answers per second.
        p50_ms: median latency.
        p99_ms: 99th percentile of the latency.
        errors: answers other than 200, and broken connections.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def run_load(load: Load, connections: int, seconds: float) -> Outcome:
    """Sends the request on that many connections for that long.

    Raises:
        FocalserveError: nothing was answered.
    """
    outcome = (_wrk if shutil.which("wrk") else _own)(load, connections, seconds)
    if outcome.per_second == 0.0:
        raise FocalserveError(f"http://{load.host}:{load.port}{load.path} answered nothing")
    return outcome


def _wrk(load: Load, connections: int, seconds: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body", Path(folder) / "post.lua"
        body.write_bytes(load.body)
        script.write_text(_LUA.format(body=body, kind=load.kind), encoding="utf-8")
        url = f"http://{load.host}:{load.port}{load.path}"
        length = f"-d{max(1, round(seconds))}s"
        arguments = ["wrk", "-t1", f"-c{connections}", length, "--timeout", "60s", "-s", str(script), url]
        text = subprocess.run(arguments, capture_output=True, text=True, check=False).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", text)
    if found is None:
        return Outcome(0.0, 0.0, 0.0, 0)
    answered, microseconds, errors = (int(found[i]) for i in (1, 2, 3))
    return Outcome(answered / (microseconds / 1e6), float(found[4]), float(found[5]), errors)


def _own(load: Load, connections: int, seconds: float) -> Outcome:
    return asyncio.run(_own_async(load, connections, seconds))


async def _own_async(load: Load, connections: int, seconds: float) -> Outcome:
    until = time.perf_counter() + seconds
    start = time.perf_counter()
    taken = await asyncio.gather(*(_one_connection(load, until) for _ in range(connections)))
    span = time.perf_counter() - start
    latencies = sorted(one for times, _ in taken for one in times)
    if not latencies:
        return Outcome(0.0, 0.0, 0.0, sum(errors for _, errors in taken))
    p50, p99 = (latencies[min(len(latencies) - 1, int(q * len(latencies)))] * 1e3 for q in (0.5, 0.99))
    return Outcome(len(latencies) / span, p50, p99, sum(errors for _, errors in taken))


async def _one_connection(load: Load, until: float) -> tuple[list[float], int]:
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: {load.host}\r\nContent-Type: {load.kind}\r\n"
        f"Content-Length: {len(load.body)}\r\n\r\n"
    )
    request = head.encode() + load.body
    reader, writer = await asyncio.open_connection(load.host, load.port)
    times: list[float] = []
    errors = 0
    try:
        while time.perf_counter() < until:
            start = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            times.append(time.perf_counter() - start)
            errors += b" 200 " not in answer[:16]
    except (OSError, asyncio.IncompleteReadError):
        errors += 1
    finally:
        writer.close()
    return times, errors
