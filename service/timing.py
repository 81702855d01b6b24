"""Where a request's time went, told three ways: Server-Timing, the stage histogram, and spans."""

from collections.abc import Sequence
from time import perf_counter

from service.batch import Timed
from service.exchange import Call, Reply
from service.items import Row
from service.metrics import ModelObserver


def tell(call: Call, reply: Reply, start: float, encoding: float, timed: Sequence[Timed], seen: ModelObserver) -> Reply:
    """The reply with its Server-Timing header: milliseconds, of several images the longest that one took.

    Args:
        call: gets the stages, for its span.
        reply: the answer.
        start: when the request came, seconds of `time.perf_counter`.
        encoding: when the answer began to be made.
        timed: what the batcher said of its images; empty where rows came in the body.
        seen: of the model, for its histograms.
    """
    now = perf_counter()
    seen.encoded(now - encoding)
    durations: list[tuple[bytes, float]] = []
    if timed:
        slowest = timed[0] if len(timed) == 1 else max(timed, key=lambda one: one.queued)
        call.stages.append(("queue", slowest.began - slowest.queued, slowest.began))
        call.stages.append(("infer", slowest.began, slowest.began + slowest.ran))
        rows = [one.result for one in timed if isinstance(one.result, Row)]
        if rows:
            durations.append((b"decode", max([row.decoded for row in rows])))
        durations.append((b"queue", slowest.queued))
        durations.append((b"infer", max([row.inferred for row in rows] or [one.ran for one in timed])))
    call.stages.append(("encode", encoding, now))
    durations += [(b"encode", now - encoding), (b"total", now - start)]
    reply.headers.append((b"server-timing", b", ".join([b"%s;dur=%.3f" % (name, s * 1e3) for name, s in durations])))
    return reply
