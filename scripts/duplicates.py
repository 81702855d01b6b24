"""Images that are there twice with different labels: the same file, or a picture that looks the same.

Alike are pictures whose difference hashes (64 bits: is each of 8 x 8 blocks brighter than the one to its left?) are
within 4 bits, and whose thumbnails correlate by .99 or more, colours included. The hash finds candidates quickly; alone
it takes thousands of garments for each other.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.card import ImageInput
from models.fit import Pixels
from models.image import load_input
from scripts.readers import DataSet, Sample

Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]

MOST_BITS, LEAST_CORRELATION = 4, 0.99
_BLOCK, _ROWS, _COLUMNS = 4, 8, 9
_INPUT = ImageInput(height=_ROWS * _BLOCK, width=_COLUMNS * _BLOCK)
_GREY = (0.299, 0.587, 0.114)
_BRIGHTER = 1.0  # grey levels; less is what an encoder does to flat ground
_FLAT = 4.0  # standard deviation, grey levels
_BANDS = tuple((bit, min(13, 64 - bit)) for bit in range(0, 64, 13))  # of 4 wrong bits none is in one of these 5
_AT_ONCE = 2048


@dataclass(frozen=True)
class Duplicates:
    """For samples, by position, another one with other labels.

    Attributes:
        same: whose file is the same, byte for byte.
        near: that looks the same, and whose file is another; of several the most similar.
    """

    same: Mapping[int, int] = field(default_factory=dict)
    near: Mapping[int, int] = field(default_factory=dict)

    def of(self, row: int) -> int | None:
        """The other one of either kind."""
        return self.same.get(row, self.near.get(row))


@dataclass(frozen=True, eq=False)
class Looks:
    """What pictures look like, in little.

    Attributes:
        hashes: (N,) uint64; a picture made brighter keeps its hash.
        colours: (N, 864) uint8, a thumbnail of 16 x 18 in RGB.
        flat: (N,) bool, pictures of nothing, which are all alike.
    """

    hashes: Hashes
    colours: Pixels
    flat: NDArray[np.bool_]

    def put(self, row: int, pixels: Pixels) -> None:
        """Looks at one picture, (32, 36, 3) uint8."""
        grey = pixels @ np.array(_GREY, np.float32)
        blocks = grey.reshape(_ROWS, _BLOCK, _COLUMNS, _BLOCK).mean(axis=(1, 3))
        self.hashes[row] = np.packbits(blocks[:, 1:] > blocks[:, :-1] + _BRIGHTER).view(np.uint64)[0]
        small = pixels.reshape(_INPUT.height // 2, 2, _INPUT.width // 2, 2, 3).mean(axis=(1, 3))
        self.colours[row] = np.rint(small).ravel()
        self.flat[row] = grey.std() < _FLAT

    def take(self, rows: Indices) -> "Looks":
        """Those of some pictures."""
        return Looks(self.hashes[rows], self.colours[rows], self.flat[rows])


def find_duplicates(data: DataSet) -> Duplicates:
    """Looks at every image once; about as long as decoding takes."""
    with (
        tqdm(total=len(data.samples), desc="comparing images", unit=" images", disable=None) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        digests, looks = list[bytes](), make_looks(len(data.samples))
        for row, (digest, pixels) in enumerate(pool.map(_read, data.samples)):
            digests.append(digest)
            looks.put(row, pixels)
            bar.update()
    codes: dict[tuple[int, ...], int] = {}
    labels = np.array([codes.setdefault(sample.classes, len(codes)) for sample in data.samples], np.int64)
    files: dict[bytes, dict[int, int]] = defaultdict(dict)
    for row, digest in enumerate(digests):
        files[digest].setdefault(int(labels[row]), row)
    same, first = dict[int, int](), np.empty(len(labels), np.int64)
    for row, digest in enumerate(digests):
        label = int(labels[row])
        first[row] = files[digest][label]
        other = next((twin for code, twin in files[digest].items() if code != label), None)
        if other is not None:
            same[row] = other
    firsts = np.unique(first)
    partner = nearest_other(looks.take(firsts), labels[firsts])
    alike = {int(row): int(firsts[place]) for row, place in zip(firsts, partner, strict=True) if place >= 0}
    near = {row: alike[one] for row, one in enumerate(first.tolist()) if one in alike and row not in same}
    return Duplicates(same, near)


def make_looks(count: int) -> Looks:
    """Room for the looks of `count` pictures."""
    colours = np.zeros((count, _INPUT.height // 2 * (_INPUT.width // 2) * 3), np.uint8)
    return Looks(np.zeros(count, np.uint64), colours, np.zeros(count, bool))


def nearest_other(looks: Looks, labels: Indices) -> Indices:
    """For each picture the most similar one with another label.

    Args:
        looks: of N pictures.
        labels: (N,) int64.

    Returns:
        (N,) int64 positions; -1 where no picture with another label is alike.
    """
    kept = np.flatnonzero(~looks.flat)
    partner, best = np.full(len(labels), -1, np.int64), np.full(len(labels), LEAST_CORRELATION)
    for one, other in _candidates(looks.hashes[kept], labels[kept]):
        one, other = kept[one], kept[other]
        alike = _correlations(looks.colours, one, other)
        for a, b in ((one, other), (other, one)):
            better = np.flatnonzero(alike >= best[a])
            # Written in rising order, so that of several for one picture the best one stays.
            better = better[np.argsort(alike[better], kind="stable")]
            partner[a[better]], best[a[better]] = b[better], alike[better]
    return partner


def _read(sample: Sample) -> tuple[bytes, Pixels]:
    content = sample.path.read_bytes()
    return hashlib.sha256(content).digest(), load_input(content, _INPUT).pixels


def _candidates(hashes: Hashes, labels: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of other labels within 4 bits of each other, once each: some band of such a pair is equal."""
    for band, (bit, width) in enumerate(_BANDS):
        keys = _band(hashes, bit, width)
        order = np.argsort(keys, kind="stable")
        keys, step, left = keys[order], 1, np.arange(len(keys) - 1)
        while len(left):
            left = left[: np.searchsorted(left, len(keys) - step)]
            left = left[keys[left + step] == keys[left]]
            one, other = order[left], order[left + step]
            close = (labels[one] != labels[other]) & (np.bitwise_count(hashes[one] ^ hashes[other]) <= MOST_BITS)
            one, other = one[close], other[close]
            for earlier in _BANDS[:band]:
                new = _band(hashes[one], *earlier) != _band(hashes[other], *earlier)
                one, other = one[new], other[new]
            for start in range(0, len(one), _AT_ONCE):
                yield one[start : start + _AT_ONCE], other[start : start + _AT_ONCE]
            step += 1


def _band(hashes: Hashes, bit: int, width: int) -> Hashes:
    return (hashes >> np.uint64(bit)) & np.uint64((1 << width) - 1)


def _correlations(flat: Pixels, one: Indices, other: Indices) -> NDArray[np.float64]:
    """The correlation of thumbnails, pair by pair."""
    a, b = (flat[rows].astype(np.float32) for rows in (one, other))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    return np.asarray(np.einsum("ij,ij->i", a, b) / scale, np.float64)
