"""From folders to engines: which models a folder holds, and each of them read, checked and warmed up."""

import json
import os
import re
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.bundle import CARD_FILE, GRAPH_FILE, Bundle, read_bundle
from models.card import relative_name
from models.errors import BundleError
from service.detector import DetectorEngine
from service.engine import Engine, quick_rows
from service.lone_rows import rows_stand_alone
from service.metrics import Metrics
from service.runtime import CPU, Device, Runtime
from service.served import Bundled, Lanes, Served, serve_bundle, serve_graph
from service.settings import Settings, usable_cores
from service.warm_up import batch_size, pays_beside, side_by_side

LABELS_FILE = "labels.json"
_LABEL = re.compile(r"[\w.-]{1,64}", re.ASCII)
Build = Callable[[Settings, Metrics], Served]


def prepare(path: Path, settings: Settings) -> Build:
    """Reads, checks and warms up one version, off the event loop; what is left is to start its batcher."""
    if (path / CARD_FILE).exists():
        engine, narrow = open_pair(path, settings.device, settings.threads)
        batch = batch_size(engine.blank, settings.max_batch, engine.quick)
        lanes = None if narrow is None else _lanes(engine, batch, narrow, settings)
        return lambda settings, metrics: serve_bundle(engine, batch, lanes, settings, metrics)
    file = path / GRAPH_FILE if path.is_dir() else path
    try:
        graph = file.read_bytes()
        runtime, inline = open_graph(graph, settings.device, settings.threads, settings.max_batch, file.name)
    except OSError as error:
        raise BundleError(f"{relative_name(file)}: {(error.strerror or 'cannot be read').lower()}") from None
    name, version = (path.parent.name, path.name) if path.is_dir() else (path.stem, "1")
    return lambda settings, metrics: serve_graph(name, version, runtime, inline, settings, metrics)


def _lanes(engine: Bundled, batch: int, narrow: Bundled, settings: Settings) -> Lanes | None:
    """Runs side by side, where they are asked for or pay."""
    count = settings.runs or settings.threads or usable_cores()
    if count == 1:
        return None
    with ThreadPoolExecutor(count) as pool:
        beside = side_by_side(pool, narrow.blank, count)
        own = batch_size(beside, batch, quick=False)
        if settings.runs == 0 and not pays_beside(engine.blank(batch), beside(own), batch / (own * count)):
            return None
    return Lanes(narrow, count, own)


def open_engine(folder: Path, device: Device, threads: int) -> Bundled:
    """A checked bundle's engine.

    Args:
        folder: of the bundle.
        device: auto, cpu or cuda.
        threads: on the CPU.

    Raises:
        BundleError: it must not be used.
        DeviceUnavailable: cuda was asked for and is not to be had.
    """
    bundle = read_bundle(folder)
    return _kind(bundle)(bundle, device, threads)


def open_pair(folder: Path, device: Device, threads: int) -> tuple[Bundled, Bundled | None]:
    """A checked bundle's engine, and one on a single thread, to be run side by side.

    Args:
        folder: of the bundle.
        device: auto, cpu or cuda.
        threads: of the first, on the CPU; 0: as many as there are cores, but one for a net that is quick on one, since
            waking others costs more.

    Returns:
        The two, which are the same where one thread is all; no second one of a net that is quick, or on CUDA.

    Raises:
        BundleError: it must not be used.
        DeviceUnavailable: cuda was asked for and is not to be had.
    """
    bundle = read_bundle(folder)
    kind = _kind(bundle)
    narrow = kind(bundle, device, 1)
    if narrow.device.provider != CPU or (narrow.quick and threads < 2):
        return narrow, None
    wide = threads or usable_cores()
    return (narrow if wide == 1 else kind(bundle, device, wide)), narrow


def _kind(bundle: Bundle) -> type[Engine] | type[DetectorEngine]:
    return Engine if bundle.card.detector is None else DetectorEngine


def open_graph(
    graph: bytes, device: Device, threads: int, max_batch: int, file: str = GRAPH_FILE
) -> tuple[Runtime, int]:
    """A graph without a card in a session, and how many rows of it may run in the event loop; 0 where it is not quick.

    Args:
        graph: the file.
        device: auto, cpu or cuda.
        threads: as in `open_pair`.
        max_batch: rows in one run at most.
        file: what errors call it.

    Raises:
        BundleError: it must not be used.
        DeviceUnavailable: cuda was asked for and is not to be had.
    """
    if threads in (0, 1):
        runtime = _with_rows(Runtime(graph, device, 1, file))
        inline = quick_rows(runtime, max_batch)
        if inline or threads == 1 or runtime.device.provider != CPU or usable_cores() == 1:
            return runtime, inline
    return _with_rows(Runtime(graph, device, threads or usable_cores(), file)), 0


def _with_rows(runtime: Runtime) -> Runtime:
    """The runtime, which joins rows only where it was seen that none of them changes with the others."""
    runtime.batchable = runtime.batchable and rows_stand_alone(runtime)
    return runtime


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


def check_cards(versions: dict[str, Path], wanted: Collection[str]) -> None:
    """Refuses a graph without a card among bundles: it would take a bundle's place, and say nothing of its pictures.

    Args:
        versions: of a model, by version.
        wanted: those that are to be served.

    Raises:
        BundleError: there is one.
    """
    carded = {version for version, path in versions.items() if (path / CARD_FILE).is_file()}
    without = sorted(set(wanted) - carded)
    if carded and without:
        raise BundleError(f"{relative_name(versions[without[0]])}: has no {CARD_FILE}, as other versions have")


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
    odd = [label for label in labels if label in versions or not _LABEL.fullmatch(label)]
    if odd:
        why = "names a version" if odd[0] in versions else "is not of letters, digits, dots, dashes and underscores"
        raise BundleError(f"{relative_name(file)}: the label {odd[0][:64]!r} {why}")
    missing = sorted(set(labels.values()) - set(versions))
    if missing:
        raise BundleError(f"{relative_name(file)}: there is no version {', '.join(missing)}")
    return labels
