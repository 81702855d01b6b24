"""Spans reach a real collector, as children of the trace that the caller began."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from tests.integration.launch import launched, wait
from tests.serving import pictures, png_of, write_linear

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"content-type": "image/png", "traceparent": f"00-{TRACE}-{PARENT}-01"}


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP and keeps the spans."""

    spans: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        asked = trace_service.ExportTraceServiceRequest()
        asked.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in asked.resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert names["service.name"] == "tested"
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Collector.spans.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_request_is_a_span_with_its_stages_below_the_callers(
    tmp_path: Path, collector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_linear(tmp_path, ["a", "b", "c"])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tested")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with launched(tmp_path) as server:
        server.until("process began")
        body = png_of(pictures(1)[0])
        answer = httpx.post(f"{server.url}/predict", content=body, headers=HEADERS)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == TRACE
        assert httpx.get(f"{server.url}/nowhere", headers=HEADERS).status_code == 404
        wait(lambda: any(span.name == "GET other" for span in Collector.spans))
    mine = [span for span in Collector.spans if span.trace_id.hex() == TRACE]
    request = next(span for span in mine if span.name == "POST /predict")
    assert request.parent_span_id.hex() == PARENT
    facts = {pair.key: pair.value for pair in request.attributes}
    assert facts["http.route"].string_value == "/predict"
    assert facts["http.response.status_code"].int_value == 200
    stages = {span.name: span for span in mine if span.parent_span_id == request.span_id}
    assert set(stages) == {"queue", "infer", "encode"}
    assert stages["queue"].end_time_unix_nano <= stages["infer"].start_time_unix_nano + 1000
    for span in stages.values():
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    assert any(span.name == "GET other" for span in mine)


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "nothing"])
def test_nothing_is_sent_where_nothing_is_asked_for(
    tmp_path: Path, collector: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_linear(tmp_path, ["a", "b"])
    if name != "nothing":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        monkeypatch.setenv(name, "true")
    with launched(tmp_path) as server:
        server.until("process began")
        assert httpx.get(f"{server.url}/healthz", headers=HEADERS).headers["x-request-id"] == TRACE
        server.signal(15)
        server.ended(10)
    assert not Collector.spans
