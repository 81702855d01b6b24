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
    parts = b""
    if timed:
        slowest = timed[0] if len(timed) == 1 else max(timed, key=lambda one: one.queued)
        queued, began, ended = slowest.queued, slowest.began, slowest.began + slowest.ran
        # What decoded in its own thread did so first.
        infer = ended - slowest.result.inferred if isinstance(slowest.result, Row) else began
        call.stages += [("queue", began - queued, began), ("infer", infer, ended)]
        rows = [one.result for one in timed if isinstance(one.result, Row)]
        if rows:
            decoded, inferred = max([row.decoded for row in rows]), max([row.inferred for row in rows])
            parts = b"decode;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, " % (decoded * 1e3, queued * 1e3, inferred * 1e3)
        else:
            inferred = max([one.ran for one in timed])
            parts = b"queue;dur=%.3f, infer;dur=%.3f, " % (queued * 1e3, inferred * 1e3)
    call.stages.append(("encode", encoding, now))
    parts += b"encode;dur=%.3f, total;dur=%.3f" % ((now - encoding) * 1e3, (now - start) * 1e3)
    reply.headers.append((b"server-timing", parts))
    return reply
