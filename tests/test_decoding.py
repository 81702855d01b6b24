"""Where pictures are decoded, and in which order they come back."""

import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import read_bundle
from models.card import ModelCard
from models.errors import UndecodableImage
from models.image import DEFAULT_LIMITS, load_input
from service import decoding
from service.decoding import Decoded, Decoder
from service.metrics import Metrics
from tests.conftest import jpeg, noise, png


@pytest.fixture(scope="module")
def card(bundle_folder: Path) -> ModelCard:
    return read_bundle(bundle_folder).card


async def decoded(images: Sequence[bytes], card: ModelCard, threads: int = 4) -> list[Decoded | Exception]:
    decoder = Decoder(threads, DEFAULT_LIMITS)
    try:
        return [found async for found in decoder.many(images, card, Metrics().observer("net", "1"))]
    finally:
        decoder.close()


async def test_pictures_of_any_size_come_back_in_their_order(card: ModelCard) -> None:
    images = [jpeg(noise(16, 16, seed)) for seed in range(40)]
    images[3:3] = [png(noise(300, 200, 50)), b"no picture"]
    images[30:30] = [jpeg(noise(400, 400, 60))]
    for image, found in zip(images, await decoded(images, card), strict=True):
        if image == b"no picture":
            assert isinstance(found, UndecodableImage)
        else:
            assert isinstance(found, Decoded)
            assert np.array_equal(found.fitted.pixels, load_input(image, card.input).pixels)


async def test_many_small_pictures_take_one_thread_and_large_ones_all(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, set[str]] = {"small": set(), "large": set()}
    both = threading.Barrier(2)

    def watched(data: bytes, *rest: Any) -> Any:
        kind = "small" if len(data) < 4096 else "large"
        where[kind].add(threading.current_thread().name)
        if kind == "large":
            both.wait(20)
        return load_input(data, *rest)

    monkeypatch.setattr(decoding, "load_input", watched)
    await decoded([jpeg(noise(16, 16, seed)) for seed in range(64)], card)
    await decoded([png(noise(200, 200, seed)) for seed in range(2)], card)
    assert len(where["small"]) == 1
    assert len(where["large"]) == 2


async def test_a_picture_that_fails_costs_its_neighbours_nothing(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    images = [jpeg(noise(16, 16, seed)) for seed in range(40)]

    def fails(data: bytes, *rest: Any) -> Any:
        if data == images[5]:
            raise MemoryError("no memory")
        return load_input(data, *rest)

    monkeypatch.setattr(decoding, "load_input", fails)
    found = await decoded(images, card)
    assert [n for n, one in enumerate(found) if isinstance(one, Exception)] == [5]


async def test_long_base64_is_read_in_a_thread(card: ModelCard) -> None:
    decoder, observer = Decoder(1, DEFAULT_LIMITS), Metrics().observer("net", "1")
    small = base64.b64encode(jpeg(noise(16, 16))).decode()
    assert decoder.at_once(small, card, observer) is not None
    assert decoder.at_once(small + "=" * 100_000, card, observer) is None
    assert isinstance(await decoder.one(small + "=" * 100_000, card, observer), Decoded)
    decoder.close()
