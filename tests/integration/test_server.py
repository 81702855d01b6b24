import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest

from models.bundle import CARD_FILE
from models.fit import Pixels
from service.runtime import CUDA, cuda_driver_present
from tests.integration.launch import Server, launched, wait
from tests.serving import SIZE, b64, linear_logits, linear_weights, pictures, png_of, write_linear

LABELS = ["a", "b", "c"]
WEIGHTS = linear_weights(3)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("linear")
    write_linear(root, LABELS)
    return root


@pytest.fixture(scope="module")
def server(linear: Path) -> Iterator[Server]:
    with launched(linear, body_timeout="3") as running:
        running.until("process began")
        yield running


def metric(server: Server, name: str, **labels: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = 0.0
    for line in text.splitlines():
        if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            found += float(line.rsplit(" ", 1)[1])
    return found


def raw(server: Server, data: bytes, seconds: float = 5.0) -> bytes:
    """Everything that is answered until the connection ends or nothing comes any more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as link:
        link.sendall(data)
        got = b""
        try:
            while more := link.recv(65536):
                got += more
        except TimeoutError:
            pass
        return got


def probabilities(images: Pixels) -> Any:
    z = linear_logits(images, WEIGHTS)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_the_log_says_when_it_is_ready_and_how_long_it_took(server: Server) -> None:
    line = server.until("process began")
    found = re.search(r"ready (\d+\.\d\d) s after the process began", line)
    assert found is not None and 0.1 < float(found.group(1)) < 30.0
    ready = httpx.get(f"{server.url}/readyz")
    assert ready.json() == {"ready": True, "providers": {"linear": "CPUExecutionProvider"}}


def test_of_hundreds_of_requests_at_once_each_gets_its_own_answer(server: Server) -> None:
    images = pictures(150, SIZE, seed=7)
    want = probabilities(images)
    before = metric(server, "focalserve_requests_total", route="/predict")

    async def ask(http: httpx.AsyncClient, k: int) -> None:
        data = png_of(images[k // 2])
        if k % 2 == 0:
            answer = await http.post("/predict", content=data)
            assert answer.status_code == 200, answer.text
            np.testing.assert_allclose(answer.json()["predictions"][0]["probabilities"], want[k // 2], atol=1e-5)
            return
        inputs = [{"id": f"{k}", "image": b64(data[:50])}, {"id": f"good {k}", "image": b64(data)}]
        bad, good = (await http.post("/predict", json={"inputs": inputs})).json()["predictions"]
        assert bad["error"]["status"] == 422 and bad["id"] == f"{k}" and good["id"] == f"good {k}"
        np.testing.assert_allclose(good["probabilities"], want[k // 2], atol=1e-5)

    async def everybody() -> None:
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as http:
            await asyncio.gather(*(ask(http, k) for k in range(300)))

    asyncio.run(everybody())
    assert metric(server, "focalserve_requests_total", route="/predict") - before == 300
    predicted = metric(server, "focalserve_predictions_total")
    assert predicted == metric(server, "focalserve_batch_size_images_sum") - 0.0
    assert metric(server, "focalserve_queue_images") == 0


def test_a_request_without_a_host_and_one_of_huge_headers_are_refused(server: Server) -> None:
    assert raw(server, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 400")
    huge = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n"
    assert raw(server, huge)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "head",
    ["Content-Length: -5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nTransfer-Encoding: chunked"],
)
def test_bodies_of_two_lengths_are_refused(server: Server, head: str) -> None:
    got = raw(server, f"POST /predict HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\nabcde".encode(), 1.0)
    assert got.startswith(b"HTTP/1.1 400"), got
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_body_that_stalls_is_answered_408(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
    began = time.monotonic()
    got = raw(server, head, 8.0)
    assert got.startswith(b"HTTP/1.1 408"), got
    assert b"urn:focalserve:problem:request-timeout" in got
    assert time.monotonic() - began < 20.0


def test_a_body_over_the_limit_is_answered_413_and_not_read_on(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
    got = raw(server, head, 3.0)
    assert got.startswith(b"HTTP/1.1 413") and b"connection: close" in got.lower(), got


def test_probes_are_answered_while_a_long_body_is_read(server: Server) -> None:
    rows = np.random.default_rng(0).normal(size=(30_000, 3)).round(6).tolist()
    body = {"logits": rows, "labels": [0] * 30_000}
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(httpx.post, f"{server.url}/loss", json=body, timeout=60)
        slowest = 0.0
        while not long.done():
            began = time.monotonic()
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        assert long.result().status_code == 200
    assert slowest < 4.0


def test_a_client_that_leaves_while_it_sends_is_counted(server: Server) -> None:
    before = metric(server, "focalserve_cancelled_requests_total")
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        time.sleep(0.1)
    wait(lambda: metric(server, "focalserve_cancelled_requests_total") == before + 1)
    assert metric(server, "focalserve_cancelled_requests_total") == before + 1
    assert metric(server, "focalserve_requests_total", code="499") >= 1
    assert "ERROR" not in server.log


def test_pipelined_requests_are_all_answered_in_order(server: Server) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-ID: n-%d\r\n%s\r\n"
    data = b"".join(ask % (k, b"Connection: close\r\n" if k == 99 else b"") for k in range(100))
    got = raw(server, data)
    assert got.count(b"HTTP/1.1 200") == 100
    assert re.findall(rb"x-request-id: n-(\d+)", got) == [b"%d" % k for k in range(100)]


def test_a_full_queue_answers_429_with_retry_after_and_probes_still_answer(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS, rounds=1000)
    images = [{"image": b64(png_of(image))} for image in pictures(150, SIZE)]
    with launched(tmp_path, queue_size="2", max_batch="1") as busy:
        busy.until("process began")
        with ThreadPoolExecutor(12) as pool:
            big = [
                pool.submit(httpx.post, f"{busy.url}/predict", json={"inputs": images}, timeout=60) for _ in range(3)
            ]
            wait(lambda: metric(busy, "focalserve_queue_images") >= 1)
            small = list(pool.map(lambda _: httpx.post(f"{busy.url}/predict", json={"inputs": images[:1]}), range(60)))
            assert httpx.get(f"{busy.url}/readyz").status_code == 200
            codes = {answer.status_code for answer in small} | {future.result().status_code for future in big}
        assert codes == {200, 429}
        refused = [answer for answer in small if answer.status_code == 429]
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert metric(busy, "focalserve_rejected_requests_total", reason="queue_full") >= len(refused) >= 1
        assert httpx.post(f"{busy.url}/predict", json={"inputs": images[:1]}).status_code == 200


def test_sigterm_answers_on_while_not_ready_and_then_ends_with_0(linear: Path) -> None:
    data = png_of(pictures(1, SIZE)[0])
    with launched(linear, drain_seconds="1.5") as server:
        server.until("process began")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        wait(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, 1.0)
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.status_code == 503 and "stopping" in ready.json()["detail"]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert httpx.post(f"{server.url}/predict", content=data).status_code == 200
        assert server.ended(20) == 0
        assert time.monotonic() - began >= 1.5
        assert "ERROR" not in server.log and "Traceback" not in server.log


def test_a_request_in_flight_is_finished_before_the_end(linear: Path) -> None:
    with launched(linear, drain_seconds="0") as server:
        server.until("process began")
        data = png_of(pictures(1, SIZE)[0])
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            link.sendall(head.encode() + data[:20])
            time.sleep(0.2)
            server.signal(signal.SIGTERM)
            server.until("SIGTERM")
            time.sleep(0.2)
            link.sendall(data[20:])
            assert link.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.ended(20) == 0


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)], ids=["SIGTERM twice", "SIGINT"]
)
def test_a_second_sigterm_or_a_sigint_ends_it_at_once(linear: Path, numbers: tuple[int, ...]) -> None:
    with launched(linear, drain_seconds="60") as server:
        server.until("process began")
        began = time.monotonic()
        for number in numbers:
            server.signal(number)
            time.sleep(0.2)
        assert server.ended(15) == 0
        assert time.monotonic() - began < 10.0


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda card: {**card, "task": "dreams"}, "task"),
        (lambda card: {**card, "sha256": "0" * 64}, "SHA-256"),
        (lambda card: {**card, "extra": 1}, "extra"),
        (lambda card: {**card, "golden": {**card["golden"], "image_png": "AAAA"}}, "golden differ"),
    ],
    ids=["task", "sha256", "unknown key", "golden"],
)
def test_a_bad_bundle_ends_the_process_with_3_and_one_line_that_names_it(
    tmp_path: Path, spoil: Any, named: str
) -> None:
    path = write_linear(tmp_path, LABELS) / CARD_FILE
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with launched(tmp_path) as server:
        assert server.ended(30) == 3
        assert [line for line in server.lines if "ERROR" in line and named in line], server.log
        assert "Traceback" not in server.log
        assert len([line for line in server.lines if "ERROR" in line]) == 1


def test_a_port_that_is_taken_ends_the_process_with_3(linear: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, launched(linear, port=str(taken.getsockname()[1])) as server:
        assert server.ended(30) == 3
        assert "address already in use" in server.log


def test_an_empty_folder_is_live_but_not_ready_and_says_why(tmp_path: Path) -> None:
    with launched(tmp_path) as server:
        server.until("not ready")
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.status_code == 503 and "no bundle" in ready.json()["detail"]
        assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.skipif(CUDA in ort.get_available_providers() and cuda_driver_present(), reason="this machine has CUDA")
def test_cuda_asked_for_where_there_is_none_is_live_but_never_ready(linear: Path) -> None:
    with launched(linear, device="cuda") as server:
        server.until("not ready")
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.status_code == 503 and "cuda was asked for, but" in ready.json()["detail"]
        assert ready.json()["type"] == "urn:focalserve:problem:device-unavailable"
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert metric(server, "focalserve_ready") == 0.0


def test_clients_that_leave_while_they_wait_cost_nothing(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    body = json.dumps({"inputs": [{"image": b64(png_of(image))} for image in pictures(3000, SIZE)]}).encode()
    with launched(tmp_path, max_batch="1", queue_size="4") as server:
        server.until("process began")
        link = socket.create_connection(("127.0.0.1", server.port))
        link.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        wait(lambda: metric(server, "focalserve_batch_size_images_count") > 5)
        threading.Timer(0.0, link.close).start()
        wait(lambda: metric(server, "focalserve_cancelled_requests_total") == 1)
        assert metric(server, "focalserve_cancelled_requests_total") == 1
        assert metric(server, "focalserve_batch_size_images_count") < 3000
        assert metric(server, "focalserve_queue_images") <= 4
        assert "ERROR" not in server.log


@pytest.mark.slow
def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs_and_then_closed(
    linear: Path, server: Server
) -> None:
    ask = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n%b"
    image = png_of(pictures(1, SIZE)[0])
    with (
        launched(linear, keep_alive_seconds="2") as short,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as patient,
    ):
        short.until("process began")
        with socket.create_connection(("127.0.0.1", short.port), timeout=10) as brief:
            for link in (patient, brief):
                link.sendall(ask % (len(image), image))
                assert link.recv(65536).startswith(b"HTTP/1.1 200")
            start = time.monotonic()
            assert brief.recv(1) == b""
            assert time.monotonic() - start > 1.0
        time.sleep(max(0.0, 6.0 - (time.monotonic() - start)))  # httpx keeps its own for 5
        patient.sendall(ask % (len(image), image))
        assert patient.recv(65536).startswith(b"HTTP/1.1 200")
