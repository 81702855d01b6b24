"""Parts of a request go to whoever is free, none is lost where one cannot, and nothing is left of those not wanted."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from models.card import ModelCard
from models.image import ImageLimits
from service.batch import Timed, never
from service.decoding import Encoded
from service.errors import NotReady, Overloaded
from service.exchange import Call, WholeRequest
from service.helpers import Helpers
from service.items import Part, Row
from service.served import Served
from service.spread import Spread
from service.sums import Sums
from tests.serving import SIZE, linear_logits, linear_weights, pictures, png_of, settings_of, write_linear
from tests.test_at_once import site

IMAGES = pictures(10 * 64, SIZE)
FILES = [png_of(image) for image in IMAGES]
LOGITS = linear_logits(IMAGES, linear_weights(3))


class Other(Helpers):
    """Another process, as the first one sees it; it runs nothing before `leave` is set, or cannot."""

    def __init__(self, served: Served, can: bool = True) -> None:
        self.leave = asyncio.Event()
        self.asked = 0
        self._served, self._can = served, can

    async def follow(self, change: tuple[str, str] | None = None) -> None:
        pass

    async def sums(self) -> list[Sums]:
        return []

    def ready(self) -> int:
        return 1

    async def run_images(self, which: int, card: ModelCard, images: Sequence[Encoded]) -> Timed | None:
        assert which == 0
        self.asked += 1
        await self.leave.wait()
        return await self._served.batcher.submit(Part(images, ImageLimits())) if self._can else None


@asynccontextmanager
async def linear(folder: Path) -> AsyncGenerator[Served]:
    write_linear(folder, ["a", "b", "c"])
    async with site(settings_of(models=folder)) as server:
        yield server.state.catalog.get("linear")


def spread_of(served: Served, helpers: Helpers | None = None) -> Spread:
    assert served.card is not None
    return Spread(served, served.card, ImageLimits(), helpers, never)


def check(found: Sequence[Timed | Exception], broken: Sequence[int] = ()) -> None:
    assert len(found) == len(LOGITS)
    for n, one in enumerate(found):
        assert isinstance(one, Exception) == (n in broken)
        if isinstance(one, Timed):
            assert isinstance(one.result, Row)
            assert np.allclose(one.result.answer.logits, LOGITS[n], rtol=1e-3, atol=1e-4)


async def test_who_is_slow_gets_no_more_and_the_order_stays(tmp_path: Path) -> None:
    async with linear(tmp_path) as served:
        other = Other(served)
        spread = spread_of(served, other)
        files = [*FILES]
        files[7] = files[600] = b"broken"
        for start in range(0, len(files), 50):
            spread.add(files[start : start + 50])
            await asyncio.sleep(0)
        later = asyncio.ensure_future(spread.results())
        await asyncio.sleep(0.2)
        assert other.asked == 3 and not later.done()
        other.leave.set()
        check(await later, broken=[7, 600])
        assert other.asked == 3 and served.batcher.holders == 0


async def test_few_pictures_stay_here(tmp_path: Path) -> None:
    async with linear(tmp_path) as served:
        other = Other(served)
        spread = spread_of(served, other)
        spread.add(FILES[:20])
        assert len(await spread.results()) == 20 and other.asked == 0


async def test_what_another_cannot_run_is_run_here_and_it_is_asked_no_more(tmp_path: Path) -> None:
    async with linear(tmp_path) as served:
        other = Other(served, can=False)
        other.leave.set()
        spread = spread_of(served, other)
        spread.add(FILES)
        check(await spread.results())
        assert other.asked == 3


async def test_nothing_is_left_of_what_is_not_wanted(tmp_path: Path) -> None:
    async with linear(tmp_path) as served:
        spread = spread_of(served, Other(served))
        spread.add(FILES)
        await asyncio.sleep(0)
        assert served.batcher.holders == 6
        spread.cancel()
        await asyncio.sleep(0.1)
        assert served.batcher.holders == served.batcher.load == 0


async def test_a_model_that_stops_says_so(tmp_path: Path) -> None:
    async with linear(tmp_path) as served:
        spread = spread_of(served)
        spread.add(FILES)
        served.batcher.stop()
        with pytest.raises(NotReady):
            await spread.results()
        with pytest.raises(NotReady):
            spread_of(served)


async def test_a_full_queue_is_refused_at_the_beginning(tmp_path: Path) -> None:
    async with linear(tmp_path) as served:
        others: list[asyncio.Future[Timed]] = []
        with pytest.raises(Overloaded):
            for _ in range(9):
                others.append(served.batcher.submit(Part(FILES[:256], ImageLimits())))
        with pytest.raises(Overloaded):
            spread_of(served)
        await asyncio.gather(*others)


async def test_only_the_very_same_pictures_for_the_same_model_are_its(tmp_path: Path) -> None:
    async with linear(tmp_path) as served, linear(tmp_path / "more") as another:
        spread = spread_of(served)
        spread.add(FILES[:3])
        assert spread.is_of(served, FILES[:3])
        assert not spread.is_of(another, FILES[:3])
        assert not spread.is_of(served, FILES[:2]) and not spread.is_of(served, [*FILES[:2], FILES[4]])
        spread.cancel()


async def test_what_was_begun_for_another_model_goes_no_further(tmp_path: Path) -> None:
    write_linear(tmp_path, ["a", "b", "c"])
    write_linear(tmp_path, ["a", "b", "c"], name="other")
    async with site(settings_of(models=tmp_path)) as server:
        linear, other = (server.state.catalog.get(name) for name in ("linear", "other"))
        assert linear.card is not None
        call = Call({"type": "http", "method": "POST", "path": "/loss", "headers": []}, WholeRequest(b"").receive)
        begun = spread_of(other, Other(other))
        begun.add(FILES)
        call.ahead = begun
        check(await server.state.images.run(linear, linear.card, FILES, call))
        assert other.batcher.holders == other.batcher.load == 0
        assert other.observer.sums.images < len(FILES)
