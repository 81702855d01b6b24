"""The embedded data set: a long-tailed part of Fashion-MNIST with recorded wrong labels (see scripts/data/README.md).

`unpack` turns it into class folders that `scripts.readers` reads like anybody's own data; `read_flips` says which
training labels were made wrong on purpose, for judging what an audit finds.
"""

import csv
import hashlib
import io
import os
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import InvalidInput

_MARKER = ".garments"
_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Flip:
    """A training label made wrong on purpose.

    Attributes:
        image: file name below train/.
        given: the class in whose folder `unpack` puts it.
        true: its class in Fashion-MNIST.
    """

    image: str
    given: str
    true: str


def data_digest() -> str:
    """The SHA-256 of the embedded file, which names its version."""
    return hashlib.sha256(_data("garments.npz").read_bytes()).hexdigest()


def read_flips() -> dict[str, Flip]:
    """The flipped training labels by file name ("train_00328.png")."""
    rows = csv.DictReader(io.StringIO(_data("garments_flips.csv").read_text(encoding="utf-8")))
    return {row["image"]: Flip(row["image"], row["given"], row["true"]) for row in rows}


def unpack(out: Path) -> None:
    """Writes train/CLASS/train_IIIII.png and test/CLASS/test_IIIII.png; IIIII counts in the original file.

    A folder that is complete already is left as it is, whatever was moved or deleted in it since; one that was
    left unfinished is finished. Nothing is ever deleted.

    Args:
        out: the folder; made when absent.

    Raises:
        InvalidInput: `out` holds another version of the data, or a train or test folder from elsewhere.
    """
    marker, digest = out / _MARKER, data_digest()
    state = marker.read_text(encoding="utf-8").strip() if marker.exists() else None
    if state == digest:
        return
    if state not in (None, _UNFINISHED):
        raise InvalidInput(f"{out} holds another version of the garment data; delete it or choose another folder")
    if state is None and any((out / part).exists() for part in ("train", "test")):
        raise InvalidInput(f"{out} already has a train or test folder that did not come from here; choose another")
    out.mkdir(parents=True, exist_ok=True)
    _write_marker(marker, _UNFINISHED)
    with np.load(io.BytesIO(_data("garments.npz").read_bytes()), allow_pickle=False) as arrays:
        for part in ("train", "test"):
            folders = [out / part / str(name) for name in arrays["classes"]]
            names = [f"{part}_{index:05d}.png" for index in arrays[f"{part}_index"].tolist()]
            _write_part(folders, arrays[f"{part}_images"], arrays[f"{part}_labels"].tolist(), names)
    _write_marker(marker, digest)


def _data(name: str) -> Traversable:
    return resources.files("scripts").joinpath("data", name)


def _write_part(folders: list[Path], images: NDArray[np.uint8], labels: list[int], names: list[str]) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for pixels, label, name in zip(images, labels, names, strict=True):
        path, data = folders[label] / name, _encode(pixels)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    # Uncompressed: no deflate implementation can change the bytes, so the files' hashes hold everywhere.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def _write_marker(marker: Path, text: str) -> None:
    fresh = marker.with_name(f"{_MARKER}-{os.getpid()}")
    fresh.write_text(text + "\n", encoding="utf-8")
    os.replace(fresh, marker)
