"""What lives as long as the app: catalog, decode threads, metrics, and whether it is ready."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from models.card import ImageInput
from models.errors import BundleError, DeviceUnavailable, FocalserveError, InvalidInput
from models.image import Pixels, load_input
from service.catalog import Catalog, Served
from service.errors import NotReady
from service.metrics import Metrics
from service.schemas import decode_base64
from service.settings import Settings, usable_cores

log = logging.getLogger("focalserve")
RowOrError = NDArray[np.float32] | Exception
Encoded = bytes | str
"""An image as it came: bytes, or base64 text."""


class ServiceState:
    """Built by create_app, started by its lifespan.

    Args:
        settings: of the service.
        on_refused: called when a bundle must not be served, so that the process can end.
    """

    def __init__(self, settings: Settings, on_refused: Callable[[], None]) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.catalog = Catalog(settings, self.metrics)
        self.draining = False
        self._on_refused = on_refused
        self._decoders = ThreadPoolExecutor(settings.decode_threads or usable_cores(), thread_name_prefix="decode")
        self._why_not: FocalserveError | None = NotReady("the models are being loaded")
        self._loading: asyncio.Task[None] | None = None

    def start(self, on_ready: Callable[[], None]) -> None:
        """Begins to load the models; the app answers probes meanwhile."""
        self._loading = asyncio.create_task(self._load(on_ready), name="load")

    async def stop(self) -> None:
        """Ends loading, batchers and threads."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self.catalog.close()
        self._decoders.shutdown(wait=True)

    def check_ready(self) -> None:
        """Raises why the service is not ready: loading, draining, refused, or a batcher that has died."""
        if self.draining:
            raise NotReady("the service is stopping")
        if self._why_not is not None:
            raise self._why_not
        for served in self.catalog.all():
            if not served.batcher.alive:
                raise NotReady(f"the batcher of model {served.card.name} has died")

    def served(self, name: str | None) -> Served:
        """The model of that name, once the models are there.

        Raises:
            NotReady: they are not.
            NotFound: there is none of that name.
        """
        if self._why_not is not None:
            raise self._why_not
        return self.catalog.get(name)

    async def logits(self, served: Served, images: Sequence[Encoded]) -> list[RowOrError]:
        """Decodes and runs images; each answer is the image's logits (K,) or its own error.

        Raises:
            Overloaded: the queue is full.
        """
        decode = partial(self._decode, served.card.input)
        if len(images) == 1:
            decoded = [await asyncio.get_running_loop().run_in_executor(self._decoders, _caught, decode, images[0])]
        else:
            decoded = await self._decode_all(decode, images)
        good = [pixels for pixels in decoded if not isinstance(pixels, Exception)]
        answers = iter(await served.batcher.submit_all(good))
        return [pixels if isinstance(pixels, Exception) else next(answers) for pixels in decoded]

    async def _decode_all(
        self, decode: Callable[[Encoded], Pixels], images: Sequence[Encoded]
    ) -> list[Pixels | Exception]:
        loop = asyncio.get_running_loop()
        tasks = [loop.run_in_executor(self._decoders, _caught, decode, image) for image in images]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def _decode(self, spec: ImageInput, image: Encoded) -> Pixels:
        data = decode_base64(image) if isinstance(image, str) else image
        return load_input(data, spec, self.settings.image_limits).pixels

    async def _load(self, on_ready: Callable[[], None]) -> None:
        start = perf_counter()
        try:
            await self.catalog.load()
        except DeviceUnavailable as error:
            self._refuse(error)
        except BundleError as error:
            self._refuse(error)
            self._on_refused()
        except FocalserveError as error:
            self._refuse(error)
        except Exception:
            log.exception("loading failed")
            self._refuse(BundleError("loading the models failed; the log says why"))
            self._on_refused()
        else:
            self._why_not = None
            self.metrics.ready.set_function(self._ready_number)
            log.info("models loaded and warm in %.2f s", perf_counter() - start)
            on_ready()

    def _refuse(self, error: FocalserveError) -> None:
        log.error("not ready: %s", error)
        self._why_not = error

    def _ready_number(self) -> float:
        try:
            self.check_ready()
        except FocalserveError:
            return 0.0
        return 1.0


def _caught(decode: Callable[[Encoded], Pixels], image: Encoded) -> Pixels | Exception:
    try:
        return decode(image)
    except InvalidInput as error:
        return error
