"""Training images as batches: decoded once where they fit in memory, shuffled and augmented the same for one seed.

Order and augmentation are functions of (seed, epoch, batch), not of a generator's state, so that a run that stopped
anywhere goes on with exactly the batches it would have had.
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from models.card import ImageInput
from models.errors import InvalidInput
from models.fit import Pixels
from models.image import load_input
from scripts.pools import map_ahead

Indices = NDArray[np.int64]
_AHEAD = 3
_SHIFT = 0.1
_SCALE = 0.1


class Picture(Protocol):
    """What a store needs of a sample."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def origin(self) -> str:
        """Where it came from, for messages."""
        ...


class Store(Protocol):
    """Where the images of samples come from."""

    def take(self, indices: Indices) -> Pixels:
        """(n, height, width, 3) uint8 of the samples at these positions."""
        ...


@dataclass(frozen=True)
class Memory:
    """Images decoded beforehand, (N, height, width, 3) uint8."""

    pixels: Pixels

    def take(self, indices: Indices) -> Pixels:
        """(n, height, width, 3) uint8 of the samples at these positions."""
        return self.pixels[indices]


class Files:
    """Images decoded when asked for, in threads."""

    def __init__(self, samples: Sequence[Picture], spec: ImageInput) -> None:
        self.samples = samples
        self.spec = spec
        self.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    def take(self, indices: Indices) -> Pixels:
        """(n, height, width, 3) uint8 of the samples at these positions."""
        return np.stack(list(self.pool.map(self._decode, indices.tolist())))

    def _decode(self, index: int) -> Pixels:
        return decode_sample(self.samples[index], self.spec)


def open_store(samples: Sequence[Picture], spec: ImageInput, cache_mb: int, progress: bool = True) -> Store:
    """Decodes all images into memory where they fit into `cache_mb` MiB; else they are decoded when asked for.

    Raises:
        InvalidInput: an image that cannot be read any more; the message names the file.
    """
    files = Files(samples, spec)
    if len(samples) * spec.height * spec.width * 3 > cache_mb * 2**20:
        return files
    pixels = np.empty((len(samples), spec.height, spec.width, 3), np.uint8)
    bar = tqdm(total=len(samples), desc="decoding", unit=" images", disable=None if progress else True)
    with bar, files.pool:
        for row, image in enumerate(map_ahead(files.pool, files._decode, range(len(samples)))):
            pixels[row] = image
            bar.update()
    return Memory(pixels)


def decode_sample(sample: Picture, spec: ImageInput) -> Pixels:
    """One sample's image as the graph's input, (height, width, 3) uint8.

    Raises:
        InvalidInput: it cannot be read; the message names the file.
    """
    try:
        return load_input(sample.path.read_bytes(), spec).pixels
    except (InvalidInput, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{sample.origin}: {sample.path.name}: {reason}") from None


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """The batches of one epoch: positions 0..count-1, shuffled, each once.

    A remainder of one sample joins the batch before it, because batch norm cannot learn from one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)
    cuts = list(range(batch_size, count, batch_size))
    if cuts and count - cuts[-1] == 1:
        cuts.pop()
    return np.split(order, cuts)


def prefetch(store: Store, batches: Sequence[Indices]) -> Iterator[tuple[Indices, Pixels]]:
    """Each batch with its images; those from files are read while the batches before them are worked on."""
    if isinstance(store, Memory):
        yield from ((batch, store.take(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        waiting: deque[tuple[Indices, Future[Pixels]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, reader.submit(store.take, batch)))
                if len(waiting) > _AHEAD:
                    ready, pixels = waiting.popleft()
                    yield ready, pixels.result()
            for ready, pixels in waiting:
                yield ready, pixels.result()
        finally:
            for _, pixels in waiting:
                pixels.cancel()


def augment(images: Tensor, *, flip: bool, crop: bool, seed: Sequence[int]) -> Tensor:
    """Mirrors half of the images, and shifts and scales each by up to a tenth; edges are continued.

    Args:
        images: (N, 3, H, W) float32.
        flip: whether to mirror left to right.
        crop: whether to shift and scale.
        seed: whole numbers that decide it all.

    Returns:
        (N, 3, H, W) float32.
    """
    if not flip and not crop:
        return images
    rng = np.random.default_rng(list(seed))
    count = len(images)
    sign = np.where(rng.random(count) < 0.5, -1.0, 1.0) if flip else np.ones(count)
    if not crop:
        mirrored = torch.from_numpy(sign < 0).to(images.device).view(-1, 1, 1, 1)
        return torch.where(mirrored, images.flip(3), images)
    zoom = np.exp(rng.uniform(-1, 1, count) * math.log1p(_SCALE))
    shift = rng.uniform(-2 * _SHIFT, 2 * _SHIFT, (count, 2))  # the grid is 2 wide
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = sign * zoom, zoom, shift
    grid = functional.affine_grid(torch.from_numpy(theta).to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
