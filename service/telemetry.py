"""OpenTelemetry spans where its environment variables ask for them, and W3C trace context; nothing otherwise.

A request is one span of kind server, by the semantic conventions for HTTP, the child of the `traceparent` that came
with it. Below it lie `queue` and `infer`, as the slowest of its images had them, and `encode`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from service.exchange import Stage

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger("focalserve")
_ASKED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_of(parent: bytes) -> str | None:
    """The trace that a `traceparent` header names, 32 hexadecimal digits; None where it is not one.

    Source: W3C Trace Context, level 1.
    """
    found = _PARENT.fullmatch(parent)
    if found is None or (found[1] == b"00" and found[3] is not None):  # what may follow is for versions to come
        return None
    return found[2].decode()


class Telemetry:
    """Sends a span for each request to the collector that the environment names.

    Args:
        tracer: of the OpenTelemetry SDK.
        provider: what the tracer is of; flushed by `close`.
    """

    def __init__(self, tracer: "Tracer", provider: Any) -> None:
        self._tracer = tracer
        self._provider = provider

    def record(self, scope: Scope, route: str, status: int, start: float, stages: Sequence[Stage]) -> None:
        """Records a request that was answered just now.

        Args:
            scope: of ASGI.
            route: its path with the names of its parameters.
            status: HTTP status of the answer.
            start: when it came, seconds of `time.perf_counter`.
            stages: of its work.
        """
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # The clock that stages are measured with has no epoch; now is the same moment on both.
        now_ns, now = time_ns(), perf_counter()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            context=TraceContextTextMapPropagator().extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.path": scope["path"],
                "http.route": route,
                "http.response.status_code": status,
            },
            start_time=now_ns - round((now - start) * 1e9),
        )
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for name, began, ended in stages:
            part = self._tracer.start_span(name, inside, start_time=now_ns - round((now - began) * 1e9))
            part.end(now_ns - round((now - ended) * 1e9))
        span.end(now_ns)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def open_telemetry(environ: Mapping[str, str]) -> Telemetry | None:
    """Telemetry as the OTEL_* variables say; None where they ask for none, or the SDK is not installed (it is logged).

    The endpoint, headers, sampler, service name and the rest are the SDK's own variables.
    """
    asked = any(environ.get(name) for name in _ASKED) and environ.get("OTEL_TRACES_EXPORTER") != "none"
    if not asked or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("OTEL_* variables ask for traces, but OpenTelemetry is not installed: pip install '.[otel]'")
        return None
    resource = Resource.create({SERVICE_NAME: "focalserve"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(provider.get_tracer("focalserve"), provider)
