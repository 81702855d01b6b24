"""Long bodies are read to where they stay: whole, however they come, and the connection goes on after them."""

import itertools
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.losses import softmax_focal
from scripts.bench import rss_mb
from scripts.load import loss_body
from service.exchange import WHOLE
from tests.integration.launch import Answer, Server, answers, launched
from tests.serving import write_linear

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0.0, 3.0, (20_000, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 20_000)
BODY, HEADERS = loss_body(LOGITS, LABELS)
EXPECTED = softmax_focal(LOGITS.astype(np.float64), LABELS).values
assert len(BODY) > 10 * WHOLE
INFER = "/v2/models/focal_loss/infer"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
MOST = 2_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("linear")
    write_linear(root)
    with launched(root, body_timeout="1", max_body_bytes=str(MOST)) as running:
        running.until("process began")
        yield running


@pytest.fixture
def link(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
        yield one


def head(path: str = INFER, length: int = len(BODY), **more: str) -> bytes:
    lines = [
        f"{name}: {value}" for name, value in ({"Host": "x", "Content-Length": str(length)} | HEADERS | more).items()
    ]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


def losses(found: Answer) -> NDArray[np.float64]:
    """Of an answer, whose only output is binary."""
    assert found.status == 200, found.body
    return np.frombuffer(found.body, np.float64, offset=len(found.body) - 8 * len(LABELS))


def is_live(found: Answer) -> bool:
    return found.status == 200 and json.loads(found.body)["live"] is True


@pytest.mark.parametrize(
    "cuts",
    [(), (1,), (10,), (-1,), (100_000, 300_000, 700_000), tuple(range(0, len(BODY), 90_001))],
    ids=["whole", "one byte", "ten bytes", "all but one byte", "four parts", "many parts"],
)
def test_a_body_is_whole_however_it_comes_and_the_connection_goes_on(link: socket.socket, cuts: Sequence[int]) -> None:
    edges = [0, *(cut % len(BODY) for cut in cuts), len(BODY)]
    for _ in range(2):
        link.sendall(head())
        for start, end in itertools.pairwise(edges):
            link.sendall(BODY[start:end])
            time.sleep(0.01)
        assert losses(*answers(link)) == pytest.approx(EXPECTED)
        link.sendall(HEALTH)
        assert is_live(*answers(link))


def test_what_comes_in_one_go_behind_a_body_is_the_next_request(link: socket.socket) -> None:
    link.sendall(head() + BODY + HEALTH + head() + BODY)
    first, second, third = answers(link, 3)
    assert losses(first) == pytest.approx(EXPECTED)
    assert is_live(second)
    assert losses(third) == pytest.approx(EXPECTED)


def test_an_answer_that_needs_no_body_comes_before_it_and_the_rest_is_passed_over(link: socket.socket) -> None:
    link.sendall(head("/v2/repository/models/linear/load") + BODY[:1000])
    (found,) = answers(link)
    assert found.status == 400 and b"65536" in found.body
    assert found.headers["connection"] == "close"
    link.sendall(BODY[1000:-1])
    time.sleep(0.1)
    link.sendall(BODY[-1:])
    assert link.recv(100) == b"", "it ends with the body, not amid it"


def test_too_long_a_body_is_refused_by_its_announcement(link: socket.socket) -> None:
    link.sendall(head(length=MOST + 1) + BODY[:1000])
    (found,) = answers(link)
    assert found.status == 400 and str(MOST) in json.loads(found.body)["error"]


def test_a_body_that_stalls_is_answered_408(link: socket.socket) -> None:
    link.sendall(head() + BODY[:-1])
    (found,) = answers(link)
    assert found.status == 408, found.body


def test_a_client_that_leaves_amid_its_body_is_counted_and_forgotten(server: Server) -> None:
    def cancelled() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("focalserve_cancelled_requests_total"))

    before = cancelled()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(head() + BODY[: len(BODY) // 2])
            time.sleep(0.05)
    until = time.monotonic() + 5
    while cancelled() < before + 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert cancelled() == before + 3
    assert "Traceback" not in server.log and "ERROR" not in server.log


def test_a_client_that_waits_for_leave_gets_it(server: Server, link: socket.socket, tmp_path: Path) -> None:
    link.sendall(head(Expect="100-continue"))
    said = link.recv(100)
    assert said == b"HTTP/1.1 100 Continue\r\n\r\n"
    link.sendall(BODY)
    assert losses(*answers(link)) == pytest.approx(EXPECTED)
    file = tmp_path / "body"
    file.write_bytes(BODY)
    length = HEADERS["Inference-Header-Content-Length"]
    command = ["curl", "-s", "--data-binary", f"@{file}", "-H", f"Inference-Header-Content-Length: {length}"]
    done = subprocess.run(
        [*command, "-H", "Expect: 100-continue", server.url + INFER], capture_output=True, check=True, timeout=20
    )
    assert np.frombuffer(done.stdout[-8 * len(LABELS) :], np.float64) == pytest.approx(EXPECTED)


def test_a_refusal_without_leave_ends_the_connection_since_the_body_may_not_come(link: socket.socket) -> None:
    link.sendall(head("/v2/repository/models/linear/load", Expect="100-continue"))
    (found,) = answers(link)
    assert found.status == 400 and found.headers["connection"] == "close"
    assert link.recv(100) == b""


def test_a_long_image_and_a_long_form_are_read_the_same_way(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        text = json.dumps({"inputs": [{"image": "AAAA", "id": str(k)} for k in range(100)]}).replace(
            ", ", "," + " " * 2500
        )
        assert len(text) > WHOLE
        found = http.post("/predict", content=text, headers={"content-type": "application/json"})
        assert found.status_code == 200
        assert [one["id"] for one in found.json()["predictions"]] == [str(k) for k in range(100)]
        files = [("files", (f"{k}.png", b"no picture" * 5000, "image/png")) for k in range(10)]
        found = http.post("/predict", files=files)
        assert found.status_code in (200, 415, 422), found.text
        assert http.get("/healthz").status_code == 200


def test_a_connection_that_rests_does_not_keep_the_body_of_its_last_request(tmp_path: Path) -> None:
    write_linear(tmp_path)
    body, headers = loss_body(np.zeros((100_000, 75), np.float32), np.zeros(100_000, np.int64))
    with launched(tmp_path, workers="1") as server, ExitStack() as stack:
        server.until("process began")
        links = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)) for _ in "12345678"
        ]
        sizes = []
        for one in links:
            one.sendall(head(length=len(body), **headers) + body)
            assert answers(one, 1)[0].status == 200
            sizes.append(rss_mb(server.process.pid))
        assert sizes[-1] - sizes[1] < 3 * len(body) / 1e6, "six more bodies of 31 MB came meanwhile"
