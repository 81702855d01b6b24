"""A bundle on disk, `NAME/VERSION/{model.onnx, card.json}`: written whole or not at all, read with its SHA-256.

A detector's also holds loss.onnx, the focal loss of its anchors as a graph (models.nets.loss_graph).
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.card import ModelCard, relative_name
from models.errors import BundleError

GRAPH_FILE = "model.onnx"
CARD_FILE = "card.json"
LOSS_FILE = "loss.onnx"
METADATA_KEY = "focalserve.card"


@dataclass(frozen=True)
class Bundle:
    """A card and the graphs it belongs to. The bytes are those whose SHA-256 was checked: no second read of the files.

    Attributes:
        card: of the model.
        graph: the serialised model.
        loss_graph: a detector's serialised loss graph; None where its card names none.
    """

    card: ModelCard
    graph: bytes
    loss_graph: bytes | None = None


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle and checks that the graphs are those that its card names.

    Raises:
        BundleError: a file is missing or unreadable, the card is not one, or a graph is not the card's.
    """
    card = ModelCard.parse(_read(folder / CARD_FILE), relative_name(folder / CARD_FILE))
    if card.sha256 is None:
        raise BundleError(f"{relative_name(folder / CARD_FILE)}: sha256 is missing")
    graph = _read_signed(folder / GRAPH_FILE, card.sha256)
    signed = card.loss_graph_sha256
    return Bundle(card, graph, None if signed is None else _read_signed(folder / LOSS_FILE, signed))


def write_bundle(root: Path, card: ModelCard, graph: bytes, loss_graph: bytes | None = None) -> Path:
    """Writes `root/VERSION/`, under another name first, so that a half-written bundle is never seen.

    Args:
        root: the folder of the model's versions.
        card: the card; its `sha256` is set from the graph here.
        graph: the serialised model.
        loss_graph: the loss graph that the card names, if it does.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: that version exists already, or the loss graph is not the one that the card names.
    """
    if card.loss_graph_sha256 != (None if loss_graph is None else sha256_of(loss_graph)):
        raise BundleError(f"{LOSS_FILE}: the loss graph is not the one that the card names")
    target = root / card.version
    if target.exists():
        raise BundleError(f"{relative_name(target)} exists already; a version is written once")
    signed = card.model_copy(update={"sha256": sha256_of(graph)})
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".bundle-", dir=root))
    try:
        _write(draft / GRAPH_FILE, graph)
        if loss_graph is not None:
            _write(draft / LOSS_FILE, loss_graph)
        _write(draft / CARD_FILE, (signed.model_dump_json(indent=2) + "\n").encode())
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target


def next_version(root: Path) -> str:
    """One more than the highest whole-number version below `root`; "1" where there is none."""
    numbers = [int(folder.name) for folder in root.glob("*") if folder.name.isdecimal()]
    return str(max(numbers, default=0) + 1)


def version_key(version: str) -> tuple[int, int, str]:
    """Sorts versions: names first, then whole numbers by value."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)


def sha256_of(data: bytes) -> str:
    """The SHA-256 of a file, as cards hold it."""
    return hashlib.sha256(data).hexdigest()


def _read_signed(path: Path, signed: str) -> bytes:
    data = _read(path)
    found = sha256_of(data)
    if found != signed:
        raise BundleError(
            f"{relative_name(path)}: the file has changed since export "
            f"(SHA-256 {found[:12]}..., the card says {signed[:12]}...)"
        )
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{relative_name(path)}: {(error.strerror or 'cannot be read').lower()}") from None


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
