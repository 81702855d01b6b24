"""The end of a service that still has work which nobody can wait for."""

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.foreign import looping, write_foreign
from tests.integration.launch import Server, answers, launched, wait
from tests.serving import write_linear

ENDLESS = {"inputs": [{"name": "count", "datatype": "INT64", "shape": [1], "data": [10**9]}]}
HALF = b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_linear(tmp_path)
    write_foreign(tmp_path, long=looping())
    with launched(tmp_path, default_model="linear", drain_seconds="0", grace_seconds="1") as running:
        running.until("process began")
        yield running


def ask(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/models/long/infer", json=ENDLESS, timeout=60.0)


def running(server: Server) -> bool:
    """Whether one run is under way and one request waits for it."""
    return 'focalserve_queue_images{model="long"} 1.0' in httpx.get(f"{server.url}/metrics").text


def sent_half(server: Server, paths: Sequence[bytes], stack: ExitStack) -> list[socket.socket]:
    """Connections with a request whose body does not end."""
    links = []
    for path in paths:
        link = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        link.sendall(b"POST " + path + HALF)
        links.append(link)
    return links


def test_values_that_take_long_hold_up_no_probe(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask, server) for _ in range(2)]
        wait(lambda: running(server))
        assert running(server)
        assert httpx.get(f"{server.url}/readyz", timeout=5.0).status_code == 200
        server.signal(signal.SIGKILL)
        assert all(isinstance(one.exception(), httpx.TransportError) for one in both)


def test_what_has_no_end_is_answered_503_after_the_grace_and_the_service_ends(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        both = [pool.submit(ask, server) for _ in range(2)]
        wait(lambda: running(server))
        links = sent_half(server, [b"/loss", b"/v2/models/long/infer", b"/audits"], stack)
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        cut = [answers(link)[0] for link in links]
        assert server.ended(20) == 0
        assert 1.0 <= time.monotonic() - began < 15.0
        whole = [one.result() for one in both]
    for status, text in [*((one.status, one.body.decode()) for one in cut), *((a.status_code, a.text) for a in whole)]:
        assert status == 503 and "the service is stopping" in text, text
    assert "Traceback" not in server.log, server.log


def test_a_second_sigterm_does_not_wait_for_a_run(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask, server) for _ in range(2)]
        wait(lambda: running(server))
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ended(15) == 0
        assert time.monotonic() - began < 10.0
        assert all(one.exception() or one.result().status_code == 503 for one in both)
    assert "Traceback" not in server.log, server.log
