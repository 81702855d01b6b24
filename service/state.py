"""What lives as long as the app: catalog, decode threads, metrics, and whether it is ready."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from models.card import ModelCard
from models.errors import BundleError, DeviceUnavailable, FocalserveError
from service import loss_model
from service.audit_store import AuditStore
from service.audits import Audits
from service.catalog import Catalog
from service.decoding import Encoded
from service.errors import InvalidRequest, NotReady
from service.image_runner import ImageRunner
from service.metrics import Metrics
from service.served import Served
from service.settings import Settings, usable_cores
from service.sums import CountedModel, ModelSums, Sums
from service.telemetry import open_telemetry

log = logging.getLogger("focalserve")


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
        self.loss: CountedModel = (loss_model.NAME, loss_model.VERSION, ModelSums())
        self.telemetry = open_telemetry(os.environ)
        store = AuditStore(
            settings.audit_dir, settings.max_audits, settings.audit_max_total_bytes, settings.audit_ttl
        )  # fmt: skip
        self.draining = False
        self._on_refused = on_refused
        self.images = ImageRunner(settings.decode_threads or usable_cores(), settings.image_limits)
        self.audits = Audits(store, self)
        self._why_not: FocalserveError | None = NotReady("the models are being loaded")
        self._loading: asyncio.Task[None] | None = None

    def start(self, on_ready: Callable[[], None]) -> None:
        """Begins to load the models; the app answers probes meanwhile."""
        self._loading = asyncio.create_task(self._load(on_ready), name="load")
        self.audits.start()

    async def stop(self) -> None:
        """Ends loading, batchers and threads."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self.audits.stop()
        await self.catalog.close()
        self.images.decoder.close()
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)

    def check_ready(self) -> None:
        """Raises why the service is not ready: loading, draining, refused, or a batcher that has died."""
        if self.draining:
            raise NotReady("the service is stopping")
        if self._why_not is not None:
            raise self._why_not
        for served in self.catalog.all():
            if not served.batcher.alive:
                raise NotReady(f"the batcher of model {served.name} has died")

    @property
    def ready(self) -> bool:
        """Whether `check_ready` has nothing to say."""
        try:
            self.check_ready()
        except FocalserveError:
            return False
        return True

    def served(self, name: str | None, version: str | None = None) -> Served:
        """The model of that name and version, once the models are there.

        Raises:
            NotReady: they are not.
            NotFound: there is none of that name.
        """
        if self._why_not is not None:
            raise self._why_not
        return self.catalog.get(name, version)

    async def load(self, name: str) -> None:
        """Loads or reloads a model; the service is ready once it serves one.

        Raises:
            FocalserveError: as `Catalog.load`; what was served stays.
        """
        if self._loading is not None and not self._loading.done():
            raise self._why_not or NotReady("the models are being loaded")
        await self.catalog.load(name)
        self._why_not = None
        await self._share(("load", name))

    async def unload(self, name: str) -> None:
        """Takes a model out; what it has accepted is still answered.

        Raises:
            NotFound: it is not loaded.
        """
        await self.catalog.unload(name)
        await self._share(("unload", name))

    async def load_these(self, names: Sequence[str]) -> None:
        """Loads these models, for a process that helps another.

        Raises:
            FocalserveError: as `Catalog.load`.
        """
        for name in names:
            await self.catalog.load(name)
        self._why_not = None
        _settle()

    async def others(self) -> list[Sums]:
        """What the processes that share the work have counted."""
        return [] if self.images.helpers is None else await self.images.helpers.sums()

    async def exposition(self) -> bytes:
        """The text that Prometheus scrapes: of all processes."""
        return self.metrics.expose(await self.others())

    def own_sums(self) -> Sums:
        """What this process has counted."""
        models = [(one.name, one.version, one.observer.sums) for one in self.catalog.all()]
        return Sums.read(self.metrics.registry, [*models, self.loss])

    async def _share(self, change: tuple[str, str] | None = None) -> None:
        """Has the other processes serve what this one serves."""
        if self.images.helpers is not None:
            await self.images.helpers.follow(change)

    def with_card(self, name: str | None, version: str | None = None) -> tuple[Served, ModelCard]:
        """The model of that name and version, which has a card.

        Raises:
            InvalidRequest: it is a graph without a card; only /v2 serves it.
        """
        served = self.served(name, version)
        if served.card is None:
            raise InvalidRequest(f"model {served.name} has no card; ask it through /v2/models/{served.name}/infer")
        return served, served.card

    async def run_for_another(self, model: tuple[str, str, str], images: Sequence[Encoded]) -> Sequence[Any] | None:
        """What a quick bundle says of images that another process was asked for: a row or an error each.

        Args:
            model: name, version and checksum of the bundle.
            images: encoded.

        Returns:
            None where this process does not have just that bundle.

        Raises:
            FocalserveError: they could not be run.
        """
        served = self.served(*model[:2])
        if not served.part or served.card is None or served.card.sha256 != model[2]:
            return None
        rows: Sequence[Any] = (await self.images.run_for_another(served, images)).result
        return rows

    async def _load(self, on_ready: Callable[[], None]) -> None:
        start = perf_counter()
        try:
            await self.catalog.load_all()
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
            self.metrics.ready.set_function(lambda: float(self.ready))
            _settle()
            log.info("models loaded and warm in %.2f s", perf_counter() - start)
            on_ready()
            await self._share()

    def _refuse(self, error: FocalserveError) -> None:
        log.error("not ready: %s", error)
        self._why_not = error


def _settle() -> None:
    """What is there now stays: the collector need not walk it again and again, a pause each time."""
    gc.collect()
    gc.freeze()
