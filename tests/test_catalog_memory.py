"""What is exchanged or unloaded goes: no net waits for the collector, and one thread loads them all."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.catalog import Catalog
from service.many import submit_all
from service.metrics import Metrics
from service.model_folder import Build, prepare
from service.runtime import Runtime
from service.settings import Settings
from tests.foreign import relu, write_foreign
from tests.serving import SIZE, pictures, settings_of, write_linear


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What was loaded first is frozen, and no collection frees it: it must go with its last reference."""
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def loaded(root: Path, metrics: Metrics | None = None, runs: int = 0) -> AsyncGenerator[Catalog]:
    catalog = Catalog(settings_of(models=root, device="cpu", runs=runs), metrics or Metrics())
    await catalog.load_all()
    try:
        yield catalog
    finally:
        await catalog.close()


async def used(catalog: Catalog) -> "weakref.ref[Runtime]":
    """The session that answers now, after a batch that it ran."""
    served = catalog.get("linear")
    await submit_all(served.batcher, list(pictures(16, SIZE)))
    return weakref.ref(served.runtime)


async def gone(session: "weakref.ref[Runtime]") -> bool:
    until = time.monotonic() + 5.0
    while session() is not None and time.monotonic() < until:
        await asyncio.sleep(0.005)
    return session() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("rounds", [0, 1000], ids=["quick net", "net in a thread"])
async def test_a_net_goes_when_another_takes_its_place_and_when_it_is_unloaded(tmp_path: Path, rounds: int) -> None:
    write_linear(tmp_path, rounds=rounds)
    async with loaded(tmp_path) as catalog:
        first = await used(catalog)
        await catalog.load("linear")
        assert await gone(first)
        second = await used(catalog)
        await catalog.unload("linear")
        assert await gone(second)


@pytest.mark.usefixtures("no_collector")
async def test_what_a_net_took_is_given_back_once_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_linear(tmp_path)
    async with loaded(tmp_path) as catalog:
        session, there = await used(catalog), list[bool]()
        given = asyncio.Event()
        loop = asyncio.get_running_loop()

        def noted() -> None:
            there.append(session() is not None)
            loop.call_soon_threadsafe(given.set)

        monkeypatch.setattr("service.catalog.give_back", noted)
        await catalog.load("linear")
        await asyncio.wait_for(given.wait(), 5)
        assert there == [False]


async def test_the_depth_of_an_unloaded_models_queue_is_none(tmp_path: Path) -> None:
    write_linear(tmp_path)
    metrics = Metrics()
    async with loaded(tmp_path, metrics) as catalog:
        session = await used(catalog)
        await catalog.unload("linear")
        assert await gone(session)
        assert b'focalserve_queue_images{model="linear"} 0.0' in metrics.expose()


async def test_one_thread_loads_all_models_those_asked_for_at_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_linear(tmp_path)
    write_foreign(tmp_path, other=relu(("n", 3)))
    threads: list[int] = []

    def noted(path: Path, settings: Settings) -> Build:
        threads.append(threading.get_ident())
        time.sleep(0.05)
        return prepare(path, settings)

    monkeypatch.setattr("service.catalog.prepare", noted)
    async with loaded(tmp_path) as catalog:
        for _ in range(3):
            await asyncio.gather(catalog.load("linear"), catalog.load("other"))
    assert len(threads) == 8 and len(set(threads)) == 1 and threading.get_ident() not in threads


@pytest.mark.usefixtures("no_collector")
async def test_of_runs_side_by_side_no_session_stays(tmp_path: Path) -> None:
    def sessions() -> int:
        # Not isinstance: of some objects of torch it asks what is deprecated, where other tests have loaded it.
        return sum(type(one) is Runtime for one in gc.get_objects())

    write_linear(tmp_path, rounds=1000)
    before = sessions()
    async with loaded(tmp_path, runs=2) as catalog:
        assert "2 runs of" in catalog.get("linear").how
        await used(catalog)
        assert sessions() == before + 2
        await catalog.load("linear")
        await used(catalog)
        await catalog.unload("linear")
        until = time.monotonic() + 5.0
        while sessions() > before and time.monotonic() < until:
            await asyncio.sleep(0.005)
        assert sessions() == before
