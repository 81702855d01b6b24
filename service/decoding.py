"""Encoded pictures to the graph's input: a small one where it is, large ones in threads, many small ones in one."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import perf_counter
from typing import NamedTuple

from models.card import ModelCard
from models.errors import InvalidInput
from models.fit import Fitted
from models.image import ImageLimits, load_at_once, load_input
from service.metrics import ModelObserver
from service.schemas import decode_base64

Encoded = bytes | str
"""An image as it came: bytes, or base64 text."""
_PART_IMAGES, _SMALL_BYTES = 16, 4096
_PARTS_AHEAD = 8
_AT_ONCE = 32 * 1024
"""Longer ones, bytes or base64, are not looked at before a thread has them."""


class Decoded(NamedTuple):
    """A picture that was decoded.

    Attributes:
        fitted: the input, as the card wants it.
        seconds: that decoding took.
    """

    fitted: Fitted
    seconds: float


class Decoder:
    """Decodes pictures for any model; what is wrong with one is its result.

    Args:
        threads: that decode what is not small; full parts of small pictures have a thread of their own.
        limits: of each picture.
    """

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        # Two threads decode small pictures no faster than one (docs/performance.md).
        self._small = ThreadPoolExecutor(1, thread_name_prefix="decode-small")
        self._limits = limits

    async def one(self, image: Encoded, card: ModelCard, observer: ModelObserver) -> Decoded | Exception:
        """One picture."""
        try:
            found = self.at_once(image, card, observer)
        except InvalidInput as error:
            return error
        if found is not None:
            return found
        (later,) = await self._decode([image], card)
        if isinstance(later, Decoded):
            observer.decoded(later.seconds)
        return later

    def at_once(self, image: Encoded, card: ModelCard, observer: ModelObserver) -> Decoded | None:
        """A picture that is decoded no slower than it is handed to a thread; None for others.

        Raises:
            InvalidInput: no picture, or one over a limit.
        """
        if len(image) > _AT_ONCE:
            return None
        start = perf_counter()
        data = decode_base64(image) if isinstance(image, str) else image
        fitted = load_at_once(data, card.input, self._limits)
        if fitted is None:
            return None
        found = Decoded(fitted, perf_counter() - start)
        observer.decoded(found.seconds)
        return found

    async def many(
        self, images: Sequence[Encoded], card: ModelCard, observer: ModelObserver
    ) -> AsyncGenerator[Decoded | Exception]:
        """Many pictures in their order, decoded a little ahead of whoever takes them."""
        parts = parts_of(images, _PART_IMAGES)
        pending: deque[asyncio.Future[list[Decoded | Exception]]] = deque()
        try:
            while True:
                pending.extend(self._decode(part, card) for part in islice(parts, _PARTS_AHEAD - len(pending)))
                if not pending:
                    return
                for found in await pending.popleft():
                    if isinstance(found, Decoded):
                        observer.decoded(found.seconds)
                    yield found
        finally:
            for part in pending:
                part.cancel()

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=True)
        self._small.shutdown(wait=True)

    def _decode(self, images: Sequence[Encoded], card: ModelCard) -> "asyncio.Future[list[Decoded | Exception]]":
        threads = self._small if len(images) == _PART_IMAGES else self._threads
        return asyncio.get_running_loop().run_in_executor(threads, _decode_all, images, card, self._limits)


def parts_of(images: Sequence[Encoded], most: int) -> Iterator[list[Encoded]]:
    """Small pictures by up to `most`, since handing one to a thread costs as much as decoding it; large ones alone."""
    room = most * _SMALL_BYTES
    part: list[Encoded] = []
    size = 0
    for image in images:
        if part and (size + len(image) > room or len(part) == most):
            yield part
            part, size = [], 0
        part.append(image)
        size += len(image)
    if part:
        yield part


def decode(image: Encoded, card: ModelCard, limits: ImageLimits) -> Decoded | Exception:
    """A picture, in this thread; what is wrong with it, or failed, is the result: others go on."""
    start = perf_counter()
    try:
        data = decode_base64(image) if isinstance(image, str) else image
        fitted = load_input(data, card.input, limits)
    except Exception as error:
        return error
    return Decoded(fitted, perf_counter() - start)


def _decode_all(images: Sequence[Encoded], card: ModelCard, limits: ImageLimits) -> list[Decoded | Exception]:
    return [decode(image, card, limits) for image in images]
