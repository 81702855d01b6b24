"""The beginning and the end of a request, where all that lies between is one item in a batcher."""

from collections.abc import Callable
from typing import Any, NamedTuple

from service.batch import Timed
from service.batcher import Batcher
from service.exchange import Call, Reply
from service.state import ServiceState

Outcome = Timed | Exception
"""What became of an item."""


class Begun(NamedTuple):
    """A request whose answer waits for one item.

    Attributes:
        batcher: that runs the item.
        item: what it takes.
        finish: makes the answer; raises what the request is to be refused with.
    """

    batcher: Batcher
    item: Any
    finish: Callable[[Outcome], Reply]


Begin = Callable[[ServiceState, Call, bytes], Begun | None]
"""Reads a whole body, which is not compressed; None where its answer takes more than an item."""


def result_of(outcome: Outcome) -> Timed:
    """The result; raises what stands in its place."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
