"""Parts of a request: pictures that one thread decodes and runs."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import UndecodableImage
from models.image import DEFAULT_LIMITS
from service import items
from service.decoding import Decoded, decode
from service.items import Part, Row, Undecoded, measure, run_part, run_pictures
from service.metrics import Metrics
from tests.conftest import noise, png
from tests.serving import (
    SIZE,
    linear_card,
    linear_logits,
    linear_weights,
    pictures,
    png_of,
    running,
    settings_of,
    write_linear,
)

PICTURES = pictures(150, SIZE)
FILES = [png_of(one) for one in PICTURES]
BROKEN = {3: b"no picture", 70: FILES[70][:40], 149: b""}
MIXED = [BROKEN.get(n, file) for n, file in enumerate(FILES)]


def test_each_picture_of_a_part_has_its_own_row_or_its_own_error() -> None:
    observer = Metrics().observer("net", "1")
    card = linear_card(["a", "b", "c"], linear_weights(3))
    found = run_part(Part(MIXED, DEFAULT_LIMITS), card, observer, lambda fitted: [one.pixels for one in fitted])
    assert {n for n, one in enumerate(found) if isinstance(one, UndecodableImage)} == set(BROKEN)
    for n, one in enumerate(found):
        if isinstance(one, Row):
            assert np.array_equal(one.answer, PICTURES[n]) and one.decoded > 0.0
    inferred = next(one.inferred for one in found if isinstance(one, Row))
    assert measure([150, 2], [found, [UndecodableImage()] * 2], 5.0) == (147, inferred)


def test_a_part_without_a_sound_picture_is_not_run() -> None:
    def never(_: Any) -> Any:
        raise AssertionError("nothing to run")

    card = linear_card(["a", "b", "c"], linear_weights(3))
    found = run_part(Part([b"", b"x"], DEFAULT_LIMITS), card, Metrics().observer("net", "1"), never)
    assert [type(one) for one in found] == [UndecodableImage] * 2
    assert measure([2], [found], 5.0) == (0, 0)


def test_a_net_ran_for_as_long_as_its_run_took_without_decoding() -> None:
    rows = [Row("cat", decoded=0.75, inferred=0.25), Row("dog", decoded=0.5, inferred=0.25)]
    assert measure([1, 1], rows, 1.5) == (2, 0.25)
    assert measure([3, 5], [(b"outputs",), (b"outputs",)], 1.5) == (8, 1.5)
    assert measure([], [], 1.5) == (0, 1.5)


def test_a_run_that_fails_does_not_excuse_a_broken_picture() -> None:
    def fails(_: Any) -> Any:
        raise MemoryError("no memory")

    card = linear_card(["a", "b", "c"], linear_weights(3))
    pictures_ = [Undecoded(file, DEFAULT_LIMITS) for file in (FILES[0], b"no picture", FILES[1])]
    found = run_pictures(pictures_, card, Metrics().observer("net", "1"), fails)
    assert [type(one) for one in found] == [MemoryError, UndecodableImage, MemoryError]


@pytest.mark.parametrize("threads", [1, 2], ids=["quick net", "net in threads"])
@pytest.mark.parametrize("runs", [1, 2])
async def test_many_pictures_are_answered_and_counted_each(tmp_path: Path, threads: int, runs: int) -> None:
    write_linear(tmp_path)
    files = [("file", (f"{n}", file, "image/png")) for n, file in enumerate(MIXED)]
    async with running(settings_of(models=tmp_path, device="cpu", threads=threads, runs=runs)) as http:
        found = (await http.post("/predict", files=files)).json()["predictions"]
        assert [one["id"] for one in found] == [str(n) for n in range(150)]
        assert {n for n, one in enumerate(found) if "error" in one} == set(BROKEN)
        best = linear_logits(PICTURES, linear_weights(3)).argmax(axis=1)
        assert all(one["label"] == "abc"[best[n]] for n, one in enumerate(found) if n not in BROKEN)
        (stats,) = (await http.get("/v2/models/linear/stats")).json()["model_stats"]
        assert stats["inference_count"] == 147
        scored = (await http.post("/loss", files=files, data={"label": ["a"] * 150})).json()
        assert {n for n, one in enumerate(scored["items"]) if "error" in one} == set(BROKEN)
        assert scored["loss"]["count"] == 147


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that decode a picture each."""
    names: list[str] = []

    def watched(*arguments: Any) -> Decoded | Exception:
        names.append(threading.current_thread().name)
        return decode(*arguments)

    monkeypatch.setattr(items, "decode", watched)
    return names


async def test_a_quick_net_decodes_many_pictures_in_its_own_threads(tmp_path: Path, decoding: list[str]) -> None:
    write_linear(tmp_path)
    files = [("file", (f"{n}", file, "image/png")) for n, file in enumerate(FILES)]
    async with running(settings_of(models=tmp_path, device="cpu", threads=1)) as http:
        assert (await http.post("/predict", files=files)).status_code == 200
    assert len(decoding) == 150 and all(name.startswith("infer-linear") for name in decoding)


async def test_with_runs_side_by_side_the_threads_that_run_pictures_decode_them_once_they_are_busy(
    tmp_path: Path, decoding: list[str]
) -> None:
    write_linear(tmp_path)
    best = linear_logits(PICTURES, linear_weights(3)).argmax(axis=1)
    files = [("file", (f"{n}", file, "image/png")) for n, file in enumerate(FILES)]
    async with running(settings_of(models=tmp_path, device="cpu", threads=2, runs=2)) as http:
        many = await http.post("/predict", files=files)
        assert [one["label"] for one in many.json()["predictions"]] == ["abc"[k] for k in best]
        assert len(decoding) == 150 and all(name.startswith("infer-linear") for name in decoding)
        alone = await http.post("/predict", content=FILES[0], headers={"content-type": "image/png"})
        assert alone.json()["predictions"][0]["label"] == "abc"[best[0]] and len(decoding) == 150
        broken = await http.post("/predict", files=[("file", (f"{n}", FILES[70][:40], "image/png")) for n in range(2)])
        assert ["damaged or cut off" in one["error"]["detail"] for one in broken.json()["predictions"]] == [True] * 2
        assert len(decoding) == 152
        (stats,) = (await http.get("/v2/models/linear/stats")).json()["model_stats"]
        assert stats["inference_count"] == 151
        text = (await http.get("/metrics")).text
        assert 'focalserve_stage_seconds_count{model="linear",stage="decode"} 151.0' in text


async def test_who_takes_long_to_decode_does_not_keep_the_threads_that_run_pictures(
    tmp_path: Path, decoding: list[str]
) -> None:
    write_linear(tmp_path)
    heavy = png(noise(400, 400))
    async with running(settings_of(models=tmp_path, device="cpu", threads=2, runs=2)) as http:
        for files in ([heavy] * 5, [FILES[0]] * 4 + [heavy]):
            answer = await http.post("/predict", files=[("file", ("x", file, "image/png")) for file in files])
            assert answer.status_code == 200 and not decoding


async def test_fewer_runs_than_cores_leave_decoding_to_the_others(
    tmp_path: Path, decoding: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_linear(tmp_path)
    files = [("file", (f"{n}", file, "image/png")) for n, file in enumerate(FILES)]
    monkeypatch.setattr("service.served.usable_cores", lambda: 16)
    async with running(settings_of(models=tmp_path, device="cpu", threads=2, runs=2)) as http:
        assert (await http.post("/predict", files=files)).status_code == 200
    assert not decoding
