"""Several processes are one service: nothing is lost, crosses or is counted twice when connections change hands."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.calibration import log_softmax
from tests.integration.launch import Server, answers, launched, wait
from tests.serving import SIZE, b64, linear_logits, linear_weights, pictures, png_of, write_linear

LABELS = ["a", "b", "c"]
IMAGES = pictures(16, SIZE)
FILES = [png_of(image) for image in IMAGES]
EXPECTED = np.exp(log_softmax(linear_logits(IMAGES, linear_weights(3))))
TOGETHER = "2 processes answer"


@contextmanager
def shared(folder: Path, **settings: str) -> Iterator[Server]:
    """A service of two processes."""
    with launched(folder, **{"workers": "2", "drain_seconds": "0", **settings}) as server:
        server.until(TOGETHER)
        yield server


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("linear")
    write_linear(root, LABELS)
    return root


@pytest.fixture(scope="module")
def server(linear: Path) -> Iterator[Server]:
    with shared(linear) as running:
        yield running


class Client:
    """One connection that is kept."""

    def __init__(self, server: Server) -> None:
        self.link = HTTPConnection("127.0.0.1", server.port, timeout=20)
        self.link.connect()
        assert self.link.sock is not None
        self.address = self.link.sock.getsockname()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[HTTPResponse, bytes]:
        """A request on that connection, and on no other."""
        self.link.request(method, path, body, headers)
        answer = self.link.getresponse()
        text = answer.read()
        assert self.link.sock is not None and self.link.sock.getsockname() == self.address
        return answer, text

    def predict(self, k: int) -> str:
        """Which process answered; the answer is that of image k."""
        answer, text = self.ask("POST", "/predict", FILES[k])
        assert answer.status == 200, text
        assert np.allclose(json.loads(text)["predictions"][0]["probabilities"], EXPECTED[k], rtol=1e-3, atol=1e-5)
        return by(answer)


def by(answer: HTTPResponse) -> str:
    """The process that answered: each numbers its requests under a name of its own."""
    return str(answer.headers["x-request-id"]).split("-")[0]


@pytest.fixture
def two(server: Server) -> Iterator[list[Client]]:
    """Two connections, of which the first process has one and the other one the other."""
    with ExitStack() as stack:
        yield connections(server, stack, 2)


def connections(server: Server, stack: ExitStack, count: int) -> list[Client]:
    """That many, each after its first request; those of the first process come first."""
    before, own = [Client(server) for _ in range(count)], Client(server)
    for client in [own, *before]:
        stack.callback(client.link.close)
    first = by(own.ask("GET", "/healthz")[0])
    own.link.close()
    return sorted(before, key=lambda client: client.predict(0) != first)


def children(server: Server) -> list[int]:
    """The processes that it began."""
    own = (int(one.name) for one in Path("/proc").glob("[0-9]*"))
    return [one for one in own if state_of(one)[1:2] == [str(server.process.pid)] and runs(one)]


def runs(process: int) -> bool:
    """Whether it has not ended."""
    return state_of(process)[:1] not in ([], ["Z"])


def state_of(process: int) -> list[str]:
    """State, parent and more; nothing where there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rsplit(") ", 1)[1].split()


def counted(server: Server, name: str) -> float:
    """A metric, all its series together."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_connections_are_shared_and_every_request_is_counted_once(server: Server) -> None:
    before = counted(server, 'focalserve_requests_total{code="200",route="/predict"}')
    images = counted(server, "focalserve_predictions_total")
    names: Counter[str] = Counter()
    lock = threading.Lock()

    def caller(seed: int) -> None:
        client = Client(server)
        for k in np.random.default_rng(seed).integers(len(FILES), size=40).tolist():
            name = client.predict(k)
            with lock:
                names[name] += 1
        client.link.close()

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(names.values()) == 320 and len(names) == 2
    assert min(names.values()) >= 80, "connections are spread evenly"
    assert counted(server, 'focalserve_requests_total{code="200",route="/predict"}') - before == 320
    assert counted(server, "focalserve_predictions_total") - images == 320
    statistics = httpx.get(f"{server.url}/v2/models/linear/stats").json()["model_stats"][0]
    assert statistics["inference_count"] == counted(server, "focalserve_predictions_total")


def test_a_connection_goes_back_with_what_the_other_process_does_not_do_and_stays(two: list[Client]) -> None:
    own, other = (client.predict(1) for client in two)
    assert own != other
    moved = two[1]
    labelled = json.dumps({"inputs": [{"image": b64(FILES[2]), "label": "b"}]}).encode()
    answer, text = moved.ask("POST", "/loss", labelled)
    assert answer.status == 200 and by(answer) == own
    assert json.loads(text)["items"][0]["p_given"] == pytest.approx(EXPECTED[2, 1], rel=1e-4)
    for method, path, status in [("GET", "/readyz", 200), ("GET", "/v2/models/linear", 200), ("GET", "/no", 404)]:
        answer, _ = moved.ask(method, path)
        assert answer.status == status and by(answer) == own
    assert moved.predict(3) == own


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/predict", 405),
        ("POST", "/predicted", 404),
        ("POST", "/v2/models/linear/versions/1/load", 404),
        ("DELETE", "/v2/models/linear/infer", 405),
        ("POST", "/v2/models/my%20model/infer", 404),
        ("POST", "/v2/models/li%6eear/infer", 400),
    ],
)
def test_what_only_looks_like_it_is_answered_by_the_first(
    two: list[Client], method: str, path: str, status: int
) -> None:
    answer, _ = two[1].ask(method, path, b"")
    assert answer.status == status and by(answer) == two[0].predict(0)


def test_errors_of_the_other_process_are_those_of_the_first(two: list[Client]) -> None:
    said = []
    for client in two:
        name = client.predict(0)
        for path, body in [
            ("/predict", b"no image"),
            ("/predict?model=none", FILES[0]),
            ("/v2/models/none/infer", b"{}"),
            ("/v2/models/linear/infer", b"{"),
        ]:
            answer, text = client.ask("POST", path, body)
            assert by(answer) == name
            said.append((path, answer.status, text.replace(answer.headers["x-request-id"].encode(), b"")))
    assert said[:4] == said[4:]
    assert [status for _, status, _ in said[:4]] == [415, 404, 404, 400]


def test_a_long_request_that_is_still_under_way_moves_and_is_answered_whole(server: Server) -> None:
    inputs = [{"image": b64(FILES[k % 16]), "id": str(k)} for k in range(150)]
    body = json.dumps({"inputs": inputs}, separators=("," + " " * 3000, ":")).encode()
    assert len(body) > 900_000
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    names = set()
    with ExitStack() as stack:
        for cut in (len(head), len(head), len(head) + 100_000, len(head) + 100_000):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            link.sendall((head + body)[:cut])
            time.sleep(0.2)
            link.sendall((head + body)[cut:])
            answer = HTTPResponse(link)
            answer.begin()
            text = answer.read()
            assert answer.status == 200, text
            found = json.loads(text)["predictions"]
            assert [one["id"] for one in found] == [one["id"] for one in inputs]
            for k, one in enumerate(found):
                assert np.allclose(one["probabilities"], EXPECTED[k % 16], rtol=1e-3, atol=1e-5)
            names.add((cut, by(answer)))
    assert len(names) == 4, "each way of sending was answered by each process"


def many(count: int, broken: int) -> dict[str, Any]:
    """A request of that many images, of which one is none."""
    files = [b64(FILES[k % 16]) for k in range(count)]
    return {"inputs": [{"id": str(k), "image": b64(b"none") if k == broken else file} for k, file in enumerate(files)]}


def check_many(found: list[dict[str, Any]], broken: int) -> None:
    """Each image has its own answer."""
    for k, one in enumerate(found):
        assert one["id"] == str(k) and ("error" in one) == (k == broken)
        if k == broken:
            assert one["error"]["status"] == 422
        else:
            assert np.allclose(one["probabilities"], EXPECTED[k % 16], rtol=1e-3, atol=1e-5)


def test_each_process_takes_its_share_of_many_pictures_and_all_are_counted(server: Server) -> None:
    images = counted(server, "focalserve_predictions_total")
    decoded = counted(server, 'focalserve_stage_seconds_count{model="linear",stage="decode"}')
    answer = httpx.post(f"{server.url}/predict", json=many(300, broken=70), timeout=30)
    assert answer.status_code == 200, answer.text
    check_many(answer.json()["predictions"], broken=70)
    assert counted(server, "focalserve_predictions_total") - images == 299
    assert counted(server, 'focalserve_stage_seconds_count{model="linear",stage="decode"}') - decoded == 299
    labels = [LABELS[int(EXPECTED[k % 16].argmax())] for k in range(300)]
    items = [one | {"label": label} for one, label in zip(many(300, broken=299)["inputs"], labels, strict=True)]
    scored = httpx.post(f"{server.url}/loss", json={"inputs": items}, timeout=30).json()["items"]
    assert "error" in scored[299] and not any("error" in one for one in scored[:299])
    assert [one["p_given"] for one in scored[:16]] == pytest.approx(EXPECTED.max(axis=1).tolist(), rel=1e-3)


def test_the_share_of_a_process_that_ends_is_run_by_the_first(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        (other,) = children(server)
        os.kill(other, signal.SIGSTOP)
        asked = pool.submit(httpx.post, f"{server.url}/predict", json=many(300, broken=200), timeout=30)
        time.sleep(1.0)
        assert not asked.done(), "the other process has a share"
        os.kill(other, signal.SIGKILL)
        answer = asked.result(30)
        assert answer.status_code == 200, answer.text
        check_many(answer.json()["predictions"], broken=200)


def raw(path: str, body: bytes = b"", method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_connection_that_pipelines_from_its_beginning_is_answered_by_the_first(server: Server) -> None:
    with ExitStack() as stack:
        connections(server, stack, 3)
        for _ in range(2):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            link.sendall(raw("/predict", FILES[0]) + raw("/healthz", method="GET") + raw("/predict", FILES[1]))
            found = answers(link, 3)
            assert [one.status for one in found] == [200, 200, 200]
            assert b'"live":true' in found[1].body


def test_what_the_other_process_gets_behind_a_request_in_a_pipeline_is_refused_with_words(two: list[Client]) -> None:
    link = two[1].link.sock
    assert link is not None
    link.sendall(raw("/predict", FILES[0]) + raw("/healthz", method="GET") + raw("/predict", FILES[1]))
    found = answers(link, 3)
    assert [one.status for one in found] == [200, 503, 200]
    assert b"pipeline" in found[1].body


def test_clients_that_leave_are_forgotten(server: Server) -> None:
    """However many come and go, later ones are shared as evenly."""
    for _ in range(30):
        clients = [Client(server) for _ in range(4)]
        for client in clients:
            client.link.request("POST", "/predict", FILES[0])
        for client in clients:
            client.link.close()
    time.sleep(0.3)
    with ExitStack() as stack:
        names = Counter(client.predict(0) for client in connections(server, stack, 6))
        assert sorted(names.values()) == [3, 3]


def test_connections_from_before_another_process_helped_are_shared_with_it(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path) as server, ExitStack() as stack:
        (other,) = children(server)
        os.kill(other, signal.SIGKILL)
        server.until("another takes its place")
        clients = [Client(server) for _ in range(6)]
        for client in clients:
            stack.callback(client.link.close)
        (first,) = {client.predict(k) for k, client in enumerate(clients)}
        wait(lambda: sum(TOGETHER in line for line in server.lines) == 2, 30)
        names = [client.predict(k) for k, client in enumerate(clients)]
        assert names.count(first) == 3 and len(set(names)) == 2
        assert [client.predict(k) for k, client in enumerate(clients)] == names, "they have changed hands once"
        later = [Client(server) for _ in range(4)]
        for client in later:
            stack.callback(client.link.close)
        assert [client.predict(0) for client in later].count(first) == 2


def predicting(server: Server, until: threading.Event, failed: list[str], versions: Counter[str]) -> None:
    """A caller with a kept connection; what goes wrong is written down."""
    client = Client(server)
    try:
        while not until.is_set():
            answer, text = client.ask("POST", "/predict", FILES[0])
            if answer.status != 200:
                failed.append(f"{answer.status} {text!r}")
                return
            versions[json.loads(text)["model"]["version"]] += 1
    except Exception as error:
        failed.append(repr(error))
    finally:
        client.link.close()


@contextmanager
def load_of(server: Server, count: int = 6) -> Iterator[tuple[list[str], Counter[str]]]:
    """So many callers meanwhile; what failed, and the versions that answered."""
    until, failed, versions = threading.Event(), list[str](), Counter[str]()
    threads = [threading.Thread(target=predicting, args=(server, until, failed, versions)) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        yield failed, versions
    finally:
        time.sleep(0.3)
        until.set()
        for thread in threads:
            thread.join()


def control(server: Server, model: str, what: str) -> None:
    assert httpx.post(f"{server.url}/v2/repository/models/{model}/{what}", timeout=30).status_code == 200


def test_a_reload_exchanges_the_model_in_every_process_and_a_refused_one_in_none(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path) as server, load_of(server) as (failed, versions):
        newest = write_linear(tmp_path, LABELS, version="2")
        for _ in range(3):
            control(server, "linear", "load")
        assert versions["1"] > 0
        before = versions["1"]
        time.sleep(0.5)
        assert versions["1"] == before and versions["2"] > 0
        (newest / "model.onnx").write_bytes(b"garbage")
        answer = httpx.post(f"{server.url}/v2/repository/models/linear/load", timeout=30)
        assert answer.status_code == 400 and "served on" in answer.json()["error"]
        before = versions["2"]
        time.sleep(0.3)
        assert versions["1"] + versions["2"] == versions.total() and versions["2"] > before
        assert not failed and len(children(server)) == 1 and "ERROR" not in server.log


def test_a_net_that_is_not_quick_has_one_process_and_no_request_fails_when_it_comes_and_goes(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path, default_model="linear") as server, load_of(server, 3) as (failed, _):
        (helper,) = children(server)
        write_linear(tmp_path, LABELS, name="slow", rounds=1000)
        control(server, "slow", "load")
        wait(lambda: helper not in children(server))  # its connections have all come back
        assert children(server) == [] and not failed
        control(server, "slow", "unload")
        wait(lambda: len(children(server)) == 1)
        wait(lambda: sum(TOGETHER in line for line in server.lines) == 2)
        assert children(server) != [helper] and not failed
        assert sum(TOGETHER in line for line in server.lines) == 2 and "ERROR" not in server.log


def test_a_process_that_is_killed_is_replaced_and_its_counts_stay(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path) as server, ExitStack() as stack:
        clients = connections(server, stack, 4)
        for client in clients:
            client.predict(1)
        name = "focalserve_predictions_total"
        before = counted(server, name)
        (helper,) = children(server)
        os.kill(helper, signal.SIGKILL)
        server.until("another takes its place")
        assert counted(server, name) == before
        assert clients[0].predict(2)  # the first process goes on
        wait(lambda: sum(TOGETHER in line for line in server.lines) == 2)
        assert len({client.predict(0) for client in connections(server, stack, 4)}) == 2
        assert counted(server, name) == before + 9


def test_requests_in_flight_are_answered_before_the_end_by_every_process(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path, max_wait_ms="700") as server, ExitStack() as stack:
        (helper,) = children(server)
        clients = [Client(server) for _ in range(4)]
        for client in clients:
            stack.callback(client.link.close)
            client.link.request("POST", "/predict", FILES[1])
            time.sleep(0.05)
        server.signal(signal.SIGTERM)
        found = [client.link.getresponse() for client in clients]
        for answer in found:
            assert answer.status == 200
            assert np.allclose(json.loads(answer.read())["predictions"][0]["probabilities"], EXPECTED[1], rtol=1e-3)
        assert len({by(answer) for answer in found}) == 2
        assert server.ended(10) == 0 and "ERROR" not in server.log
        assert not runs(helper)


def test_a_stop_while_the_others_begin_waits_for_none(linear: Path) -> None:
    with launched(linear, workers="3", drain_seconds="0") as server:
        server.until("process began")
        wait(lambda: len(children(server)) == 2)
        server.signal(signal.SIGTERM)
        assert server.ended(10) == 0 and "ERROR" not in server.log and TOGETHER not in server.log


def test_no_process_is_left_when_the_first_is_killed(tmp_path: Path) -> None:
    write_linear(tmp_path, LABELS)
    with shared(tmp_path) as server:
        (helper,) = children(server)
        server.signal(signal.SIGKILL)
        server.ended(10)
        wait(lambda: not runs(helper))
        assert not runs(helper)


def test_a_signal_to_the_whole_group_lets_the_first_decide(server: Server) -> None:
    """Ctrl-C in a terminal reaches every process."""
    (helper,) = children(server)
    os.kill(helper, signal.SIGINT)
    os.kill(helper, signal.SIGTERM)
    with ExitStack() as stack:
        assert len({client.predict(0) for client in connections(server, stack, 4)}) == 2
    assert children(server) == [helper]


def test_graphs_without_a_card_are_shared_too(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (write_linear(tmp_path / "bundle", LABELS) / "model.onnx").rename(tmp_path / "models" / "plain.onnx")
    tensor: dict[str, Any] = {"name": "image", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8"}
    body = json.dumps({"inputs": [{**tensor, "data": IMAGES[3].ravel().tolist()}]}).encode()
    with shared(tmp_path / "models") as server, ExitStack() as stack:
        names = []
        for _ in range(4):
            client = Client(server)
            stack.callback(client.link.close)
            answer, text = client.ask("POST", "/v2/models/plain/infer", body)
            names.append(by(answer))
            found = next(one for one in json.loads(text)["outputs"] if one["name"] == "logits")
            assert np.allclose(found["data"], linear_logits(IMAGES[3:4], linear_weights(3))[0], rtol=1e-3, atol=1e-3)
        assert sorted(Counter(names).values()) == [2, 2]
