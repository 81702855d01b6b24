"""Where the time of a request's images went."""

import pytest

from service.batch import Timed
from service.exchange import Call, Reply, WholeRequest
from service.items import Row
from service.metrics import Metrics
from service.timing import tell


def stages_of(*timed: Timed) -> tuple[dict[str, tuple[float, float]], str]:
    """The stages that a span gets, and the Server-Timing header."""
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    call = Call(scope, WholeRequest(b"").receive)
    reply = tell(call, Reply(b""), 1.0, 2.0, timed, Metrics().observer("net", "1"))
    return {name: (began, ended) for name, began, ended in call.stages}, dict(reply.headers)[b"server-timing"].decode()


def test_a_picture_that_was_decoded_in_the_thread_that_ran_it_was_inferred_afterwards() -> None:
    stages, told = stages_of(Timed(Row("cat", decoded=0.25, inferred=0.5), began=4.0, queued=1.0, ran=0.75))
    assert stages["queue"] == (3.0, 4.0) and stages["infer"] == (4.25, 4.75)
    assert told.startswith("decode;dur=250.000, queue;dur=1000.000, infer;dur=500.000, encode")


@pytest.mark.parametrize("waited", [0.5, 2.0])
def test_of_several_pictures_the_one_that_waited_longest_counts(waited: float) -> None:
    first = Timed(Row("cat", decoded=0.125, inferred=0.5), began=4.0, queued=1.0, ran=0.5)
    other = Timed(Row("dog", decoded=0.25, inferred=0.25), began=4.5, queued=waited, ran=0.25)
    stages, told = stages_of(first, other)
    assert stages["infer"] == ((4.0, 4.5) if waited < 1.0 else (4.5, 4.75))
    assert told.startswith(f"decode;dur=250.000, queue;dur={max(waited, 1.0) * 1e3:.3f}, infer;dur=500.000, encode")


def test_tensors_have_nothing_to_decode() -> None:
    stages, told = stages_of(Timed((b"outputs",), began=4.0, queued=1.0, ran=0.5))
    assert stages["infer"] == (4.0, 4.5)
    assert told.startswith("queue;dur=1000.000, infer;dur=500.000, encode")
