"""Build garments.npz and garments_flips.csv from Fashion-MNIST, the same arrays every time.

    apt-get install dataset-fashion-mnist
    python scripts/data/build.py --source /usr/share/datasets/fashion-mnist --out scripts/data

No random generator is involved: "at random" means "the lowest SHA-256 of 'SEED:purpose:index'", which no
library version can change. Every choice is in the constants below.
"""

import argparse
import csv
import gzip
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SEED = 0
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

# Frequent to rare. Each look-alike pair (T-shirt and Shirt, Pullover and Coat, Sneaker and Ankle boot) has one
# member among the three most frequent classes and one in the middle; the rarest three look like nothing else.
FREQUENT_TO_RARE = (
    "T-shirt", "Pullover", "Sneaker", "Shirt", "Dress", "Coat", "Ankle boot", "Trouser", "Sandal", "Bag",
)  # fmt: skip
LARGEST = 2015
IMBALANCE = 100.0
TEST_PER_CLASS = 100

FLIP_RATE = 0.05
LOOK_ALIKE = {
    "T-shirt": "Shirt",
    "Shirt": "T-shirt",
    "Pullover": "Coat",
    "Coat": "Pullover",
    "Sneaker": "Ankle boot",
    "Ankle boot": "Sneaker",
    "Sandal": "Sneaker",
    "Dress": "T-shirt",
    "Trouser": "Dress",
    "Bag": "Shirt",
}

# SHA-256 of the unpacked files, so that any gzip copy of them will do.
SOURCES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Flip:
    """One training label made wrong on purpose; `index` counts in the original training file."""

    index: int
    given: int
    true: int


def read_source(folder: Path, name: str, header: int) -> Bytes:
    """Returns the bytes of one original file after its header, having checked its SHA-256."""
    data = gzip.decompress((folder / name).read_bytes())
    if hashlib.sha256(data).hexdigest() != SOURCES[name]:
        raise SystemExit(f"{folder / name}: not the expected file (SHA-256 of its content differs)")
    return np.frombuffer(data, np.uint8, offset=header)


def draw(purpose: str, index: int) -> int:
    """Returns the number that stands for chance: a SHA-256 of the seed, a purpose and an index."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:{purpose}:{index}".encode()).digest(), "big")


def pick(purpose: str, indices: Iterable[int], count: int) -> list[int]:
    """Returns `count` of the indices, those with the lowest draws."""
    return sorted(indices, key=lambda index: draw(purpose, index))[:count]


def class_sizes() -> list[int]:
    """Returns the number of training images per class, in the order of FREQUENT_TO_RARE."""
    last = len(FREQUENT_TO_RARE) - 1
    return [round(LARGEST * IMBALANCE ** (-place / last)) for place in range(last + 1)]


def choose_train(labels: Bytes) -> list[int]:
    """Returns the indices of the long-tailed training part, ascending."""
    chosen: list[int] = []
    for name, size in zip(FREQUENT_TO_RARE, class_sizes(), strict=True):
        chosen += pick("train", np.flatnonzero(labels == CLASSES.index(name)).tolist(), size)
    return sorted(chosen)


def choose_test(labels: Bytes) -> list[int]:
    """Returns the indices of the balanced test part, ascending."""
    per_class = (np.flatnonzero(labels == k).tolist() for k in range(len(CLASSES)))
    return sorted(index for indices in per_class for index in pick("test", indices, TEST_PER_CLASS))


def choose_flips(labels: Bytes, train: list[int]) -> list[Flip]:
    """Returns the flips: FLIP_RATE of every true class, alternately to the look-alike and to any other class."""
    flips: list[Flip] = []
    for name in FREQUENT_TO_RARE:
        true = CLASSES.index(name)
        members = [index for index in train if labels[index] == true]
        others = [k for k in range(len(CLASSES)) if k != true]
        for index in pick("flip", members, round(FLIP_RATE * len(members))):
            anything = others[draw("given", index) % len(others)]
            given = anything if len(flips) % 2 else CLASSES.index(LOOK_ALIKE[name])
            flips.append(Flip(index, given, true))
    return sorted(flips, key=lambda flip: flip.index)


def write_flips(path: Path, flips: list[Flip]) -> None:
    """Writes the flips as CSV: image, given, true."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "given", "true"])
        writer.writerows([f"train_{f.index:05d}.png", CLASSES[f.given], CLASSES[f.true]] for f in flips)


def build(source: Path, out: Path) -> None:
    """Writes garments.npz and garments_flips.csv."""
    images = read_source(source, "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read_source(source, "train-labels-idx1-ubyte.gz", 8)
    test_images = read_source(source, "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    test_labels = read_source(source, "t10k-labels-idx1-ubyte.gz", 8)
    train, test = choose_train(labels), choose_test(test_labels)
    flips = choose_flips(labels, train)
    given = labels.copy()
    given[[flip.index for flip in flips]] = [flip.given for flip in flips]
    np.savez_compressed(
        out / "garments.npz",
        classes=np.array(CLASSES),
        train_images=images[train],
        train_labels=given[train],
        train_index=np.array(train, np.uint16),
        test_images=test_images[test],
        test_labels=test_labels[test],
        test_index=np.array(test, np.uint16),
    )
    write_flips(out / "garments_flips.csv", flips)


def main(arguments: list[str]) -> None:
    """Parses the two folders, builds, and prints what sha256sum would print."""
    parser = argparse.ArgumentParser(description="Rebuild the embedded garment data set.")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    folders = parser.parse_args(arguments)
    build(folders.source, folders.out)
    for name in ("garments.npz", "garments_flips.csv"):
        print(hashlib.sha256((folders.out / name).read_bytes()).hexdigest(), name, sep="  ")


if __name__ == "__main__":
    main(sys.argv[1:])
