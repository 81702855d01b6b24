"""Images that are there twice with different labels: the same file, or a picture that looks the same.

Alike are pictures whose difference hashes (64 bits: is each of 8 x 8 blocks brighter than the one to its left?) are
within 4 bits, and whose thumbnails correlate by .99 or more, colours included. The hash finds candidates quickly; alone
it takes thousands of garments for each other.
"""

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.card import ImageInput
from models.fit import Pixels
from models.image import load_input
from scripts.pools import map_ahead
from scripts.readers import DataSet, Sample

Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]

MOST_BITS, LEAST_CORRELATION = 4, 0.99
_BLOCK, _ROWS, _COLUMNS = 4, 8, 9
_INPUT = ImageInput(height=_ROWS * _BLOCK, width=_COLUMNS * _BLOCK)
_THUMBNAIL = _INPUT.height // 2 * (_INPUT.width // 2) * 3
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


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures in a file, so that a large data set does not fill the memory with them."""

    file: BinaryIO

    def put(self, row: int, pixels: Pixels) -> None:
        """Stores one, (16, 18, 3) uint8."""
        os.pwrite(self.file.fileno(), pixels.tobytes(), row * _THUMBNAIL)

    def take(self, rows: Indices) -> Pixels:
        """Some of those that were stored, (n, 864) uint8."""
        parts = [os.pread(self.file.fileno(), _THUMBNAIL, row * _THUMBNAIL) for row in rows.tolist()]
        return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), _THUMBNAIL)


@dataclass(frozen=True, eq=False)
class Looks:
    """What pictures look like, in little.

    Attributes:
        hashes: (N,) uint64; a picture made brighter keeps its hash.
        flat: (N,) bool, pictures of nothing, which are all alike.
        place: (N,) int64, each one's among the thumbnails.
        thumbnails: of 16 x 18 pixels.
    """

    hashes: Hashes
    flat: NDArray[np.bool_]
    place: Indices
    thumbnails: Thumbnails

    def put(self, row: int, pixels: Pixels) -> None:
        """Looks at one picture, (32, 36, 3) uint8."""
        grey = pixels @ np.array(_GREY, np.float32)
        blocks = grey.reshape(_ROWS, _BLOCK, _COLUMNS, _BLOCK).mean(axis=(1, 3))
        self.hashes[row] = np.packbits(blocks[:, 1:] > blocks[:, :-1] + _BRIGHTER).view(np.uint64)[0]
        small = pixels.reshape(_INPUT.height // 2, 2, _INPUT.width // 2, 2, 3).mean(axis=(1, 3))
        self.thumbnails.put(int(self.place[row]), np.rint(small).astype(np.uint8))
        self.flat[row] = grey.std() < _FLAT

    def take(self, rows: Indices) -> "Looks":
        """Those of some pictures."""
        return Looks(self.hashes[rows], self.flat[rows], self.place[rows], self.thumbnails)


def find_duplicates(data: DataSet, folder: Path | None = None) -> Duplicates:
    """Looks at every image once; about as long as decoding takes.

    Args:
        data: what was read.
        folder: where the thumbnails lie meanwhile; without it where the system likes.
    """
    count = len(data.samples)
    codes: dict[tuple[int, ...], int] = {}
    labels = np.array([codes.setdefault(sample.classes, len(codes)) for sample in data.samples], np.int64)
    digests = np.empty((count, 32), np.uint8)
    with (
        tqdm(total=count, desc="comparing images", unit=" images", disable=None) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tempfile.TemporaryFile(dir=folder) as file,
    ):
        looks = make_looks(count, file)
        for row, (digest, pixels) in enumerate(map_ahead(pool, _read, data.samples)):
            digests[row] = np.frombuffer(digest, np.uint8)
            looks.put(row, pixels)
            bar.update()
        content = np.unique(digests.view("V32")[:, 0], return_inverse=True)[1]
        _, starts, unit = np.unique(content * len(codes) + labels, return_index=True, return_inverse=True)
        firsts = np.sort(starts)
        partner = nearest_other(looks.take(firsts), labels[firsts])
    same = _same_content(content, labels, firsts)
    alike = {int(row): int(firsts[place]) for row, place in zip(firsts, partner, strict=True) if place >= 0}
    near = {row: alike[one] for row, one in enumerate(starts[unit].tolist()) if one in alike and row not in same}
    return Duplicates(same, near)


def make_looks(count: int, file: BinaryIO) -> Looks:
    """Room for the looks of `count` pictures; the file takes their thumbnails."""
    return Looks(np.zeros(count, np.uint64), np.zeros(count, bool), np.arange(count), Thumbnails(file))


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
        alike = _correlations(*(looks.thumbnails.take(looks.place[rows]) for rows in (one, other)))
        for a, b in ((one, other), (other, one)):
            better = np.flatnonzero(alike >= best[a])
            # Written in rising order, so that of several for one picture the best one stays.
            better = better[np.argsort(alike[better], kind="stable")]
            partner[a[better]], best[a[better]] = b[better], alike[better]
    return partner


def _read(sample: Sample) -> tuple[bytes, Pixels]:
    content = sample.path.read_bytes()
    return hashlib.sha256(content).digest(), load_input(content, _INPUT).pixels


def _same_content(content: Indices, labels: Indices, firsts: Indices) -> dict[int, int]:
    """For each row whose file is there with another label too, the first such row.

    Args:
        content: (N,) the same number for the same file.
        labels: (N,).
        firsts: ascending, the first row of each file with each label.
    """
    often = np.bincount(content[firsts])[content] > 1
    several: dict[int, list[int]] = defaultdict(list)
    for row in firsts[often[firsts]].tolist():
        several[int(content[row])].append(row)
    return {
        row: next(other for other in several[int(content[row])] if labels[other] != labels[row])
        for row in np.flatnonzero(often).tolist()
    }


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


def _correlations(one: Pixels, other: Pixels) -> NDArray[np.float64]:
    """The correlation of thumbnails, (n, bytes), pair by pair."""
    a, b = one.astype(np.float32), other.astype(np.float32)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    return np.asarray(np.einsum("ij,ij->i", a, b) / scale, np.float64)
