"""A bundle on disk, `NAME/VERSION/{model.onnx, card.json}`: written whole or not at all, read with its SHA-256."""

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
METADATA_KEY = "focalserve.card"


@dataclass(frozen=True)
class Bundle:
    """A card and the graph it belongs to. The bytes are those whose SHA-256 was checked: no second read of the file."""

    card: ModelCard
    graph: bytes


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle and checks that the graph is the one its card names.

    Raises:
        BundleError: a file is missing or unreadable, the card is not one, or the graph is not the card's.
    """
    card = ModelCard.parse(_read(folder / CARD_FILE), relative_name(folder / CARD_FILE))
    graph = _read(folder / GRAPH_FILE)
    found = hashlib.sha256(graph).hexdigest()
    if card.sha256 is None:
        raise BundleError(f"{relative_name(folder / CARD_FILE)}: sha256 is missing")
    if found != card.sha256:
        raise BundleError(
            f"{relative_name(folder / GRAPH_FILE)}: the file has changed since export "
            f"(SHA-256 {found[:12]}..., the card says {card.sha256[:12]}...)"
        )
    return Bundle(card, graph)


def write_bundle(root: Path, card: ModelCard, graph: bytes) -> Path:
    """Writes `root/VERSION/`, under another name first, so that a half-written bundle is never seen.

    Args:
        root: the folder of the model's versions.
        card: the card; its `sha256` is set from the graph here.
        graph: the serialised model.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: that version exists already.
    """
    target = root / card.version
    if target.exists():
        raise BundleError(f"{relative_name(target)} exists already; a version is written once")
    signed = card.model_copy(update={"sha256": hashlib.sha256(graph).hexdigest()})
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".bundle-", dir=root))
    try:
        _write(draft / GRAPH_FILE, graph)
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
