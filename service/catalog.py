"""The models that are served: from a folder of bundles to sessions that are warm."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from models.bundle import find_bundles, read_bundle, version_key
from models.card import ModelCard
from models.errors import BundleError
from service.batcher import Batcher
from service.engine import Engine
from service.errors import NotFound, NotReady
from service.metrics import Metrics
from service.settings import Settings, usable_cores

log = logging.getLogger("focalserve")


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    card: ModelCard
    engine: Engine
    batcher: Batcher
    executor: ThreadPoolExecutor


class Catalog:
    """Models by name. Empty until `load`.

    Args:
        settings: where the bundles are and how they run.
        metrics: told of every model and batch.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._served: dict[str, Served] = {}

    async def load(self) -> None:
        """Reads, checks and warms up the newest version of every model.

        Raises:
            BundleError: a bundle must not be served, or there is none.
            DeviceUnavailable: the device asked for is not to be had.
        """
        folders = newest_versions(self._settings.artifacts)
        if not folders:
            raise NotReady(f"there is no bundle in {self._settings.artifacts.name or 'the folder'} yet")
        loop = asyncio.get_running_loop()
        for folder in folders:
            engine = await loop.run_in_executor(None, open_engine, folder, self._settings)
            self._serve(engine)
        wanted = self._settings.default_model
        if wanted is not None and wanted not in self._served:
            raise BundleError(f"default_model: there is no model {wanted}; there are {', '.join(sorted(self._served))}")

    async def close(self) -> None:
        """Stops every batcher and frees the sessions."""
        for served in self._served.values():
            await served.batcher.stop()
            served.executor.shutdown(wait=True)
        self._served.clear()

    def get(self, name: str | None) -> Served:
        """The model of that name, or the default one.

        Raises:
            NotFound: no such model, or several and none is the default.
        """
        name = name or self._settings.default_model
        if name is None and len(self._served) == 1:
            return next(iter(self._served.values()))
        if name is None:
            raise NotFound(f"say which model: {', '.join(sorted(self._served)) or 'none is loaded'}")
        if name not in self._served:
            raise NotFound("there is no model of that name; GET /models lists them")
        return self._served[name]

    def all(self) -> list[Served]:
        """Every model, by name."""
        return [self._served[name] for name in sorted(self._served)]

    def _serve(self, engine: Engine) -> None:
        card = engine.card
        if card.name in self._served:
            raise BundleError(f"two bundles are named {card.name}")
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"infer-{card.name}")
        batcher = Batcher(
            engine.run,
            executor,
            max_batch=self._settings.max_batch,
            max_wait=self._settings.max_wait_ms / 1e3,
            capacity=self._settings.queue_size,
            observer=self._metrics.observer(card.name, lambda: batcher.depth),
        )
        batcher.start()
        self._served[card.name] = Served(card, engine, batcher, executor)
        self._metrics.info.labels(card.name, card.version, engine.device.provider).set(1)
        log.info("model %s version %s on %s", card.name, card.version, engine.device)


def open_engine(folder: Path, settings: Settings) -> Engine:
    """A checked and warm engine for one bundle folder."""
    engine = Engine(read_bundle(folder), settings.device, settings.threads or usable_cores())
    engine.warm_up((1, settings.max_batch))
    return engine


def newest_versions(root: Path) -> list[Path]:
    """The bundle folders to serve: of each model name the highest version."""
    newest: dict[str, Path] = {}
    for folder in find_bundles(root):
        name = folder.parent.name
        if name not in newest or version_key(folder.name) >= version_key(newest[name].name):
            newest[name] = folder
    return [newest[name] for name in sorted(newest)]
