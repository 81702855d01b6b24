"""A load client for one HTTP request repeated on a few connections: wrk where it is installed, else our own."""

import asyncio
import http.client
import json
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import FocalserveError

_LUA = """local file = io.open("{body}", "rb"); wrk.body = file:read("*all"); file:close()
wrk.method = "POST"
{headers}
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
    headers: dict[str, str]
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
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in load.headers.items())
        script.write_text(_LUA.format(body=body, headers=headers), encoding="utf-8")
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
    headers = {"Host": load.host, "Content-Length": str(len(load.body)), **load.headers}
    lines = [f"POST {load.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode() + load.body
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


def seconds_of_one(load: Load) -> float:
    """Seconds of one request on a connection of its own.

    Raises:
        FocalserveError: it was not answered 200.
    """
    link = http.client.HTTPConnection(load.host, load.port, timeout=600)
    link.connect()
    start = time.perf_counter()
    link.request("POST", load.path, load.body, load.headers)
    answer = link.getresponse()
    text = answer.read()
    seconds = time.perf_counter() - start
    link.close()
    if answer.status != 200:
        raise FocalserveError(f"{load.path} answered {answer.status}: {text[:200].decode('utf-8', 'replace')}")
    return seconds


def loss_body(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[bytes, dict[str, str]]:
    """Logits (N, K) and labels (N,) for the model `focal_loss` of /v2, binary both ways, with the headers."""
    inputs = [
        {"name": name, "datatype": kind, "shape": list(array.shape), "parameters": {"binary_data_size": array.nbytes}}
        for name, kind, array in (("logits", "FP32", logits), ("labels", "INT64", labels))
    ]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "loss", "parameters": {"binary_data": True}}]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + logits.tobytes() + labels.tobytes(), headers


def labelled_form(image: bytes, kind: str, label: str, count: int) -> tuple[bytes, dict[str, str]]:
    """The same image and label that many times as multipart/form-data for /loss, with the headers."""
    mark = "focalserve-bench"
    file = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\nContent-Type: {kind}\r\n\r\n'
    text = f'--{mark}\r\nContent-Disposition: form-data; name="label"\r\n\r\n{label}\r\n'
    body = (file.encode() + image + b"\r\n" + text.encode()) * count + f"--{mark}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={mark}"}
