"""The models that are served, by name and version: loaded from a folder, exchanged while they run, unloaded."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from weakref import WeakSet

from models.bundle import version_key
from models.errors import BundleError
from service import loss_model
from service.errors import Conflict, NotFound, NotReady
from service.memory import give_back
from service.metrics import Metrics
from service.model_folder import LABELS_FILE, check_cards, find_models, prepare, read_labels
from service.runtime import Runtime
from service.served import Served
from service.settings import Settings

log = logging.getLogger("focalserve")
STABLE = "stable"


@dataclass
class Entry:
    """A model's versions that are served.

    Attributes:
        versions: by version.
        labels: other names of versions, such as stable and canary, from NAME/labels.json.
        folder: the name it has on disk.
    """

    versions: dict[str, Served]
    labels: dict[str, str] = field(default_factory=dict)
    folder: str = ""

    @cached_property
    def default(self) -> Served:
        """The version labelled stable, or the newest."""
        newest = max(self.versions, key=version_key)
        return self.versions[self.labels.get(STABLE, newest)]


def _info_of(served: Served) -> tuple[str, str, str]:
    """What metrics tell of it."""
    return served.name, served.version, served.device.provider


async def _end(served: Served) -> None:
    """Once it has answered what it has accepted."""
    await served.batcher.drain()
    served.shutdown(wait=False)


class Catalog:
    """Models by name. Empty until `load_all`.

    Args:
        settings: where the models are and how they run.
        metrics: told of every model and batch.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._entries: dict[str, Entry] = {}
        self._loading: set[str] = set()
        self._refused: dict[str, BundleError] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._runtimes: WeakSet[Runtime] = WeakSet()
        # glibc keeps what each thread has freed for that thread: with many that load, as many nets' memory stays.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    async def load_all(self) -> None:
        """Reads, checks and warms up every model in the folder.

        Raises:
            BundleError: a model must not be served.
            DeviceUnavailable: the device asked for is not to be had.
            NotReady: there is no model in the folder.
        """
        names = sorted(find_models(self._settings.models))
        if not names:
            raise NotReady(f"there is no bundle in {self._settings.models.name or 'the folder'} yet")
        for name in names:
            await self.load(name)
        wanted = self._settings.default_model
        if wanted is not None and wanted not in self._entries:
            raise BundleError(
                f"default_model: there is no model {wanted}; there are {', '.join(sorted(self._entries))}"
            )

    async def load(self, name: str) -> None:
        """Loads a model as its folder is now; what served before answers until the new one is warm, then drains.

        Raises:
            NotFound: the folder holds no such model.
            Conflict: it is being loaded already.
            BundleError: it must not be served; what served before stays.
        """
        if name in self._loading:
            raise Conflict(f"model {name} is being loaded already")
        self._loading.add(name)
        try:
            folder = self._entries[name].folder if name in self._entries else name
            versions = find_models(self._settings.models).get(folder)
            if versions is None:
                raise NotFound("the folder holds no model of that name")
            self._refused.pop(folder, None)
            try:
                self._put(await self._open(versions), folder)
            except BundleError as error:
                self._refused[folder] = error
                raise
        finally:
            self._loading.discard(name)

    def _put(self, entry: Entry, folder: str) -> None:
        """Serves an entry from now on, in the place of another of its name."""
        entry.folder, shown = folder, entry.default.name
        before = self._entries.get(shown)
        if shown == loss_model.NAME or (before is not None and before.folder != folder):
            self._retire(entry)
            if before is None:
                raise BundleError(f"{folder}: the name {shown} is that of the loss, which is part of the service")
            raise BundleError(f"two folders hold a model named {shown}: {before.folder} and {folder}")
        self._entries[shown] = entry
        if before is not None:
            self._retire(before)
        for served in entry.versions.values():
            self._metrics.info.labels(*_info_of(served)).set(1)
            log.info("model %s version %s on %s, %s", served.name, served.version, served.device, served.how)

    async def unload(self, name: str) -> None:
        """Takes a model out; what it has accepted is still answered.

        Raises:
            NotFound: it is not loaded.
        """
        entry = self._entries.pop(name, None)
        if entry is None:
            raise NotFound("no model of that name is loaded")
        self._retire(entry)

    async def close(self) -> None:
        """Stops every batcher and frees the sessions; what still runs is ended."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        everything = self.all()
        for served in everything:
            served.batcher.stop()
        self.halt()
        for served in everything:
            await asyncio.to_thread(served.shutdown, wait=True)
        await asyncio.gather(*self._retired, return_exceptions=True)
        self._entries.clear()

    def halt(self) -> None:
        """Ends every run between two operators, of models that have been taken out too; no other begins."""
        for runtime in self._runtimes:
            runtime.end()

    def get(self, name: str | None, version: str | None = None) -> Served:
        """The model of that name and version (or label), or the default one.

        Raises:
            NotFound: no such model or version, or several models and none is the default.
        """
        name = name or self._settings.default_model
        if name is None:
            if len(self._entries) != 1:
                raise NotFound(f"say which model: {', '.join(sorted(self._entries)) or 'none is loaded'}")
            name = next(iter(self._entries))
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound("there is no model of that name; GET /models lists them")
        if version is None:
            return entry.default
        served = entry.versions.get(entry.labels.get(version, version))
        if served is None:
            raise NotFound(f"model {name} has no such version; it has {', '.join(sorted(entry.versions))}")
        return served

    def all(self) -> list[Served]:
        """Every version of every model, by name."""
        return [served for name in sorted(self._entries) for served in self._entries[name].versions.values()]

    def names(self) -> list[tuple[str, str, str | None]]:
        """Name, version and checksum of all of them."""
        return [(one.name, one.version, one.card.sha256 if one.card else None) for one in self.all()]

    def folders(self) -> list[str]:
        """The names that the models have on disk."""
        return [entry.folder for entry in self._entries.values()]

    def entry(self, name: str) -> Entry:
        """A model's versions.

        Raises:
            NotFound: there is no such model.
        """
        if name not in self._entries:
            raise NotFound("there is no model of that name; GET /models lists them")
        return self._entries[name]

    def available(self) -> dict[str, list[str]]:
        """Versions on disk by model, whether loaded or not."""
        return {
            name: sorted(versions, key=version_key) for name, versions in find_models(self._settings.models).items()
        }

    def why_not(self, name: str, version: str) -> str:
        """Why a version on disk is not served; the names are those of its folders."""
        refused = self._refused.get(name)
        return "not loaded" if refused is None else f"refused: {refused}"

    async def _open(self, versions: dict[str, Path]) -> Entry:
        folder = next(iter(versions.values())).parent
        labels = read_labels(folder / LABELS_FILE, versions)
        wanted = {max(versions, key=version_key), *labels.values()}
        check_cards(versions, wanted)
        found: dict[str, Served] = {}
        try:
            for version in sorted(wanted, key=version_key):
                build = await asyncio.get_running_loop().run_in_executor(
                    self._loader, prepare, versions[version], self._settings
                )
                served = build(self._settings, self._metrics)
                found[served.version] = served
                self._runtimes.update(served.runtimes)
            if not set(labels.values()) <= set(found):
                raise BundleError(f"{LABELS_FILE}: a version's folder is not named like the version in its card")
        except BaseException:
            self._retire(Entry(found))
            raise
        return Entry(found, labels)

    def _retire(self, entry: Entry) -> None:
        there = {_info_of(one) for one in self.all()}
        for told in {_info_of(one) for one in entry.versions.values()} - there:
            with suppress(KeyError):  # one that was refused was not told of
                self._metrics.info.remove(*told)

        async def drain() -> None:
            while entry.versions:
                await _end(entry.versions.popitem()[1])
            entry.__dict__.pop("default", None)
            await asyncio.sleep(0)  # this step of the task still holds the last one
            await asyncio.to_thread(give_back)

        task = asyncio.create_task(drain(), name="retire")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)
