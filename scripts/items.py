"""Single garments to compose scenes from: the embedded ones, or all of Fashion-MNIST from Debian's package."""

import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.boxes import Indices
from models.errors import InvalidInput
from models.image import Pixels
from scripts.data.build import CLASSES, SOURCES, read_source
from scripts.garments import read_flips

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FIVE = ("tops", "trouser", "dress", "shoes", "bag")
Part = Literal["train", "test"]

_SIDE = 28
_FILES = {"train": "train", "test": "t10k"}
_MERGED = {
    "T-shirt": "tops",
    "Pullover": "tops",
    "Coat": "tops",
    "Shirt": "tops",
    "Trouser": "trouser",
    "Dress": "dress",
    "Sandal": "shoes",
    "Sneaker": "shoes",
    "Ankle boot": "shoes",
    "Bag": "bag",
}


@dataclass(frozen=True, eq=False)
class Items:
    """Pictures of one thing each, on black.

    Attributes:
        images: (N, 28, 28) uint8 grey.
        classes: (N,) int64, indices into `labels`.
        labels: class names.
    """

    images: Pixels
    classes: Indices
    labels: tuple[str, ...]

    def take(self, chosen: NDArray[np.integer]) -> "Items":
        """Some of the items, (n,) indices: parts that share none make scenes that share none."""
        return Items(self.images[chosen], self.classes[chosen], self.labels)


def embedded_items(part: Part) -> Items:
    """The embedded garments with their true classes: 5,001 long-tailed ones to train, 1,000 balanced ones to test."""
    data = resources.files("scripts").joinpath("data", "garments.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = tuple(str(name) for name in arrays["classes"])
        classes = arrays[f"{part}_labels"].astype(np.int64)
        images, places = arrays[f"{part}_images"], arrays[f"{part}_index"].tolist()
    flips = read_flips()
    for row, place in enumerate(places):
        flip = flips.get(f"{part}_{place:05d}.png")
        if flip is not None:
            classes[row] = names.index(flip.true)
    return Items(images, classes, names)


def debian_items(part: Part, folder: Path = DEBIAN) -> Items:
    """All of Fashion-MNIST: 60,000 garments to train, 10,000 to test.

    Raises:
        InvalidInput: its files are not there.
    """
    images, classes = (f"{_FILES[part]}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1"))
    if not all((folder / name).is_file() for name in SOURCES):
        raise InvalidInput(f"{folder}: no Fashion-MNIST here; on Debian: apt-get install dataset-fashion-mnist")
    pixels = read_source(folder, images, 16).reshape(-1, _SIDE, _SIDE)
    return Items(pixels, read_source(folder, classes, 8).astype(np.int64), CLASSES)


def merge_items(items: Items) -> Items:
    """The same garments in five classes that a small net tells apart: tops, trouser, dress, shoes, bag."""
    table = np.array([FIVE.index(_MERGED[name]) for name in items.labels], np.int64)
    return Items(items.images, table[items.classes], FIVE)
