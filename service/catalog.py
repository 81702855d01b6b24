"""The models that are served, by name and version: loaded from a folder, exchanged while they run, unloaded."""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from models.bundle import CARD_FILE, GRAPH_FILE, read_bundle, version_key
from models.card import relative_name
from models.errors import BundleError
from service.detector import DetectorEngine
from service.engine import Engine, is_quick, warm_up
from service.errors import Conflict, NotFound, NotReady
from service.metrics import Metrics
from service.runtime import CPU, Device, Runtime
from service.served import Served, serve_bundle, serve_graph
from service.settings import Settings, usable_cores

log = logging.getLogger("focalserve")
LABELS_FILE = "labels.json"
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

    @property
    def default(self) -> Served:
        """The version labelled stable, or the newest."""
        newest = max(self.versions, key=version_key)
        return self.versions[self.labels.get(STABLE, newest)]


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
        self._retired: set[asyncio.Task[None]] = set()

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
            entry = await self._open(versions)
            entry.folder = folder
        finally:
            self._loading.discard(name)
        shown = entry.default.name
        before = self._entries.get(shown)
        if before is not None and before.folder != folder:
            self._retire(entry)
            raise BundleError(f"two folders hold a model named {shown}: {before.folder} and {folder}")
        self._entries[shown] = entry
        if before is not None:
            self._retire(before)
        for served in entry.versions.values():
            self._metrics.info.labels(served.name, served.version, served.device.provider).set(1)
            log.info("model %s version %s on %s", served.name, served.version, served.device)

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
        """Stops every batcher and frees the sessions."""
        for entry in self._entries.values():
            for served in entry.versions.values():
                await served.batcher.stop()
                served.shutdown(wait=True)
        await asyncio.gather(*self._retired, return_exceptions=True)
        self._entries.clear()

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

    async def _open(self, versions: dict[str, Path]) -> Entry:
        folder = next(iter(versions.values())).parent
        labels = read_labels(folder / LABELS_FILE, versions)
        wanted = {max(versions, key=version_key), *labels.values()}
        found: dict[str, Served] = {}
        try:
            for version in sorted(wanted, key=version_key):
                build = await asyncio.get_running_loop().run_in_executor(
                    None, prepare, versions[version], self._settings
                )
                served = build(self._settings, self._metrics)
                found[served.version] = served
            if not set(labels.values()) <= set(found):
                raise BundleError(f"{LABELS_FILE}: a version's folder is not named like the version in its card")
        except BaseException:
            self._retire(Entry(found))
            raise
        return Entry(found, labels)

    def _retire(self, entry: Entry) -> None:
        async def drain() -> None:
            for served in entry.versions.values():
                await served.batcher.drain()
                served.shutdown(wait=False)

        task = asyncio.create_task(drain(), name="retire")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)


Build = Callable[[Settings, Metrics], Served]


def prepare(path: Path, settings: Settings) -> Build:
    """Reads, checks and warms up one version, off the event loop; what is left is to start its batcher."""
    if (path / CARD_FILE).exists():
        engine = open_engine(path, settings.device, settings.threads)
        batch = warm_up(engine, settings.max_batch)
        return lambda settings, metrics: serve_bundle(engine, batch, settings, metrics)
    file = path / GRAPH_FILE if path.is_dir() else path
    try:
        runtime, quick = open_graph(file.read_bytes(), settings.device, settings.threads)
    except OSError as error:
        raise BundleError(f"{relative_name(file)}: {(error.strerror or 'cannot be read').lower()}") from None
    name, version = (path.parent.name, path.name) if path.is_dir() else (path.stem, "1")
    return lambda settings, metrics: serve_graph(name, version, runtime, quick, settings, metrics)


def open_engine(folder: Path, device: Device, threads: int) -> Engine | DetectorEngine:
    """A checked bundle's engine.

    Args:
        folder: of the bundle.
        device: auto, cpu or cuda.
        threads: on the CPU; 0: as many as there are cores, but one for a net that is quick on one, since waking others
            costs more.

    Raises:
        BundleError: it must not be used.
        DeviceUnavailable: cuda was asked for and is not to be had.
    """
    bundle = read_bundle(folder)
    if bundle.card.detector is not None:
        return DetectorEngine(bundle, device, threads or usable_cores())
    if threads == 0:
        engine = Engine(bundle, device, 1)
        if engine.quick or engine.device.provider != CPU or usable_cores() == 1:
            return engine
    return Engine(bundle, device, threads or usable_cores())


def open_graph(graph: bytes, device: Device, threads: int) -> tuple[Runtime, bool]:
    """A graph without a card in a session, and whether it is quick; threads as in `open_engine`.

    Raises:
        BundleError: it must not be used.
        DeviceUnavailable: cuda was asked for and is not to be had.
    """
    if threads in (0, 1):
        runtime = Runtime(graph, device, 1)
        quick = is_quick(runtime)
        if quick or threads == 1 or runtime.device.provider != CPU or usable_cores() == 1:
            return runtime, quick
    return Runtime(graph, device, threads or usable_cores()), False


def find_models(root: Path) -> dict[str, dict[str, Path]]:
    """Models in a folder by name, each with its versions.

    A version is a folder with model.onnx at `root`, `root/VERSION` or `root/NAME/VERSION`, with card.json or without;
    a file `root/NAME.onnx` is version 1 of NAME, unless `root` itself is a bundle.

    Raises:
        BundleError: there is no such folder.
    """
    if not root.is_dir():
        raise BundleError(f"{relative_name(root)}: there is no such folder")
    if not os.access(root, os.R_OK | os.X_OK):
        raise BundleError(f"{relative_name(root)}: this user may not read it")
    found: dict[str, dict[str, Path]] = {}
    inside = [root, *root.glob("*"), *root.glob("*/*")]
    for folder in inside:
        hidden = any(part.startswith(".") for part in folder.relative_to(root).parts)
        if not hidden and ((folder / CARD_FILE).is_file() or (folder / GRAPH_FILE).is_file()):
            found.setdefault(folder.resolve().parent.name, {})[folder.resolve().name] = folder
    # A bundle's other graphs are parts of it.
    alone = [] if (root / CARD_FILE).is_file() else root.glob("*.onnx")
    for file in alone:
        if file.name != GRAPH_FILE:
            found.setdefault(file.stem, {})["1"] = file
    return found


def read_labels(file: Path, versions: dict[str, Path]) -> dict[str, str]:
    """The labels of a model's versions, such as {"stable": "3", "canary": "4"}; none where the file is absent.

    Raises:
        BundleError: it is no such file, or names a version that is not there.
    """
    if not file.is_file():
        return {}
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BundleError(f"{relative_name(file)}: is not JSON") from None
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise BundleError(f"{relative_name(file)}: should be an object from label to version, both text")
    missing = sorted(set(labels.values()) - set(versions))
    if missing:
        raise BundleError(f"{relative_name(file)}: there is no version {', '.join(missing)}")
    return labels
