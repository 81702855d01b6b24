"""A detector's engine and service with the loss graph in use, as with CUDA, but on the CPU: the answers are numpy's."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from models.bundle import read_bundle
from models.detect import Detection
from models.image import load_input
from models.task import ScoreOptions
from service import detector
from service.detector import RAW, DetectorEngine, Raw
from service.loss_graph import DeviceLogits
from service.runtime import CPU, Runtime
from tests.serving import Json, b64, running, settings_of
from tests.test_detector_serving import BOXES, FILES
from tests.test_loss_graph import same_scores, signed
from tests.wire import binary, outputs_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
INPUTS: list[Json] = [{"image": b64(data), "boxes": boxes} for data, boxes in zip(FILES, BOXES, strict=True)]


@pytest.fixture
def on_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss graph in use, as with CUDA."""
    monkeypatch.setattr(detector, "GRAPH_ON", frozenset({CPU}))


@pytest.fixture(scope="module")
def engine(detector_artifacts: Path) -> DetectorEngine:
    return DetectorEngine(read_bundle(detector_artifacts / "scenes" / "1"), "cpu", 1)


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Name and shape of each output that came to the host through IO binding."""
    seen, run_bound = list[tuple[str, tuple[int, ...]]](), Runtime.run_bound

    def watched(self: Runtime, feeds: Any, outputs: Any, staying: Any = ()) -> Any:
        found = run_bound(self, feeds, outputs, staying)
        seen.extend((name, tuple(one.shape())) for name, one in zip(outputs, found, strict=True) if name not in staying)
        return found

    monkeypatch.setattr(Runtime, "run_bound", watched)
    yield seen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(detector_artifacts: Path) -> AsyncGenerator[httpx.AsyncClient]:
    async with running(settings_of(models=detector_artifacts, device="cpu", default_model="scenes")) as client:
        yield client


def look(engine: DetectorEngine) -> list[Raw]:
    found = engine.run([load_input(data, engine.card.input) for data in FILES], RAW)
    assert all(isinstance(one, Raw) for one in found)
    return [one for one in found if isinstance(one, Raw)]


async def test_numpy_is_used_on_the_cpu(engine: DetectorEngine) -> None:
    assert engine.loss_graph is not None
    assert not any(isinstance(one.cls_logits, DeviceLogits) for one in look(engine))


@pytest.mark.usefixtures("on_graph")
async def test_no_more_than_sums_and_rows_of_given_boxes_come_to_the_host(
    engine: DetectorEngine, pulled: list[tuple[str, tuple[int, ...]]]
) -> None:
    anchors = len(look(engine)[0].box_deltas)
    dense = [shape for _, shape in pulled if len(shape) > 1]
    assert dense == [(len(FILES), anchors, 4)] and {shape for _, shape in pulled if len(shape) == 1} == {(anchors,)}
    for raw, boxes in zip(look(engine), BOXES, strict=True):
        pulled.clear()
        labels = Detection().targets(boxes, engine.card)
        Detection().score(raw.cls_logits, raw.box_deltas, labels, raw.geometry, engine.card, ScoreOptions(2.0, None))
        rows = [shape[0] for name, shape in pulled if name == "logits"]
        assert sum(rows) <= 0.2 * anchors and bool(rows) == any(not box.get("iscrowd") for box in boxes)
        assert all(len(shape) == 1 for name, shape in pulled if name != "logits")
        assert boxes or pulled == [("focal", (anchors,))]


@pytest.mark.usefixtures("on_graph")
async def test_scores_are_those_of_numpy(engine: DetectorEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    there = look(engine)
    assert all(isinstance(one.cls_logits, DeviceLogits) for one in there)
    monkeypatch.undo()
    for options in (ScoreOptions(2.0, None), ScoreOptions(1.0, 0.3, label_smoothing=0.05)):
        for got, want, boxes in zip(there, look(engine), BOXES, strict=True):
            assert np.array_equal(got.box_deltas, want.box_deltas)
            labels = Detection().targets(boxes, engine.card)
            one, other = (
                Detection().score(raw.cls_logits, raw.box_deltas, labels, raw.geometry, engine.card, options)
                for raw in (got, want)
            )
            same_scores(one, other)


async def test_a_request_is_answered_as_by_numpy(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, pulled: list[tuple[str, tuple[int, ...]]]
) -> None:
    body = {"inputs": INPUTS, "gamma": 0.5, "alpha": 0.4, "label_smoothing": 0.1}
    want = await http.post("/loss", json=body)
    assert not pulled
    monkeypatch.setattr(detector, "GRAPH_ON", frozenset({CPU}))
    got = await http.post("/loss", json=body)
    assert got.status_code == want.status_code == 200, got.text
    assert pulled
    assert_same(got.json(), want.json())


@pytest.mark.usefixtures("on_graph")
async def test_raw_outputs_asked_for_by_name_come_whole(http: httpx.AsyncClient, engine: DetectorEngine) -> None:
    images = np.stack([load_input(data, engine.card.input).pixels for data in FILES[:2]])
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in ("cls_logits", "box_deltas")]
    body, headers = binary({"outputs": wanted}, image=images)
    found = outputs_of(await http.post("/v2/models/scenes/infer", content=body, headers=headers))
    logits, deltas = engine.runtime.run({"image": images, "max_detections": np.zeros(1, np.int64)}, list(found))
    assert np.allclose(found["cls_logits"], logits, atol=1e-5) and np.allclose(found["box_deltas"], deltas, atol=1e-5)


@pytest.mark.usefixtures("on_graph")
async def test_a_bundle_without_a_loss_graph_is_scored_by_numpy(
    engine: DetectorEngine, detector_artifacts: Path
) -> None:
    old = DetectorEngine(signed(read_bundle(detector_artifacts / "scenes" / "1"), None), "cpu", 1)
    assert old.loss_graph is None
    assert not any(isinstance(one.cls_logits, DeviceLogits) for one in look(old))
    assert [one.shape for one in look(old)[0].cls_logits.rows(np.arange(2))] == [(3,), (3,)]


def assert_same(got: Any, want: Any, where: str = "answer") -> None:
    """The same document, numbers within 1e-5."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for name in want:
            assert_same(got[name], want[name], f"{where}.{name}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for n, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(one, other, f"{where}.{n}")
    elif isinstance(want, float):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-30), where
    else:
        assert got == want, where
