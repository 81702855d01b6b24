"""What goes to another process comes out as it went in, and what cannot be told is run here."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import read_bundle
from models.card import ModelCard
from models.errors import ImageTooLarge, InvalidInput, UndecodableImage
from models.task import Prediction
from models.tasks import TASKS
from service.errors import InferenceFailed, NotFound
from service.items import Row
from service.predictions import RowAnswer, answer_rows
from service.shared_parts import Asked, mark_of, pack_images, pack_rows, unpack_images, unpack_rows
from tests.serving import SIZE, linear_card, linear_weights, pictures, png_of, settings_of, write_linear
from tests.test_at_once import site

CARD = linear_card(["a", "b", "c"], linear_weights(3))
LOGITS = np.random.default_rng(1).normal(0.0, 3.0, (5, 3)).astype(np.float32)


def rows() -> list[Row[RowAnswer] | Exception]:
    found = answer_rows(CARD, LOGITS)
    return [Row(one, 0.25 * n, 0.5) for n, one in enumerate(found) if isinstance(one, RowAnswer)]


def test_pictures_arrive_in_their_order_as_bytes_or_text() -> None:
    asked = Asked(7, ("m", "1", "sum"), [b"", b"\x00\xff", "QUJD", b"x" * 70_000])
    assert unpack_images(pack_images(asked)) == asked


def test_rows_and_errors_arrive_in_their_places() -> None:
    sent = rows()
    sent[1], sent[4] = UndecodableImage("no \ud800 picture"), ImageTooLarge("too large")
    message = pack_rows(3, sent)
    found = unpack_rows(message, CARD)
    assert mark_of(message) == 3 and found is not None and len(found) == 5
    for want, got in zip(sent, found, strict=True):
        if isinstance(want, Row):
            assert isinstance(got, Row) and (got.decoded, got.inferred) == (want.decoded, want.inferred)
            assert np.array_equal(got.answer.logits, want.answer.logits)
            assert got.answer.found.p == pytest.approx(want.answer.found.p, rel=1e-12)
        else:
            assert type(got) is type(want) and str(got) == str(want)


def test_pictures_that_are_all_broken_have_errors_alone() -> None:
    found = unpack_rows(pack_rows(1, [InvalidInput("a"), InvalidInput("b")]), CARD)
    assert found is not None and [str(one) for one in found] == ["a", "b"]


def test_what_is_no_fault_of_a_picture_is_run_here() -> None:
    assert unpack_rows(pack_rows(1, None), CARD) is None
    assert unpack_rows(pack_rows(1, [*rows()[:4], InferenceFailed("not finite")]), CARD) is None


async def test_another_process_runs_pictures_for_the_very_same_bundle_alone(tmp_path: Path) -> None:
    bundle = read_bundle(write_linear(tmp_path, ["a", "b", "c"]))
    write_linear(tmp_path, ["a", "b", "c"], rounds=1000, name="slow")
    files = [png_of(one) for one in pictures(3, SIZE)]
    async with site(settings_of(models=tmp_path)) as server:
        checksum = str(bundle.card.sha256)
        rows = await server.state.run_for_another(("linear", "1", checksum), [*files, b"none"])
        assert rows is not None and [isinstance(row, Row) for row in rows] == [True] * 3 + [False]
        assert await server.state.run_for_another(("linear", "1", "another"), files) is None
        slow = server.state.catalog.get("slow").card
        assert slow is not None and await server.state.run_for_another(("slow", "1", str(slow.sha256)), files) is None
        with pytest.raises(NotFound):
            await server.state.run_for_another(("none", "1", checksum), files)


async def test_parts_that_come_together_wait_for_room(tmp_path: Path) -> None:
    """The process that was asked has let them in; refused here it would run them after its own."""
    checksum = str(read_bundle(write_linear(tmp_path, ["a", "b", "c"])).card.sha256)
    files = [png_of(one) for one in pictures(20, SIZE)]
    async with site(settings_of(models=tmp_path, queue_size=32)) as server:
        parts = [server.state.run_for_another(("linear", "1", checksum), files) for _ in range(8)]
        assert [len(rows or ()) for rows in await asyncio.gather(*parts)] == [20] * 8


async def test_what_many_rows_mean_is_worked_out_in_a_thread_and_not_for_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_linear(tmp_path, ["a", "b", "c"])
    task, threads = TASKS["multiclass"], list[threading.Thread]()
    predict_rows = task.predict_rows

    def watched(logits: NDArray[np.floating], card: ModelCard) -> list[Prediction]:
        threads.append(threading.current_thread())
        return predict_rows(logits, card)

    monkeypatch.setattr(task, "predict_rows", watched)
    files = [("file", (str(n), png_of(one), "image/png")) for n, one in enumerate(pictures(3, SIZE))]
    async with site(settings_of(models=tmp_path)) as server:
        answer = await server.http.post("/loss", files=files, data={"label": ["a"] * 3})
        assert answer.status_code == 200 and not threads
        answer = await server.http.post("/predict", files=files)
        assert answer.status_code == 200 and threads
        assert threading.current_thread() not in threads
