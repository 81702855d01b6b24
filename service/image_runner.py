"""Pictures of a request or an audit: decoded, run by a model's batcher, shared with the processes that help."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from models.card import ModelCard
from models.errors import InvalidInput
from models.image import ImageLimits
from service.batch import Timed
from service.decoding import Decoded, Decoder, Encoded
from service.detector import Wish
from service.errors import NotReady
from service.exchange import Call
from service.helpers import Helpers
from service.items import Look, Part, Picture, Undecoded
from service.many import submit_all, submit_later, submit_stream
from service.predictions import work_out
from service.served import Served
from service.spread import Spread

_WITHOUT_HURRY = 8
"""Images of an audit that are decoded or wait at a time, so that others need not wait for many."""


class ImageRunner:
    """Runs pictures of any model.

    Args:
        threads: that decode.
        limits: of each picture.

    Attributes:
        decoder: of all models.
        helpers: other processes that take their share; None: there are none.
    """

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self.decoder = Decoder(threads, limits)
        self.helpers: Helpers | None = None
        self._limits = limits

    async def run(
        self, served: Served, card: ModelCard, images: Sequence[Encoded], call: Call, wish: Wish | None = None
    ) -> list[Timed | Exception]:
        """Decodes and runs images; each result is a `served.Row` or the image's own error.

        Args:
            served: the model.
            card: of it.
            images: encoded.
            call: that wants them.
            wish: what is wanted of a detector.

        Raises:
            Overloaded: the queue is full.
        """
        batcher = served.batcher
        batcher.holders += 1
        try:
            if len(images) == 1:
                batcher.check_room()
                item = await self._picture(images[0], served, card)
                if isinstance(item, Exception):
                    return [item]
                return [await _settled(batcher.submit(_look(item, wish), lambda: call.gone))]
            if spread := self._spread(served, card, images, call):
                try:
                    return await spread.results()
                finally:
                    spread.cancel()
            if served.decodes(images):
                items = [self.item(image, wish) for image in images]
                return await submit_all(batcher, items, lambda: call.gone)
            decoded = self.decoder.many(images, card, served.observer)
            return await submit_stream(batcher, _looks(decoded, wish) if wish else decoded, lambda: call.gone)
        finally:
            batcher.holders -= 1

    async def predict(
        self, served: Served, card: ModelCard, images: Sequence[Encoded], call: Call, wish: Wish | None = None
    ) -> list[Timed | Exception]:
        """As `run`, with what the rows mean: of parts it is worked out in a thread, not when the event loop asks."""
        results = await self.run(served, card, images, call, wish)
        if served.part and len(images) > 1:
            await asyncio.to_thread(work_out, [one.result.answer for one in results if isinstance(one, Timed)])
        return results

    def _spread(self, served: Served, card: ModelCard, images: Sequence[Encoded], call: Call) -> Spread | None:
        """What has begun the images, or does so now; None where the model's threads do not decode many."""
        ahead = call.ahead
        if isinstance(ahead, Spread) and ahead.is_of(served, images):
            return ahead
        if ahead is not None:
            ahead.cancel()
        spread = self.begin(served, card, call)
        if spread is not None:
            spread.add(images)
        return spread

    def begin(self, served: Served, card: ModelCard, call: Call) -> Spread | None:
        """What runs pictures while more of them come; None where the model's threads do not decode many.

        Raises:
            Overloaded: the queue is full.
            NotReady: the model's batcher has stopped.
        """
        return Spread(served, card, self._limits, self.helpers, lambda: call.gone) if served.part else None

    async def run_later(
        self,
        served: Served,
        card: ModelCard,
        images: Sequence[Encoded],
        gone: Callable[[], bool],
        wish: Wish | None = None,
    ) -> list[Timed | Exception]:
        """As `run`, for images without hurry: few at a time, and a full queue is waited for.

        Raises:
            NotReady: the model has been exchanged or is stopping.
        """
        places = asyncio.Semaphore(_WITHOUT_HURRY)

        async def one(image: Encoded) -> Timed | Exception:
            async with places:
                item = await self._picture(image, served, card)
                if isinstance(item, Exception):
                    return item
                return await _failed(submit_later(served.batcher, _look(item, wish), gone))

        served.batcher.holders += 1
        tasks = [asyncio.ensure_future(one(image)) for image in images]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            served.batcher.holders -= 1

    async def run_for_another(self, served: Served, images: Sequence[Encoded]) -> Timed:
        """What a quick bundle says of images that another process was asked for, as a `Part` has it.

        They wait for room: the one that was asked has let them in.

        Raises:
            FocalserveError: they could not be run.
        """
        await served.batcher.room(served.batcher.share)
        return await served.batcher.submit(Part(images, self._limits))

    def item(self, image: Encoded, wish: Wish | None) -> Picture | Look:
        """An image as the batcher of a model whose threads decode takes it."""
        return _look(Undecoded(image, self._limits), wish)

    async def _picture(self, image: Encoded, served: Served, card: ModelCard) -> Picture | Exception:
        """What the batcher takes of an image, or what is wrong with it."""
        if served.decodes([image]):
            return Undecoded(image, self._limits)
        return await self.decoder.one(image, card, served.observer)


def _look(picture: Picture, wish: Wish | None) -> Picture | Look:
    return picture if wish is None else Look(picture, wish)


async def _looks(items: AsyncGenerator[Decoded | Exception], wish: Wish) -> AsyncGenerator[Look | Exception]:
    async with aclosing(items):
        async for item in items:
            yield item if isinstance(item, Exception) else Look(item, wish)


async def _failed(answer: Awaitable[Timed]) -> Timed | Exception:
    """The result, or why this image has none, unless no image has."""
    try:
        return await answer
    except NotReady:
        raise
    except Exception as error:
        return error


async def _settled(answer: "asyncio.Future[Timed]") -> Timed | Exception:
    try:
        return await answer
    except InvalidInput as error:
        return error
